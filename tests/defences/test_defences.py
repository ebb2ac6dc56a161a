"""Input defences: feature squeezing against SciPy and literal loops, composition, gradients."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage
from support.engines import QUICK
from support.helpers import bundled_images, random_model
from torch import Tensor, nn

import pxfast
from pxfast.adp.score_network import ScoreNetwork, ScoreNetworkConfig
from pxfast.attacks import BIM, BPDA, FGSM, DeepFool
from pxfast.classifiers import load_classifier, predict
from pxfast.data.images import to_grid
from pxfast.defences import Defended, FeatureSqueezing
from pxfast.defences.feature_squeezing import median_2x2, reduce_colours

CHANNELS = [1, 3]


def floats(channels: int, count: int = 8) -> Tensor:
    """Real images in [0, 1], moved off the grid."""
    images = bundled_images(channels)[:count].float() / 255
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    return (images + noise / 50).clamp(0, 1)


@pytest.mark.parametrize("channels", CHANNELS)
def test_median_is_scipys(channels: int) -> None:
    x = floats(channels)
    expected = ndimage.median_filter(x.numpy(), size=(1, 1, 2, 2), mode="reflect")
    assert np.array_equal(median_2x2(x).numpy(), expected)


@pytest.mark.parametrize("channels", CHANNELS)
def test_median_mirrored_without_its_edge_is_scipys_mirror(channels: int) -> None:
    x = floats(channels)
    expected = ndimage.median_filter(x.numpy(), size=(1, 1, 2, 2), mode="mirror")
    assert np.array_equal(median_2x2(x, "reflect").numpy(), expected)
    assert not torch.equal(median_2x2(x, "reflect"), median_2x2(x))


@pytest.mark.parametrize("channels", CHANNELS)
def test_squeezing_is_rounding_then_scipys_median(channels: int) -> None:
    colours = {1: 8, 3: 32}[channels]  # PixelDefend, appendix B
    x = floats(channels)
    levels = np.rint(x.numpy() * np.float32(colours - 1)) / np.float32(colours - 1)
    expected = ndimage.median_filter(levels, size=(1, 1, 2, 2), mode="reflect")
    squeezed = FeatureSqueezing()(x)
    assert np.array_equal(squeezed.numpy(), expected)
    assert len(squeezed.unique()) <= colours
    assert squeezed.dtype == torch.float32
    torch.testing.assert_close(FeatureSqueezing()(x.double()), squeezed.double())


def test_colours_may_be_set() -> None:
    ramp = torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)
    assert reduce_colours(ramp, 2).unique().tolist() == [0.0, 1.0]
    assert len(reduce_colours(ramp, 5).unique()) == 5
    assert set(FeatureSqueezing(colours=2)(floats(1)).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("channels", CHANNELS)
def test_uint8_squeezes_as_floats_rounded_to_the_grid(channels: int) -> None:
    images = bundled_images(channels)[:8]
    squeezed = FeatureSqueezing()(images)
    assert squeezed.dtype == torch.uint8
    assert torch.equal(squeezed, to_grid(FeatureSqueezing()(images.float() / 255))[0])


def test_gradient_of_squeezing_goes_to_the_values_that_the_median_picked() -> None:
    """The colours' reduction is passed straight through; the median's own gradient counts how often a value is used."""
    x = torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.linspace(0.05, 0.95, 81).reshape(9, 9)[torch.randperm(9, generator=torch.Generator().manual_seed(1))]
    x = y[None, None].clone().requires_grad_()
    squeezed = FeatureSqueezing(colours=256)(x)  # so many that the values stay different from each other
    squeezed.sum().backward()
    levels = reduce_colours(x.detach(), 256)
    counted = (levels.flatten()[:, None] == squeezed.detach().flatten()[None, :]).sum(1).reshape(x.shape).float()
    torch.testing.assert_close(x.grad, counted)
    assert float(x.grad.sum()) == 81.0


def test_gradient_may_be_forbidden() -> None:
    x = floats(1).requires_grad_()
    result = FeatureSqueezing(backward="error")(x)
    with pytest.raises(RuntimeError, match="backward='straight-through'"):
        result.sum().backward()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"colours": 1}, "colours"),
        ({"colours": 2.5}, "colours"),
        ({"padding": "zero"}, "symmetric"),
        ({"backward": "x"}, "error"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        FeatureSqueezing(**settings)


@pytest.mark.parametrize("module", [FeatureSqueezing(), Defended(nn.Flatten())])
def test_bad_images(module: nn.Module) -> None:
    with pytest.raises(TypeError, match="int64"):
        module(torch.zeros(1, 1, 8, 8, dtype=torch.int64))
    with pytest.raises(TypeError, match="ndarray"):
        module(np.zeros((1, 1, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"\(1, 8, 8\)"):
        module(torch.zeros(1, 8, 8))


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    return load_classifier("fashion-mnist")


@pytest.fixture(scope="module")
def defended(classifier: nn.Module) -> Defended:
    return Defended(classifier, [FeatureSqueezing(), pxfast.Purifier(eps=16)])


def test_defences_are_applied_in_their_order(classifier: nn.Module, defended: Defended) -> None:
    x = floats(1, 4)
    squeezed = FeatureSqueezing()(x)
    purified = pxfast.purify(squeezed, eps=16)
    assert torch.equal(defended.defend(x), purified)
    assert torch.equal(defended(x), classifier(purified))
    other_way = Defended(classifier, [pxfast.Purifier(eps=16), FeatureSqueezing()])
    assert torch.equal(other_way.defend(x), FeatureSqueezing()(pxfast.purify(x, eps=16)))
    assert torch.equal(Defended(classifier)(x), classifier(x))


@pytest.mark.parametrize("adaptive", ["image", "sub-pixel"])
def test_adaptive_purification_composes(adaptive: str, classifier: nn.Module) -> None:
    images = bundled_images(1)[:4]
    module = Defended(classifier, [pxfast.Purifier(eps=16, adaptive=adaptive)])
    expected = classifier(pxfast.purify(images, eps=16, adaptive=adaptive))
    torch.testing.assert_close(module(images), expected)


def test_uint8_and_floats_give_the_same_logits(defended: Defended) -> None:
    images = bundled_images(1)[:4]
    assert torch.equal(defended(images), defended(images.float() / 255))
    assert torch.equal(predict(defended, images), defended(images).argmax(1))


def test_the_module_is_in_its_classifiers_mode(classifier: nn.Module, defended: Defended) -> None:
    assert not defended.training
    assert not any(module.training for module in (defended, defended.defences, *classifier.modules()))
    assert {id(parameter) for parameter in defended.parameters()} == {id(p) for p in classifier.parameters()}
    assert Defended(nn.Flatten().train()).training


def test_parts_must_be_modules(classifier: nn.Module) -> None:
    with pytest.raises(TypeError, match="purify"):
        Defended(classifier, [pxfast.purify])


def test_gradient_is_the_classifiers_at_the_purified_image(classifier: nn.Module) -> None:
    """That is BPDA: forwards through the defence, backwards as if it were not there."""
    defended, labels = Defended(classifier, [pxfast.Purifier(eps=16)]), torch.arange(4)
    x = floats(1, 4).requires_grad_()
    (through,) = torch.autograd.grad(nn.functional.cross_entropy(defended(x), labels), x)
    purified = pxfast.purify(x, eps=16).requires_grad_()
    (direct,) = torch.autograd.grad(nn.functional.cross_entropy(classifier(purified), labels), purified)
    assert torch.equal(through, direct)
    assert bool((through != 0).any())


@pytest.mark.parametrize(
    "defence",
    [
        pxfast.Purifier(8, model=random_model((8, 8)), engine=QUICK),
        FeatureSqueezing(),
        pxfast.ADPPurifier(0.1, steps=1, model=ScoreNetwork(ScoreNetworkConfig((8, 8), 1, ngf=2)).eval()),
    ],
    ids=lambda defence: type(defence).__name__,
)
def test_what_follows_a_defence_may_work_in_place(defence: nn.Module) -> None:
    assert not defence.training, "a defence does the same in training"
    x = torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(defence(x).mul_(2.0).sum(), x)
    (expected,) = torch.autograd.grad((defence(x) * 2.0).sum(), x)
    assert torch.equal(gradient, expected)


def test_purifier_passes_the_gradient_straight_through_or_refuses(tiny_model: pxfast.PixelCNN) -> None:
    x = torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(0)).requires_grad_()
    purifier = pxfast.Purifier(16, model=tiny_model, engine=QUICK, precision="fp32")
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((purifier(x) * weight).sum(), x)
    assert torch.equal(gradient, weight)
    assert torch.equal(purifier(x), pxfast.purify(x, 16, model=tiny_model, engine=QUICK, precision="fp32"))
    with torch.no_grad():
        assert not purifier(x).requires_grad
    assert not purifier(x.detach()).requires_grad
    assert purifier((x.detach() * 255).byte()).dtype == torch.uint8
    strict = pxfast.Purifier(16, model=tiny_model, engine=QUICK, precision="fp32", backward="error")
    assert torch.equal(strict(x), purifier(x))
    with pytest.raises(RuntimeError, match="backward='straight-through'"):
        strict(x).sum().backward()
    assert "backward='error'" in repr(strict)
    with pytest.raises(ValueError, match=r"straight-through, error.*'none'"):
        pxfast.Purifier(backward="none")


def test_pxfasts_own_attacks_go_through_a_defended_model(defended: Defended) -> None:
    images = bundled_images(1)[:4]
    attacked = FGSM()(defended, images, None, 8)
    assert int((attacked.int() - images.int()).abs().max()) == 8


class Brighter(nn.Module):
    """A purifier of a user's that works in place, or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place

    def forward(self, images: Tensor) -> Tensor:
        if not self.in_place:
            return (images + 0.1).clamp(0, 1)
        with torch.no_grad():
            images += 0.1
        return images.clamp(0, 1)


