"""Importing TensorFlow checkpoints: names, layouts and order against a twin in TensorFlow's conventions."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from support.golden import BUNDLED, NAMES, golden_weights
from support.helpers import run_python
from support.tensorflow_twin import Walk, random_variables
from torch import nn
from typer.testing import CliRunner

import pxfast
from pxfast.cli.main import app, main
from pxfast.pixelcnn.convert import AVERAGE, convert_openai_tf, pixelcnn_from_variables
from pxfast.pixelcnn.files import read_metadata
from pxfast.pixelcnn.network import GatedResnet, PixelCNN, PixelCNNConfig, Resize

FILTERS, MIXTURES = 6, 3
SIZE = (12, 8)  # not square, so that exchanged axes are seen


def averaged(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same variables as the averages of others, with what an optimiser adds."""
    generator = np.random.default_rng(9)
    checkpoint = {"Variable": np.float32(1.0), "global_step": np.int64(7)}
    for i, (name, array) in enumerate(variables.items()):
        checkpoint[name] = generator.normal(size=array.shape).astype(np.float32)
        checkpoint[f"{name}/{AVERAGE}"] = array
        checkpoint[f"{name}/Adam"] = np.zeros_like(array)
        checkpoint[f"Variable_{i + 1}"] = np.zeros_like(array)
    return checkpoint


