"""Results and kept networks are the same under every mode of torch that a caller may be in."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from support.helpers import noisy, random_model, real_images, run_python
from torch import Tensor

import pxfast
from pxfast import PixelCNN
from pxfast.adp.files import SHIPPED as SCORE_NETWORKS
from pxfast.adp.purifier import ADPPurifier
from pxfast.adp.score_network import ScoreNetwork, ScoreNetworkConfig
from pxfast.adp.training import ScoreSettings, train_score_network
from pxfast.classifiers import load_classifier
from pxfast.classifiers.weights import SHIPPED as CLASSIFIERS
from pxfast.pixelcnn.files import save
from pxfast.pixelcnn.network import PixelCNNConfig
from pxfast.pixelcnn.shipped import SHIPPED as MODELS
from pxfast.pixelcnn.training import TrainingSettings, record_bits_per_dim, train
from pxfast.pixeldefend.relaxed import RelaxedPurifier
from pxfast.tensors.ambient import plain_torch


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "another device by default": lambda: torch.device("meta"),
}
modes = pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=[pytest.mark.whole] * (mode == "bfloat16 by default")) for mode in MODES]
)

IMAGES = noisy(real_images(1, (4, 4), 2))
FLOATS = IMAGES / 255
TRAIN = real_images(1, (4, 4), 9)
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def model() -> PixelCNN:
    return random_model((4, 4))


@pytest.fixture(scope="module")
def score_network() -> ScoreNetwork:
    return ScoreNetwork(ScoreNetworkConfig((4, 4), 1, 8)).eval()


def results(model: PixelCNN, score_network: ScoreNetwork) -> dict[str, Tensor]:
    """What pxfast computes of the same images, with networks of which nothing is kept yet."""
    model, score_network = copy.deepcopy(model), copy.deepcopy(score_network)
    adp = ADPPurifier(0.1, steps=2, model=score_network)
    return {
        "purify": pxfast.purify(IMAGES, 16, model=model, precision="fp32"),
        "purify floats": pxfast.Purifier(16, model=model, precision="bf16")(FLOATS),
        "adaptive": pxfast.purify(IMAGES, 16, model=model, precision="fp32", adaptive="image", threshold=6.0),
        "reference": pxfast.purify(IMAGES[:1], 16, model=copy.deepcopy(model), engine="reference"),
        "verify": pxfast.verify(IMAGES, IMAGES, 16, model=model).regret,
        "verify in bf16": pxfast.verify(IMAGES, IMAGES, 16, model=model, precision="bf16").regret,
        "log_prob": pxfast.log_prob(IMAGES, model=model),
        "bits_per_dim": pxfast.bits_per_dim(IMAGES, model=model),
        "surprise": pxfast.surprise(IMAGES, model=model),
        "sample": pxfast.sample(2, model=model, precision="fp32"),
        "p_value": pxfast.Detector(model).fit(TRAIN).p_value(IMAGES),
        "relaxed": RelaxedPurifier(2, copy.deepcopy(model))(FLOATS[:1]).detach(),
        "ADP": adp(FLOATS).detach(),
        "ADP of the grid": adp(IMAGES),
        "ADP in float64": adp(FLOATS.double()).detach(),
    }


@pytest.fixture(scope="module")
def expected(model: PixelCNN, score_network: ScoreNetwork) -> dict[str, Tensor]:
    return results(model, score_network)


@modes
def test_results_are_the_same_to_the_bit(
    mode: str, model: PixelCNN, score_network: ScoreNetwork, expected: dict[str, Tensor]
) -> None:
    with MODES[mode]():
        found = results(model, score_network)
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert tensor.device.type == "cpu", name
        assert torch.equal(tensor, expected[name]), name


@modes
def test_networks_that_are_first_asked_for_there_serve_everywhere(mode: str, tmp_path: Path) -> None:
    save(random_model(), tmp_path / "model.safetensors")
    shipped = (MODELS, SCORE_NETWORKS, CLASSIFIERS)
    for kind in shipped:
        kind._kept.cache_clear()
    try:
        with MODES[mode]():
            loaded = [pxfast.load(tmp_path / "model.safetensors"), load_classifier("fashion-mnist")]
            kept = [kind.resolve("fashion-mnist") for kind in shipped]
        for network in (*loaded, *kept):
            assert network is not None
            for name, value in network.state_dict().items():
                assert value.device.type == "cpu", name
                assert not value.is_inference(), name
                assert value.dtype in (torch.float32, torch.int64), name
        image = torch.zeros(1, 1, 28, 28)
        classifier = loaded[1]
        (gradient,) = torch.autograd.grad(classifier(image.requires_grad_()).sum(), image)
        assert gradient.isfinite().all()
        assert torch.equal(classifier(image), load_classifier("fashion-mnist")(image))
    finally:
        for kind in shipped:
            kind._kept.cache_clear()


def trained(folder: Path) -> dict[str, Tensor]:
    """The weights of short trainings."""
    folder.mkdir()
    options = {"epochs": 2, "batch_size": 4, "precision": "fp32"}
    model = train(
        PixelCNNConfig((4, 4), 1, 4, 1), TRAIN, folder / "a.safetensors", settings=TrainingSettings(**options), **QUIET
    )
    network = train_score_network(
        ScoreNetworkConfig((4, 4), 1, 4), TRAIN, folder / "b.safetensors", settings=ScoreSettings(**options), **QUIET
    )
    bits = record_bits_per_dim(folder / "a.safetensors", TRAIN)
    return {**model.state_dict(), **network.state_dict(), "bits": torch.tensor(bits, dtype=torch.float64, device="cpu")}


@modes
def test_trainings_are_the_same_to_the_bit(mode: str, tmp_path: Path) -> None:
    expected = trained(tmp_path / "plain")
    with MODES[mode]():
        found = trained(tmp_path / "mode")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


@modes
def test_the_callers_mode_is_his_again(mode: str) -> None:
    def state() -> tuple[object, ...]:
        return (
            torch.is_autocast_enabled("cpu"),
            torch.is_inference_mode_enabled(),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.empty(0).device,
        )

    with MODES[mode]():
        before = state()
        with plain_torch():
            assert state() == (False, False, mode != "no gradients", torch.float32, torch.device("cpu"))
        with pytest.raises(RuntimeError, match="of a test"), plain_torch():
            raise RuntimeError("of a test")
        assert state() == before


@pytest.mark.process
def test_first_use_in_inference_mode_leaves_nothing_behind() -> None:
    code = """
import torch, pxfast
x = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
with torch.inference_mode():
    first = pxfast.purify(x)
with torch.device("meta"):
    second = pxfast.purify(x)
print(torch.equal(first, pxfast.purify(x)), torch.equal(second, first))
"""
    assert run_python(code).split() == ["True", "True"]