def test_a_purifier_that_works_in_place_changes_no_image_and_no_attack() -> None:
    images, classifier = bundled_images(1)[:16], load_classifier("fashion-mnist")
    labels = predict(classifier, images)
    x = images.float() / 255
    defended = {place: Defended(classifier, [Brighter(place).eval()]) for place in (False, True)}
    logits = {place: module(x) for place, module in defended.items()}
    assert torch.equal(x, images.float() / 255)
    assert torch.equal(logits[True], logits[False])
    for attack in (FGSM(), BIM(steps=3), DeepFool(steps=3)):
        found = [attack(module, images, labels, 16) for module in defended.values()]
        assert torch.equal(*found), attack.name


class Gives(nn.Module):
    """A defence that breaks the contract: it gives what a function makes of the images."""

    def __init__(self, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.change = change

    def forward(self, images: Tensor) -> object:
        return self.change(images)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x: (x, x), TypeError, r"expected floating images \(2, 1, 28, 28\) from the defence Gives, got tuple"),
        (lambda x: (255 * x).byte(), TypeError, "from the defence Gives, got torch.uint8"),
        (lambda x: x[:1], ValueError, r"from the defence Gives, got \(1, 1, 28, 28\)"),
    ],
)
def test_a_defence_that_gives_no_images_is_named(change, error, message) -> None:
    defended = Defended(load_classifier("fashion-mnist"), [Gives(change).eval()])
    with pytest.raises(error, match=message):
        defended(bundled_images(1)[:2])
    with pytest.raises(error, match=message):
        BPDA(steps=1)(defended, bundled_images(1)[:2], None, 8)


def test_a_classifier_that_gives_no_logits_is_named_with_several_views() -> None:
    class Tuple(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return images.flatten(1), images

    with pytest.raises(TypeError, match=r"expected logits \(N, classes\) from the classifier, .* got tuple"):
        Defended(Tuple().eval(), [FeatureSqueezing()], views="flip")(bundled_images(1)[:2])