def traced(model: PixelCNN, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Outputs of the gated layers and of the strided and transposed convolutions, in order, and the network's."""
    trace: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        trace.append(output)

    modules = [module for module in model.modules() if isinstance(module, GatedResnet)]
    for module in model.modules():
        if isinstance(module, Resize):
            modules += [module.vertical, module.horizontal]
    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        return trace, model(images)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resnets", [1, 2])
@torch.no_grad()
def test_every_layer_computes_what_its_variables_say(channels, resnets):
    variables = random_variables(channels, FILTERS, resnets, MIXTURES)
    model = pixelcnn_from_variables(variables, image_size=SIZE)
    assert model.config == PixelCNNConfig(SIZE, channels, FILTERS, resnets, MIXTURES, head="pixelcnn++")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, channels, *SIZE), dtype=torch.uint8, generator=generator)
    walk = Walk(variables, "model/", FILTERS)
    expected = walk.run(images.permute(0, 2, 3, 1).numpy(), resnets, MIXTURES)
    trace, output = traced(model, images)
    assert len(trace) == len(walk.trace) == 2 * (6 * resnets + 2) + 8
    for i, (ours, theirs) in enumerate(zip([*trace, output], [*walk.trace, expected], strict=True)):
        assert theirs.std() > 0.1, "too flat to tell layers apart"
        theirs = torch.from_numpy(theirs).permute(0, 3, 1, 2)
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4, msg=lambda m, i=i: f"layer {i}: {m}")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["conv2d_40", "deconv2d_0", "deconv2d_3", "dense_5"])
def test_the_twin_would_notice_one_transposed_weight(kind):
    variables = random_variables(1, FILTERS, 2, MIXTURES)
    images = torch.randint(0, 256, (1, 1, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    good = pixelcnn_from_variables(variables, image_size=SIZE)(images)
    V = variables[f"model/{kind}/V"]
    variables[f"model/{kind}/V"] = np.swapaxes(V, -1, -2).copy().reshape(V.shape)
    # ten times what the twin's test lets pass
    assert (pixelcnn_from_variables(variables, image_size=SIZE)(images) - good).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_authors_own_graph(name):
    # the complete files are compared in test_golden.py; here by way of averaged variables
    with np.load(BUNDLED / f"{name}.npz") as file:
        arrays = dict(file)
    variables = averaged(golden_weights(arrays))
    model = pixelcnn_from_variables(variables, head="logistic", image_size=arrays["clean"].shape[1:3])
    clean = torch.from_numpy(np.moveaxis(arrays["clean"], 3, 1).copy())
    expected = torch.from_numpy(np.moveaxis(arrays["params"], 3, 1).copy())
    torch.testing.assert_close(model(clean), expected, rtol=1e-4, atol=1e-5)


def without(variables: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key: array for key, array in variables.items() if key != name}


BROKEN = {
    "empty": (lambda v: {}, r"no variable model/conv2d_0/V, nor any other"),
    "another": (lambda v: {"model/fc_1/V": np.zeros(3)}, r"no checkpoint of a PixelCNN\+\+.* but fc_1/V"),
    "another scope": (lambda v: {f"net/{k}": a for k, a in v.items()}, r"no checkpoint of a PixelCNN\+\+"),
    "missing bias": (lambda v: without(v, "model/conv2d_7/b"), r"missing: conv2d_7/b"),
    "missing output": (
        lambda v: {k: a for k, a in v.items() if "/dense_13/" not in k},
        r"missing: dense_13/V, dense_1",
    ),
    "missing average": (lambda v: without(averaged(v), f"model/dense_3/g/{AVERAGE}"), r"missing: dense_3/g"),
    "extra layer": (lambda v: {**v, "model/dense_14/V": np.zeros((4, 4))}, r"superfluous: dense_14/V"),
    "extra level": (
        lambda v: {**v, "model/conv2d_39/V": np.zeros((2, 3, 6, 6))},
        r"40 conv2d layers found; a PixelCNN\+\+ of three levels has 24 resnets \+ 15",
    ),
    "conditional": (
        lambda v: {**v, "model/conditional_weights_0/hw": np.zeros((10, 12))},
        r"class-conditional",
    ),
    "another nonlinearity": (
        lambda v: {**v, "model/conv2d_3/V": v["model/conv2d_3/V"][:, :, :FILTERS]},
        r"model/conv2d_3/V should have shape \(2, 3, 12, 6\), found \(2, 3, 6, 6\)",
    ),
    "two channels": (lambda v: random_two_channels(), r"neither a network over images of 1 channel nor of 3"),
    "odd features": (
        lambda v: {**v, "model/dense_13/g": np.zeros(10)},
        r"neither a network over images of 1 channel nor of 3.* \(10,\) features",
    ),
    "not finite": (
        lambda v: {**v, "model/dense_2/b": v["model/dense_2/b"] * np.nan},
        r"model/dense_2/b has values that are not finite",
    ),
}


def random_two_channels() -> dict[str, np.ndarray]:
    return random_variables(2, FILTERS, 1, MIXTURES)


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_with_the_variables_is_named(case):
    damage, message = BROKEN[case]
    with pytest.raises(ValueError, match=message):
        pixelcnn_from_variables(damage(random_variables(1, FILTERS, 1, MIXTURES)))


def test_settings_are_checked():
    variables = random_variables(3, FILTERS, 1, MIXTURES)
    assert pixelcnn_from_variables(variables).config.image_size == (32, 32)
    assert pixelcnn_from_variables(random_variables(1, FILTERS, 1, MIXTURES), head="logistic").config.image_size == (
        28,
        28,
    )
    with pytest.raises(ValueError, match="has no softmax head"):
        pixelcnn_from_variables(variables, head="softmax")
    with pytest.raises(ValueError, match="head must be one of"):
        pixelcnn_from_variables(variables, head="gauss")
    with pytest.raises(ValueError, match="image_size"):
        pixelcnn_from_variables(variables, image_size=(30, 30))


STAND_IN = """
import pathlib
import numpy as np

class errors:
    class NotFoundError(Exception):
        pass

class Reader:
    def __init__(self, path):
        self.arrays = dict(np.load(path))
    def get_variable_to_shape_map(self):
        return {name: list(array.shape) for name, array in self.arrays.items()}
    def get_tensor(self, name):
        return self.arrays[name]

class train:
    @staticmethod
    def load_checkpoint(path):
        path = pathlib.Path(path)
        if not path.is_file():
            raise errors.NotFoundError(f"no {path}")
        return Reader(path)
"""


@pytest.fixture
def tensorflow(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A stand-in for the few names of TensorFlow that are used; its checkpoints are .npz files."""
    folder = tmp_path_factory.mktemp("stand-in")
    (folder / "tensorflow.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def save_checkpoint(path, variables: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, **variables)


@pytest.mark.parametrize(
    "suffix",
    [
        "",
        pytest.param(".index", marks=pytest.mark.whole),
        pytest.param(".data-00000-of-00001", marks=pytest.mark.whole),
    ],
)
@torch.no_grad()
def test_a_checkpoint_becomes_a_model_file(tensorflow, tmp_path, suffix):
    variables = random_variables(3, FILTERS, 1, MIXTURES)
    save_checkpoint(tmp_path / "params_cifar.ckpt", averaged(variables))
    out = tmp_path / "model.safetensors"
    converted = convert_openai_tf(f"{tmp_path}/params_cifar.ckpt{suffix}", out, dtype=torch.float32)
    _, notes = read_metadata(out)
    assert notes == {"source": "a TensorFlow checkpoint", "checkpoint": "params_cifar.ckpt", "averaged": True}
    loaded = pxfast.load(out)
    assert loaded.config == converted.config
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = pixelcnn_from_variables(variables)(images)
    torch.testing.assert_close(loaded(images), expected, rtol=1e-4, atol=1e-5)


def test_command(tensorflow, tmp_path):
    save_checkpoint(tmp_path / "c.ckpt", random_variables(1, FILTERS, 1, MIXTURES))
    out = tmp_path / "model.safetensors"
    arguments = ["convert", "openai-tf", str(tmp_path / "c.ckpt"), str(out)]
    done = CliRunner().invoke(app, [*arguments, "--head", "logistic", "--image-size", "16", "12"])
    assert done.exit_code == 0, done.output
    assert "filters 6, resnets 1, 3 logistics, 1 x 16 x 12, logistic head" in done.output
    config, notes = read_metadata(out)
    assert config == PixelCNNConfig((16, 12), 1, FILTERS, 1, MIXTURES)
    assert notes["averaged"] is False
    small = out.stat().st_size
    assert isinstance(CliRunner().invoke(app, arguments).exception, FileExistsError)
    done = CliRunner().invoke(app, [*arguments, "--force", "--precision", "fp32", "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["network"]["filters"], facts["files"]) == (FILTERS, [str(out)])
    assert out.stat().st_size > small
    assert read_metadata(out)[0].head == "pixelcnn++"
    assert isinstance(CliRunner().invoke(app, [*arguments, "--precision", "fp8"]).exception, ValueError)


def test_a_failed_conversion_leaves_nothing(tensorflow, tmp_path):
    path, out = tmp_path / "c.ckpt", tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint: .*c\.ckpt"):
        convert_openai_tf(path, out)
    save_checkpoint(path, {**random_variables(1, FILTERS, 1, MIXTURES), "model/dense_14/V": np.zeros(3)})
    with pytest.raises(ValueError, match=r"c\.ckpt: .*superfluous: dense_14/V"):
        convert_openai_tf(path, out)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"c\.ckpt: truncated or no TensorFlow checkpoint"):
        convert_openai_tf(path, out)
    assert not out.exists()


def test_without_tensorflow_the_extra_is_named(monkeypatch, tmp_path, capsys):
    (tmp_path / "tensorflow.py").write_text("raise ModuleNotFoundError('tensorflow')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ImportError, match=r"tensorflow is not installed: pip install 'pxfast\[convert\]'"):
        convert_openai_tf(tmp_path / "c.ckpt", tmp_path / "model.safetensors")
    monkeypatch.setattr("sys.argv", ["pxfast", "convert", "openai-tf", str(tmp_path / "c.ckpt"), str(tmp_path / "m")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err == "error: tensorflow is not installed: pip install 'pxfast[convert]'\n"


SAVE = """
import sys
import numpy as np
import tensorflow as tf

arrays = dict(np.load(sys.argv[1]))
with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    for name, array in arrays.items():
        tf.compat.v1.get_variable(name, initializer=array)
    trainable = tf.compat.v1.trainable_variables()
    tf.train.ExponentialMovingAverage(0.9995).apply(trainable)  # the averages begin with the variables' values
    tf.compat.v1.get_variable("beta", initializer=0.5, trainable=False)
    zeroed = [variable.assign(tf.zeros_like(variable)) for variable in trainable]
    session.run(tf.compat.v1.global_variables_initializer())
    session.run(zeroed)
    for version in (1, 2):
        tf.compat.v1.train.Saver(write_version=version).save(session, f"{sys.argv[2]}/v{version}.ckpt")
"""


@pytest.mark.external
@torch.no_grad()
def test_what_tensorflow_itself_wrote(tmp_path):
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("tensorflow, of the extra 'convert', is not installed")
    variables = random_variables(3, FILTERS, 1, MIXTURES)
    save_checkpoint(tmp_path / "variables.npz", variables)
    run_python(SAVE, str(tmp_path / "variables.npz"), str(tmp_path))
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = pixelcnn_from_variables(variables)(images)
    for name, data in (("v1.ckpt", "v1.ckpt"), ("v2.ckpt", "v2.ckpt.data-00000-of-00001")):
        out = tmp_path / f"{name}.safetensors"
        model = convert_openai_tf(tmp_path / name, out)
        assert read_metadata(out)[1]["averaged"] is True
        torch.testing.assert_close(model(images), expected)
        (tmp_path / data).write_bytes((tmp_path / data).read_bytes()[:1000])
        with pytest.raises(ValueError, match="truncated or no TensorFlow checkpoint"):
            convert_openai_tf(tmp_path / name, tmp_path / "second.safetensors")
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        convert_openai_tf(tmp_path / "v3.ckpt", tmp_path / "second.safetensors")
