"""The public face of purification: types, shapes, bounds, settings and refusals, whichever engine works behind it."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.engines import QUICK

import pxfast
from pxfast.pixelcnn.files import save
from pxfast.pixelcnn.shipped import SHIPPED


def random_images(*shape, seed=1):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def purify(images, eps=16, **keywords):
    return pxfast.purify(images, eps, **{"engine": QUICK, "precision": "fp32", **keywords})


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.one_of(st.none(), st.integers(0, 3)),
    eps=st.sampled_from([0, 1, 16, 255]),
    kind=st.sampled_from(["uint8", "float16", "float32", "float64"]),
    numpy=st.booleans(),
)
def test_result_comes_back_as_the_input_came(tiny_model, batch, eps, kind, numpy):
    grid = random_images(*(() if batch is None else (batch,)), 1, 8, 8)
    images = grid if kind == "uint8" else (grid.double() / 255).to(getattr(torch, kind))
    if numpy:
        images = images.numpy()
    before = copy.deepcopy(images)
    result = purify(images, eps, model=tiny_model)
    assert type(result) is type(images)
    assert result.shape == images.shape
    assert result.dtype == images.dtype
    assert (images == before).all(), "the input was changed"
    if batch != 0:
        assert pxfast.verify(images, result, eps, model=tiny_model).passed
    if eps == 0:
        assert (result == images).all()


def test_colour(tiny_colour_model):
    images = random_images(2, 3, 8, 8)
    result = purify(images, 32, model=tiny_colour_model)
    assert not torch.equal(result, images)
    assert pxfast.verify(images, result, 32, model=tiny_colour_model).passed


def test_purifying_makes_images_likelier(tiny_model):
    images = random_images(2, 1, 8, 8)
    before = pxfast.bits_per_dim(images, model=tiny_model)
    after = pxfast.bits_per_dim(purify(images, 32, model=tiny_model), model=tiny_model)
    assert (after < before).all()


def test_module_is_the_function(tiny_model):
    images = random_images(2, 1, 8, 8).float() / 255
    purifier = pxfast.Purifier(8, model=tiny_model, engine=QUICK, precision="fp32")
    assert torch.equal(purifier(images), purify(images, 8, model=tiny_model))
    assert torch.equal(copy.deepcopy(purifier)(images), purifier(images))


def test_module_leaves_its_model_alone_and_tells_its_settings(tiny_model):
    network = torch.nn.Sequential(
        pxfast.Purifier(8, model=tiny_model, engine=QUICK, precision="fp32"), torch.nn.Flatten()
    )
    network.half().train()
    assert not list(network.parameters())
    assert not tiny_model.training
    assert {parameter.dtype for parameter in tiny_model.parameters()} == {torch.float32}
    for said in ("eps=8", repr(QUICK), "image_size=(8, 8)", "filters=8"):
        assert said in repr(network)


def test_no_gradient(tiny_model):
    images = (random_images(1, 1, 8, 8).float() / 255).requires_grad_()
    assert not purify(images, 4, model=tiny_model).requires_grad


def test_changed_weights_are_noticed(tiny_model):
    model = copy.deepcopy(tiny_model)
    images = random_images(2, 1, 8, 8)
    before = purify(images, 64, model=model)
    with torch.no_grad():
        model.output.b.add_(torch.linspace(-2, 2, len(model.output.b)))
    assert not torch.equal(purify(images, 64, model=model), before)


def test_model_by_path(tiny_model, tmp_path):
    save(tiny_model, tmp_path / "tiny.safetensors", dtype=torch.float32)
    images = random_images(1, 1, 8, 8)
    result = purify(images, model=tmp_path / "tiny.safetensors")
    assert pxfast.verify(images, result, model=str(tmp_path / "tiny.safetensors")).passed


def test_progress_bar_counts_images(tiny_model, capsys):
    purify(random_images(3, 1, 8, 8), model=tiny_model, progress=True)
    assert "3/3" in capsys.readouterr().err
    purify(random_images(3, 1, 8, 8), model=tiny_model)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("eps", [True, 16.0, "16", np.bool_(True), 4 / 255])
def test_eps_must_be_an_integer(tiny_model, eps):
    with pytest.raises(TypeError, match=r"eps must be an integer in 0\.\.255"):
        purify(random_images(1, 1, 8, 8), eps, model=tiny_model)


@pytest.mark.parametrize("eps", [-1, 256, np.int64(1000)])
def test_eps_must_be_on_the_grid(tiny_model, eps):
    with pytest.raises(ValueError, match=rf"eps must be an integer in 0\.\.255.*{eps}"):
        purify(random_images(1, 1, 8, 8), eps, model=tiny_model)


def test_numpy_integers_are_integers(tiny_model):
    images = random_images(1, 1, 8, 8)
    assert torch.equal(purify(images, np.uint8(9), model=tiny_model), purify(images, 9, model=tiny_model))


def test_refusals_name_what_is_known(tiny_model):
    images = random_images(1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"unknown engine 'gpu'; known: auto, .*reference"):
        pxfast.purify(images, model=tiny_model, engine="gpu")
    with pytest.raises(ValueError, match=r"unknown engine 'gpu'"):
        pxfast.Purifier(model=tiny_model, engine="gpu")
    with pytest.raises(ValueError, match=r"precision must be one of auto, fp32, bf16, got 'int8'"):
        purify(images, model=tiny_model, precision="int8")
    with pytest.raises(ValueError, match=r"unknown model 'imagenet'; shipped: .*fashion-mnist"):
        purify(images, model="imagenet")
    with pytest.raises(TypeError, match=r"model must be a PixelCNN.*got int"):
        purify(images, model=3)
    with pytest.raises(ValueError, match=r"no shipped model takes images of shape \(1, 8, 8\).*pass model="):
        purify(images)
    with pytest.raises(ValueError, match=r"the model takes images of shape \(C, H, W\) = \(1, 8, 8\), got \(3, 8, 8\)"):
        purify(random_images(2, 3, 8, 8), model=tiny_model)
    turned = r"\(28, 28, 1\), which seems to be \(H, W, C\): \(C, H, W\) is expected"
    with pytest.raises(ValueError, match=turned):
        purify(random_images(2, 28, 28, 1))
    with pytest.raises(ValueError, match=turned.replace("28", "8")):
        purify(random_images(2, 8, 8, 1), model=tiny_model)
    with pytest.raises(TypeError, match="got list"):
        purify([images], model=tiny_model)


@pytest.mark.parametrize(("name", "shape"), [("fashion-mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))])
def test_shipped_model_is_picked_by_shape(name, shape):
    assert name in SHIPPED
    if not SHIPPED[name].is_file():
        pytest.skip("the package was built without its model")
    image = torch.zeros(1, *shape, dtype=torch.uint8)
    picked = pxfast.bits_per_dim(image)
    assert torch.equal(picked, pxfast.bits_per_dim(image, model=name))
    assert torch.equal(picked, pxfast.bits_per_dim(image, model=pxfast.load(name)))


@pytest.mark.process
def test_import_is_light():
    heavy = "matplotlib", "torchvision", "typer", "scipy", "PIL"
    code = f"import sys, pxfast; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="a process's threads are counted in /proc")
@pytest.mark.skipif(QUICK != "cpu", reason="the CPU engine is not here")
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_one_image_wakes_none_of_torchs_threads(kind: str) -> None:
    """They keep a core busy for milliseconds after each operation, which is where the engine's own would run."""
    code = f"""
import os, torch, pxfast
torch.set_num_threads(1)  # they come with the first operation that is shared
model = pxfast.load("cifar10")
image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
image = image if "{kind}" == "uint8" else image / 255
pxfast.purify(image, model=model, threads=2)
torch.set_num_threads(2)
before = len(os.listdir("/proc/self/task"))
pxfast.purify(image, model=model, threads=2)
print(before, len(os.listdir("/proc/self/task")))
torch.ones(1_000_000).add_(1)
print(len(os.listdir("/proc/self/task")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after, then = map(int, done.stdout.split())
    assert after == before
    assert then == before + 1, "torch has no such threads here"
