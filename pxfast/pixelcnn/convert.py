"""Importing published weights: TensorFlow checkpoints of OpenAI's PixelCNN++, and of the PixelDefend authors'.

Both programs name a network's variables alike, ``model/KIND_I/{V,g,b}``, numbered per kind in the order in which the
network is built; training adds the averaged ones, ``.../ExponentialMovingAverage``, which are those to use.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..base.checks import check_path
from ..base.files import output_files
from ..base.reading import regular_file
from . import tensorflow_variables
from .files import save
from .heads import SoftmaxHead, check_head
from .network import GatedResnet, PixelCNN, PixelCNNConfig, WeightNormConv

SCOPE = "model/"
AVERAGE = "ExponentialMovingAverage"
FIRST = "conv2d_0"  # the layer whose shape tells the network's width and the images' channels
IMAGE_SIZES = {1: (28, 28), 3: (32, 32)}  # of Fashion-MNIST and CIFAR-10: the network is convolutional, no weight tells


@contextlib.contextmanager
def checkpoint_variables(path: str | os.PathLike[str]) -> Iterator[Mapping[str, np.ndarray]]:
    """The variables of a checkpoint that TensorFlow's Saver wrote, by name, those of the network and its averages.

    path: what the Saver was given, or a folder with its file ``checkpoint`` in it. Raises ImportError without
    TensorFlow, FileNotFoundError, or ValueError for what is truncated or no checkpoint.
    """
    given = Path(path)
    for part in given.iterdir() if given.is_dir() else given.parent.glob(f"{glob.escape(given.name)}.*"):
        if not part.is_dir():
            regular_file(part)  # TensorFlow would wait for what is written into a pipe
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "variables.npz"
        # a process of its own: TensorFlow and Triton, which torch may load, each bring an LLVM, and together they abort
        command = [sys.executable, tensorflow_variables.__file__, os.fspath(path), SCOPE, str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == tensorflow_variables.NO_TENSORFLOW:
            raise ImportError("tensorflow is not installed: pip install 'pxfast[convert]'")
        if done.returncode == tensorflow_variables.NOT_FOUND:
            raise FileNotFoundError(f"no such checkpoint: {os.fspath(path)}")
        if done.returncode == tensorflow_variables.DAMAGED:
            raise ValueError(f"truncated or no TensorFlow checkpoint: {done.stdout}")
        if done.returncode:
            raise RuntimeError(f"reading it with TensorFlow failed, status {done.returncode}: {done.stderr[-500:]}")
        with np.load(file, allow_pickle=False) as variables:
            yield variables


def layers(model: PixelCNN) -> Iterator[tuple[str, WeightNormConv]]:
    """The convolutions of ``model`` under their TensorFlow names, in the order in which the variables are created.

    1x1 convolutions are 'dense' there, and each of the three kinds is numbered from 0.
    """
    count: Counter[str] = Counter()

    def named(kind: str, convolution: WeightNormConv) -> tuple[str, WeightNormConv]:
        count[kind] += 1
        return f"{kind}_{count[kind] - 1}", convolution

    def gated(layer: GatedResnet) -> Iterator[tuple[str, WeightNormConv]]:
        yield named("conv2d", layer.conv_in)
        if layer.skip is not None:
            yield named("dense", layer.skip)
        yield named("conv2d", layer.conv_out)

    for convolution in (model.input_vertical, model.input_above, model.input_left):
        yield named("conv2d", convolution)
    for levels, resizes, kind in ((model.down, model.downsample, "conv2d"), (model.up, model.upsample, "deconv2d")):
        for step, pairs in enumerate(levels):
            if step > 0:
                yield named(kind, resizes[step - 1].vertical)
                yield named(kind, resizes[step - 1].horizontal)
            for pair in pairs:
                yield from gated(pair.vertical)
                yield from gated(pair.horizontal)
    yield named("dense", model.output)


def shapes_of(name: str, convolution: WeightNormConv) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer's V, g and b in TensorFlow: V is HWIO, transposed HWOI, of dense layers (in, out)."""
    V = tuple(convolution.v.permute(2, 3, 1, 0).shape)
    outputs = (convolution.out_features,)
    return {"V": V[2:] if name.startswith("dense") else V, "g": outputs, "b": outputs}


def to_pytorch(V: np.ndarray) -> Tensor:
    """HWIO to OIHW, HWOI to IOHW, and (in, out) to (out, in, 1, 1); fp32."""
    return torch.from_numpy(V.reshape((1,) * (4 - V.ndim) + V.shape)).float().permute(3, 2, 0, 1)


def some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def find_variables(names: set[str]) -> tuple[set[str], bool]:
    """The names of a network's variables, less the scope and the average's suffix; whether averages are there.

    Variables of the optimiser, outside of the scope or below another variable, are none of them.
    """
    inside = {name[len(SCOPE) :] for name in names if name.startswith(SCOPE)}
    averaged = {name.removesuffix(f"/{AVERAGE}") for name in inside if name.endswith(f"/{AVERAGE}")}
    plain = {name for name in inside if not re.search(r"/(V|g|b|hw)/", name)}
    return (averaged, True) if averaged else (plain, False)


