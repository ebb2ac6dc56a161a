"""Defended classifiers in other floating types: the classifier computes in them, the purifier as before."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from support.engines import QUICK
from support.helpers import real_images
from torch import Tensor, nn

import pxfast
from pxfast.attacks import BPDA, FGSM
from pxfast.classifiers import load_classifier
from pxfast.defences import Defended, FeatureSqueezing

TYPES = [torch.float64, torch.float16, torch.bfloat16]
X = real_images(1, (8, 8), 3) / 255


class Recorder(nn.Module):
    """A plain network, which takes images of its own type alone, and keeps those that it got."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach())
        return self.layers(images)


@pytest.fixture
def defended(tiny_model: pxfast.PixelCNN) -> Defended:
    return Defended(Recorder(), [pxfast.Purifier(16, model=tiny_model, engine=QUICK, precision="fp32")]).eval()


@pytest.mark.parametrize("given", [torch.float32, torch.uint8, *TYPES], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, *TYPES], ids=str)
def test_any_type_of_images_goes_through_a_classifier_of_any_type(
    defended: Defended, dtype: torch.dtype, given: torch.dtype
) -> None:
    images = (255 * X).to(torch.uint8) if given == torch.uint8 else X.to(given)
    before = defended.defences(images)
    assert defended.to(dtype) is defended
    assert torch.equal(defended.defences(images), before)  # the purifier is on its own grid
    images.requires_grad_(images.is_floating_point())
    logits = defended(images)
    assert logits.dtype == dtype
    (seen,) = defended.classifier.seen
    assert seen.dtype == dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = before.to(wide) / 255 if given == torch.uint8 else before.detach()
    assert torch.equal(seen, expected.to(dtype))
    if images.requires_grad:
        (gradient,) = torch.autograd.grad(logits.sum(), images)
        assert gradient.dtype == given
        at = before.detach().to(dtype).requires_grad_()
        (straight,) = torch.autograd.grad(defended.classifier(at).sum(), at)
        assert torch.equal(gradient, straight.to(given))
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("method", ["double", "half", "bfloat16"])
@pytest.mark.parametrize("name", ["fashion-mnist", pytest.param("cifar10", marks=pytest.mark.whole)])
def test_the_packages_classifiers_compute_in_the_type(name: str, method: str) -> None:
    classifier = load_classifier(name)
    channels, H, W = classifier.config.channels, *classifier.config.image_size
    images = real_images(channels, (H, W), 2)
    plain = Defended(classifier, [FeatureSqueezing()])
    other = getattr(Defended(copy.deepcopy(classifier), [FeatureSqueezing()]), method)()
    logits = other(images)
    assert logits.dtype == (torch.float64 if method == "double" else torch.float32)
    tolerance = {"double": 1e-3, "half": 0.1, "bfloat16": 1.0}[method]
    torch.testing.assert_close(logits.float(), plain(images), rtol=0, atol=tolerance)
    assert not torch.equal(logits.float(), plain(images))


def test_copies_pickles_and_states_of_another_type_are_alike(defended: Defended) -> None:
    defended.double()
    expected = defended(X)
    defended.classifier.seen.clear()
    for other in (copy.deepcopy(defended), pickle.loads(pickle.dumps(defended)), copy.copy(defended)):
        assert torch.equal(other(X), expected)
        assert other.defences[0].handle is not None
    state = defended.state_dict()
    assert set(state) == {f"classifier.{name}" for name in defended.classifier.state_dict()}
    single = copy.deepcopy(defended).float()
    single.load_state_dict(state)
    torch.testing.assert_close(single(X).double(), expected)
    assert defended.to("cpu")(X).dtype == torch.float64


def test_a_network_of_several_types_gets_the_images_as_they_are(defended: Defended) -> None:
    defended.classifier.other = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    assert defended(X).dtype == torch.float32
    assert Defended(nn.Flatten())(X.double()).dtype == torch.float64


@pytest.mark.parametrize("attack", [FGSM(), BPDA(steps=1)], ids=lambda attack: attack.name)
def test_attacks_go_through_classifiers_of_another_type(attack: pxfast.attacks.Attack, defended: Defended) -> None:
    images = (255 * X).to(torch.uint8)
    labels = defended(images).argmax(1)
    moved = attack(defended.double(), images, labels, eps=8)
    assert moved.dtype == torch.uint8
    assert (moved != images).any()
    if isinstance(attack, FGSM):
        assert (attack(defended.classifier, images, labels, eps=8) != images).any()  # without a purifier, too
