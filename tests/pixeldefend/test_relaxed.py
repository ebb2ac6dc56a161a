"""The differentiable relaxation of PixelDefend: its limit is Algorithm 1, and its gradient is its slope."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from support.helpers import noisy, real_images, trained_model
from torch import Tensor, nn

import pxfast
from pxfast.attacks import FullGradient, UnrolledBIM, bim_steps
from pxfast.defences import Defended
from pxfast.pixeldefend.relaxed import RelaxedPurifier

HEADS = {1: "logistic", 3: "pixelcnn++"}


def pictures(channels: int, count: int = 3) -> Tensor:
    return noisy(real_images(channels, (4, 4), count), 12)


@functools.cache
def sharp(channels: int) -> pxfast.PixelCNN:
    """A model of 4x4 images, trained on 8x8 ones: the argmax of a random one would depend on rounding."""
    trained = trained_model((8, 8), channels, 8, 1, HEADS[channels])
    model = pxfast.PixelCNN(dataclasses.replace(trained.config, image_size=(4, 4)))
    model.load_state_dict(trained.state_dict())
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("channels", [1, 3])
def test_cold_relaxation_is_algorithm_1(channels: int) -> None:
    images, eps, model = pictures(channels, 8), 9, sharp(channels)
    with torch.no_grad():
        found = 255 * RelaxedPurifier(eps, model, temperature=1e-7)(images.float() / 255)
    # by regret, not beside Algorithm 1's own images: a near tie parts the ways of all that come after it
    verdict = pxfast.verify(images, found.round().to(torch.uint8), eps, model=model)
    assert verdict.bounded
    assert verdict.max_regret < 1e-3, str(verdict)
    assert ((found - found.round()).abs() < 0.01).double().mean() > 0.95
    assert (found.round() != images).double().mean() > 0.5


def test_no_temperature_is_too_low() -> None:
    """The quotients of fp32 would be infinite for one of 1e-40."""
    images = (pictures(1, 2).float() / 255).requires_grad_()
    found = RelaxedPurifier(9, sharp(1), temperature=1e-40)(images)
    assert torch.equal(found, RelaxedPurifier(9, sharp(1), temperature=1e-12)(images))
    (gradient,) = torch.autograd.grad(found.sum(), images)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("channels", [1, 3])
def test_first_sub_pixel_is_the_mean_under_its_distribution(channels: int) -> None:
    """Nothing comes before it, so that it can be had from the 256 probabilities."""
    images, eps, temperature = pictures(channels), 20, 2.0
    images[0, 0, 0, 0], images[1, 0, 0, 0] = 5, 250  # ranges that end at 0 and at 255
    model = sharp(channels)
    with torch.no_grad():
        found = 255 * RelaxedPurifier(eps, model, temperature=temperature)(images.float() / 255)
        log_probs = model.log_probs(images)[:, 0, 0, 0] / temperature
    for image, row in enumerate(log_probs):
        value = int(images[image, 0, 0, 0])
        values = torch.arange(max(0, value - eps), min(255, value + eps) + 1)
        mean = (row[values].softmax(0) * values).sum()
        torch.testing.assert_close(found[image, 0, 0, 0], mean, rtol=1e-4, atol=1e-3)
    assert float((found - images).abs().max()) <= eps


@pytest.mark.parametrize("channels", [1, pytest.param(3, marks=pytest.mark.whole)])
def test_gradient_is_the_slope(channels: int) -> None:
    """Central differences along the gradient and across it, through all of the sequence."""
    relaxed = RelaxedPurifier(30, sharp(channels), temperature=0.1)
    x = (pictures(channels, 1).float().clamp(40, 215) / 255).requires_grad_()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((relaxed(x) * weight).sum(), x)
    own = gradient - weight  # what the decode adds to the identity's
    assert float(own.norm()) > 0.1 * float(weight.norm())
    small = 0.3 / 255
    for way in (own / own.abs().max(), own.sign(), weight):
        ends = [x.detach() + side * small * way for side in (1, -1)]
        with torch.no_grad():
            upper, lower = (((relaxed(end) - end) * weight).double().sum() for end in ends)
        torch.testing.assert_close((upper - lower) / (2 * small), (own * way).double().sum(), rtol=1e-3, atol=1e-3)


def test_images_do_not_depend_on_each_other_and_settings_show() -> None:
    x, model = pictures(1).float() / 255, sharp(1)
    relaxed = RelaxedPurifier(4, model)
    with torch.no_grad():
        together = relaxed(x)
        torch.testing.assert_close(relaxed(x[1:2])[0], together[1], rtol=0, atol=1e-5)
        assert torch.equal(RelaxedPurifier.of(pxfast.Purifier(4, model=model), (1, 4, 4))(x), together)
        assert torch.equal(relaxed.differentiate(x, [1, 2, 3]), together)
        assert relaxed(x.double()).dtype == torch.float64
        torch.testing.assert_close(RelaxedPurifier(0, model)(x), x)
    assert repr(relaxed) == "RelaxedPurifier(eps=4, temperature=1.0)"


def test_bad_settings(make_model, tiny_model: pxfast.PixelCNN) -> None:
    for temperature in (0, -1.0, float("nan"), float("inf"), True, "hot"):
        with pytest.raises((TypeError, ValueError), match=r"temperature must be a number in \(0, inf\)"):
            RelaxedPurifier(4, tiny_model, temperature=temperature)
    with pytest.raises(ValueError, match="256"):
        RelaxedPurifier(256, tiny_model)
    with pytest.raises(ValueError, match="gradient in the values, got 'softmax'"):
        RelaxedPurifier(4, make_model(head="softmax"))(torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        RelaxedPurifier(4, tiny_model)(torch.rand(1, 1, 8, 8) + 1)


@pytest.mark.whole  # the gradient that it follows is tested below
def test_unrolled_bim_is_bim_through_the_relaxation() -> None:
    model = sharp(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval().requires_grad_(False)
    images, labels, eps = pictures(1), torch.tensor([0, 1, 2]), 2
    defended = Defended(classifier, [pxfast.Purifier(6, model=model)])
    result = UnrolledBIM(temperature=0.5).run(defended, images, labels, eps)
    assert torch.equal(result.queries, 2 * result.gradients)  # a step asks the purifier as it is, too
    wrong = defended(images).argmax(1) != labels
    assert torch.equal(result.images[wrong], images[wrong])
    assert torch.equal(result.gradients == 1, wrong)
    assert (result.gradients[~wrong] == bim_steps(eps)).all()
    assert int((result.images.int() - images.int()).abs().max()) == eps == bim_steps(eps)
    assert torch.equal(result.rounded, defended(result.images).argmax(1) != labels)
    soft = Defended(classifier, [RelaxedPurifier(6, model, temperature=0.5)])
    by_steps = FullGradient(steps=2, step=1).run(soft, images, labels, eps)
    lasting = ~wrong & (by_steps.queries == 2)
    assert bool(lasting.any())
    assert torch.equal(result.images[lasting], by_steps.images[lasting])