def count_resnets(found: set[str]) -> int:
    """Gated layers per level of the network that has these variables, by the number of its conv2d layers.

    Of these there are 3 at the input, 4 strided ones, and 2 in each of the 2 (6 resnets + 2) gated layers.
    """
    convolutions = len({name.split("/")[0] for name in found if name.startswith("conv2d_")})
    resnets, rest = divmod(convolutions - 15, 24)
    if resnets < 1 or rest:
        raise ValueError(
            f"{convolutions} conv2d layers found; a PixelCNN++ of three levels has 24 resnets + 15 of them"
        )
    return resnets


def pixelcnn_from_variables(
    variables: Mapping[str, np.ndarray], *, head: str = "pixelcnn++", image_size: tuple[int, int] | None = None
) -> PixelCNN:
    """The network that a checkpoint's variables make, in eval mode, fp32; averaged variables are taken where there are.

    head: 'pixelcnn++' for OpenAI's weights, 'logistic' for the PixelDefend authors'; the variables don't tell.
    image_size: (H, W), by default that of the data set with as many channels. Raises ValueError for variables that
    are missing, superfluous, of another shape or not finite, and for a class-conditional network.
    """
    if check_head(head) == SoftmaxHead.name:
        raise ValueError("a PixelCNN++ has no softmax head; head must be 'pixelcnn++' or 'logistic'")
    found, averaged = find_variables(set(variables))
    if f"{FIRST}/V" not in found:
        has = f"but {some(found)}" if found else "nor any other of a network"
        raise ValueError(f"no checkpoint of a PixelCNN++: no variable {SCOPE}{FIRST}/V, {has}")
    if any(name.startswith("conditional_weights") for name in found):
        raise ValueError("the network is class-conditional (it has conditional_weights), which pxfast's is not")
    resnets = count_resnets(found)
    with torch.device("meta"):
        like = dict(layers(PixelCNN(PixelCNNConfig((4, 4), 1, 1, resnets))))
    wanted = {f"{layer}/{part}" for layer in like for part in "Vgb"}
    for problem, names in (("missing", wanted - found), ("superfluous", found - wanted)):
        if names:
            raise ValueError(f"not the variables of a PixelCNN++ with {resnets} resnets; {problem}: {some(names)}")

    def full(name: str) -> str:
        return f"{SCOPE}{name}/{AVERAGE}" if averaged else f"{SCOPE}{name}"

    first, output = variables[full(f"{FIRST}/V")].shape, variables[full(f"{list(like)[-1]}/g")].shape
    channels, filters = (first[2] - 1, first[3]) if len(first) == 4 else (0, 0)
    per_mixture = {1: 3, 3: 10}
    if channels not in per_mixture or len(output) != 1 or output[0] % per_mixture[channels]:
        raise ValueError(
            f"neither a network over images of 1 channel nor of 3: {full(f'{FIRST}/V')} has shape {first}, "
            f"and the output layer {output} features"
        )
    mixtures = output[0] // per_mixture[channels]
    size = image_size or IMAGE_SIZES[channels]
    config = PixelCNNConfig(size, channels, filters, resnets, mixtures, head=head)
    with torch.device("meta"):  # where a network takes no memory: it is built once the shapes are right
        shapes = {layer: shapes_of(layer, convolution) for layer, convolution in layers(PixelCNN(config))}
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for layer, expected in shapes.items():
        arrays[layer] = {part: _checked(variables, full(f"{layer}/{part}"), shape) for part, shape in expected.items()}
    model = PixelCNN(config)
    with torch.no_grad():
        for layer, convolution in layers(model):
            convolution.v.copy_(to_pytorch(arrays[layer]["V"]))
            convolution.g.copy_(torch.from_numpy(arrays[layer]["g"]))
            convolution.b.copy_(torch.from_numpy(arrays[layer]["b"]))
    return model.eval()


def _checked(variables: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A variable. ValueError unless it has this shape, floating type, and finite values."""
    array = variables[name]
    if array.shape != shape:
        raise ValueError(f"{name} should have shape {shape}, found {array.shape}")
    if array.dtype.kind != "f":
        raise ValueError(f"{name} should be floating point, found {array.dtype}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite")
    return array


def convert_openai_tf(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    head: str = "pixelcnn++",
    image_size: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    force: bool = False,
) -> PixelCNN:
    """Write the PixelCNN++ of a TensorFlow checkpoint as a model file, and return it.

    checkpoint: what the Saver was given, such as 'params_cifar.ckpt', one of its files, or their folder. head,
    image_size: see :func:`pixelcnn_from_variables`. dtype: torch.bfloat16 or torch.float32, of the weights in the
    file. Needs TensorFlow, ``pip install 'pxfast[convert]'``. Raises FileExistsError when ``out`` exists, unless
    ``force``, and what :func:`checkpoint_variables` and :func:`pixelcnn_from_variables` raise.
    """
    check_path("checkpoint", checkpoint)
    check_path("out", out)
    check_head(head)
    path = Path(re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", os.fspath(checkpoint)))
    with output_files(out, force=force) as (temporary,):
        try:
            with checkpoint_variables(path) as variables:
                model = pixelcnn_from_variables(variables, head=head, image_size=image_size)
                _, averaged = find_variables(set(variables))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        notes = {"source": "a TensorFlow checkpoint", "checkpoint": path.name, "averaged": averaged}
        save(model, temporary, dtype=dtype, notes=notes)
    return model
