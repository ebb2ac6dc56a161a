"""The L-BFGS-B baseline: bounded, better than its input, worse than greedy decoding."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from support.helpers import bundled_images, noisy, real_images, trained_model

import pxfast
from pxfast.pixeldefend.lbfgs import lbfgs_purify, relaxed_bits_per_dim


@pytest.fixture(scope="module")
def model():
    return trained_model((8, 8), 3, 8, 1)


@pytest.fixture(scope="module")
def attacked():
    """Noisy crops that reach 0 and 255, where the ball is cut off."""
    images = noisy(real_images(3, (8, 8), 3), 12)
    images[0, :, :2] = 0
    images[1, :, :2] = 255
    return images


@pytest.mark.parametrize(("channels", "head"), [(1, "logistic"), (3, "logistic"), (3, "pixelcnn++")])
def test_the_objective_is_bits_per_dim_and_its_gradient_is_right(channels, head):
    model = trained_model((8, 8), channels, 8, 1, head)
    image = real_images(channels, (8, 8), 1)[0].numpy()
    values = image.astype(np.float64).ravel()
    bits, gradient = relaxed_bits_per_dim(values, model, image.shape)
    assert bits == pytest.approx(float(pxfast.bits_per_dim(image, model=model)), rel=1e-6)
    inner = np.clip(values, 5, 250) + 0.37  # away from the integers 0, 1, 254 and 255, where the slope has a step
    bits, gradient = relaxed_bits_per_dim(inner, model, image.shape)
    assert gradient.shape == values.shape
    direction = np.random.default_rng(0).standard_normal(values.shape)
    h = 0.02
    ahead, behind = (relaxed_bits_per_dim(inner + s * h * direction, model, image.shape)[0] for s in (1, -1))
    assert (ahead - behind) / (2 * h) == pytest.approx(float(gradient @ direction), rel=0.03)


@pytest.mark.parametrize("eps", [0, 3, pytest.param(16, marks=pytest.mark.whole)])
def test_never_leaves_the_ball(model, attacked, eps):
    found = lbfgs_purify(attacked, eps, model=model, starts=2, max_iterations=5)
    assert found.images.dtype == torch.uint8
    assert (found.images.int() - attacked.int()).abs().max() <= eps
    assert found.bits_per_dim.shape == found.relaxed_bits_per_dim.shape == (3, 2)
    best = pxfast.bits_per_dim(found.images, model=model)
    torch.testing.assert_close(best, found.bits_per_dim.amin(dim=1), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.input_bits_per_dim, pxfast.bits_per_dim(attacked, model=model))
    if eps == 0:
        assert torch.equal(found.images, attacked)
        torch.testing.assert_close(found.relaxed_bits_per_dim[:, 0], found.input_bits_per_dim, rtol=1e-5, atol=0)


def test_form_seed_and_batch(model, attacked):
    settings = {"model": model, "max_iterations": 2}
    expected = lbfgs_purify(attacked, 8, **settings).images
    assert torch.equal(lbfgs_purify(attacked, 8, **settings).images, expected)
    assert not torch.equal(lbfgs_purify(attacked, 8, seed=1, **settings).images, expected)
    single = lbfgs_purify(attacked[0].numpy() / 255, 8, **settings).images
    assert single.dtype == np.float64
    np.testing.assert_array_equal(single, expected[0].numpy() / 255)
    assert torch.equal(lbfgs_purify(attacked.flip(0), 8, **settings).images.flip(0), expected)
    assert lbfgs_purify(attacked[:0], 8, **settings).images.shape == (0, 3, 8, 8)


def test_refusals(model, attacked, make_model, monkeypatch):
    with pytest.raises(ValueError, match="starts must be an integer of at least 1, got 0"):
        lbfgs_purify(attacked, 8, model=model, starts=0)
    with pytest.raises(ValueError, match="max_iterations must be an integer of at least 1, got 0"):
        lbfgs_purify(attacked, 8, model=model, max_iterations=0)
    with pytest.raises(ValueError, match="eps must be an integer"):
        lbfgs_purify(attacked, 256, model=model)
    with pytest.raises(ValueError, match="has a gradient in the values, got 'softmax'"):
        lbfgs_purify(attacked, 8, model=make_model(channels=3, head="softmax"))
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"scipy.optimize is not installed: pip install 'pxfast\[evaluate\]'"):
        lbfgs_purify(attacked, 8, model=model)


@pytest.mark.whole  # of a small model: the other tests
def test_greedy_decoding_beats_it_on_fashion_mnist():
    """The middle of a noisy image, the shipped model: L-BFGS-B improves on it, greedy decoding by much more.

    From the best of three starts: how far one gets depends on the machine's rounding, and some end early.
    """
    shipped = pxfast.load("fashion-mnist")
    model = pxfast.PixelCNN(dataclasses.replace(shipped.config, image_size=(12, 12))).eval()
    model.load_state_dict(shipped.state_dict())  # no weight depends on the size of an image
    attacked = noisy(bundled_images(1)[:1, :, 8:20, 8:20], 16)
    found = lbfgs_purify(attacked, 16, model=model, starts=3, max_iterations=12)
    greedy = pxfast.bits_per_dim(pxfast.purify(attacked, 16, model=model), model=model)
    assert (found.relaxed_bits_per_dim.amin(1) < found.input_bits_per_dim).all()
    assert (found.bits_per_dim.amin(1) < found.input_bits_per_dim).all()
    assert (greedy < found.bits_per_dim.amin(1) - 1.0).all()
