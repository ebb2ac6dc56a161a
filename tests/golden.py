"""The golden files: outputs of the TensorFlow graph that the PixelDefend authors released, for small trained networks.

Each ``.npz`` holds weights under their TensorFlow names, real images, mixture parameters, 256-way log-probabilities
and purified images (NHWC, float32 or uint8). ``tests/data`` ships a small cut of them; the complete ones are read
from ``shared/golden`` beside the repository where that exists.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pxfast.pixelcnn import GatedResnet, PixelCNN, PixelCNNConfig, WeightNormConv

TESTS = Path(__file__).parent
BUNDLED = TESTS / "data"
COMPLETE = TESTS.parent.parent / "shared" / "golden"
NAMES = ("fashion_28x28_f12_r1", "cifar_16x16_f16_r1")


def creation_order(model: PixelCNN) -> Iterator[tuple[str, WeightNormConv]]:
    """Our convolutions, each with its TensorFlow kind, in the order in which the authors' graph creates variables."""

    def gated(layer: GatedResnet) -> Iterator[tuple[str, WeightNormConv]]:
        yield "conv2d", layer.conv_in
        if layer.skip is not None:
            yield "dense", layer.skip
        yield "conv2d", layer.conv_out

    for convolution in (model.input_vertical, model.input_above, model.input_left):
        yield "conv2d", convolution
    for levels, resizes, kind in ((model.down, model.downsample, "conv2d"), (model.up, model.upsample, "deconv2d")):
        for step, pairs in enumerate(levels):
            if step > 0:
                yield kind, resizes[step - 1].vertical
                yield kind, resizes[step - 1].horizontal
            for pair in pairs:
                yield from gated(pair.vertical)
                yield from gated(pair.horizontal)
    yield "dense", model.output


# TensorFlow's axes to PyTorch's: HWIO to OIHW; HWOI to IOHW; (in, out) to (out, in, 1, 1)
TO_PYTORCH = {
    "conv2d": lambda v: v.permute(3, 2, 0, 1),
    "deconv2d": lambda v: v.permute(3, 2, 0, 1),
    "dense": lambda v: v.T[:, :, None, None],
}


def load_weights(model: PixelCNN, arrays: dict[str, np.ndarray]) -> int:
    """Fill the model from arrays named ``weights/model/KIND_I/{V,g,b}``; gives the number of arrays used."""
    count: Counter[str] = Counter()
    with torch.no_grad():
        for kind, convolution in creation_order(model):
            prefix = f"weights/model/{kind}_{count[kind]}/"
            count[kind] += 1
            v, g, b = (torch.from_numpy(np.ascontiguousarray(arrays[prefix + name])) for name in ("V", "g", "b"))
            v = TO_PYTORCH[kind](v)
            if v.shape != convolution.v.shape:
                raise ValueError(f"{prefix}V: expected {tuple(convolution.v.shape)}, got {tuple(v.shape)}")
            convolution.v.copy_(v)
            convolution.g.copy_(g)
            convolution.b.copy_(b)
    return 3 * count.total()


@dataclasses.dataclass
class Golden:
    """One file: the network with its weights, and what the authors' graph gave, as NCHW tensors.

    clean, attacked, purified: (N, C, H, W) uint8. params: (N, F, H, W). nll: (N, C, H, W) nats.
    log_probs: (N, C, h, W, 256), of the h rows from ``row`` on (all of them in a complete file).
    """

    model: PixelCNN
    eps: int
    clean: Tensor
    attacked: Tensor
    purified: Tensor
    params: Tensor
    nll: Tensor
    log_probs: Tensor
    row: int

    @property
    def rows(self) -> slice:
        return slice(self.row, self.row + self.log_probs.shape[2])


def load_golden(path: Path) -> Golden:
    with np.load(path) as file:
        arrays = dict(file)
    _, H, W, C = arrays["clean"].shape
    config = PixelCNNConfig((H, W), C, int(arrays["filters"]), int(arrays["resnets"]), int(arrays["mixtures"]))
    model = PixelCNN(config).eval().requires_grad_(False)
    used = load_weights(model, arrays)
    present = sum(name.startswith("weights/") for name in arrays)
    if used != present:
        raise ValueError(f"{path}: {present} arrays of weights, but the network took {used}")

    def nchw(name: str) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(arrays[name], 3, 1)))

    names = ("clean", "attacked", "purified", "params", "nll", "log_probs")
    row = int(arrays.get("log_probs_row", 0))
    return Golden(model, int(arrays["eps"]), **{name: nchw(name) for name in names}, row=row)


def golden_paths() -> list[tuple[str, Path]]:
    """(label, path) of every golden file there could be; a complete one may be absent."""
    return [(f"bundled-{name}", BUNDLED / f"{name}.npz") for name in NAMES] + [
        (f"complete-{name}", COMPLETE / f"{name}.npz") for name in NAMES
    ]


SWITCH = 1e-5  # bin mass under which the authors' code takes the density at the bin's centre


def authors_log_probs(model: PixelCNN, features: Tensor, images: Tensor, *, switch: bool) -> tuple[Tensor, Tensor]:
    """The authors' formula in float64: 256-way log-probabilities (N, C, H, W, 256), and where the switch acted.

    With ``switch`` off it is the same mixture evaluated exactly. The bins are [(z - 128) / 128, (z - 127) / 128], 0
    and 255 take the tails; the density is taken at (z - 127.5) / 128 and multiplied by the width of 1 / 127.5 that
    the authors' code has from PixelCNN++. Normalised at the end, as theirs. The second result is boolean: true where
    some component's mass is under the switch.
    """
    log_weights, means, log_scales = (t.double().unsqueeze(-1) for t in model.head.mixture(features.double(), images))
    values = torch.arange(256, dtype=torch.float64)
    inverse_scales = torch.exp(-log_scales)
    lower = inverse_scales * ((values - 128) / 128 - means)
    upper = inverse_scales * ((values - 127) / 128 - means)
    middle = inverse_scales * ((values - 127.5) / 128 - means)
    mass = torch.sigmoid(upper) - torch.sigmoid(lower)
    inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(lower - upper))
    acted = torch.zeros_like(mass, dtype=torch.bool)
    if switch:
        edge = (values == 0) | (values == 255)
        acted = (mass <= SWITCH) & ~edge
        density = middle - log_scales - 2 * F.softplus(middle) - math.log(127.5)
        inside = torch.where(mass > SWITCH, inside, density)
    inside = torch.where(values == 0, F.logsigmoid(upper), torch.where(values == 255, F.logsigmoid(-lower), inside))
    mixed = torch.logsumexp(log_weights + inside, dim=2)
    return F.log_softmax(mixed, dim=-1) if switch else mixed, acted.any(dim=2)
