"""``purify``, ``verify`` and ``sample`` within ranges of one's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.helpers import cells, noisy, real_images
from torch import Tensor

import pxfast
from pxfast.engines.choosers import Ranges

SHIPPED = "fashion-mnist"


@pytest.fixture(scope="module")
def images() -> Tensor:
    return noisy(real_images(1, (28, 28), 3))


@pytest.fixture(scope="module")
def within(images: Tensor) -> Ranges:
    return cells(images, 64)


def test_purified_within_cells_and_verified(images, within):
    upper = within[1]
    for precision in ("fp32", "bf16"):
        purified = pxfast.purify(images, within=within, precision=precision)
        found = pxfast.verify(images, purified, within=within, precision=precision)
        assert found.passed, str(found)
        assert found.bounded
        assert found.eps is None
        assert "within the ranges" in str(found)
    assert not pxfast.verify(images, images, within=within).passed
    outside = purified.clone()
    place = tuple((upper < 255).nonzero()[0].tolist())
    outside[place] = upper[place] + 1
    found = pxfast.verify(images, outside, within=within)
    assert not found.bounded
    assert "NOT within the ranges" in str(found)


def test_images_of_equal_cells_become_the_same(images, within):
    lower, upper = within
    expected = pxfast.purify(images, within=within)
    assert not torch.equal(expected, images)
    for other in (lower, upper):
        assert torch.equal(pxfast.purify(other, within=within), expected)


def test_eps_is_a_pair_of_ranges(images):
    lower, upper = (images.int() - 16).clamp(min=0).byte(), (images.int() + 16).clamp(max=255).byte()
    assert torch.equal(pxfast.purify(images, within=(lower, upper)), pxfast.purify(images))
    settings = {"adaptive": "sub-pixel", "threshold": 2.0}
    assert torch.equal(pxfast.purify(images, within=(lower, upper), **settings), pxfast.purify(images, **settings))


def test_arrays_single_images_and_ranges_that_broadcast(images, within):
    expected = pxfast.purify(images, within=within)
    arrays = tuple(bound.numpy() for bound in within)
    found = pxfast.purify(images.numpy(), within=arrays)
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, expected.numpy())
    first = within[0][0], within[1][0]
    assert torch.equal(pxfast.purify(images[0], within=first), expected[0])
    assert torch.equal(pxfast.purify(images[:1].float() / 255, within=first), expected[:1].float() / 255)
    whole = torch.zeros((), dtype=torch.uint8), np.full((1, 1, 1), 255, np.uint8)
    assert torch.equal(pxfast.purify(images, within=whole), pxfast.purify(images, 255))
    halves = (images & 128), (images & 128) + 127
    by_row = torch.cat((halves[0][:, :, :1], halves[0][:, :, 1:] * 0), 2), torch.full_like(images, 255)
    assert pxfast.verify(images, pxfast.purify(images, within=by_row, precision="fp32"), within=by_row).passed


def test_a_sub_pixel_of_one_value_stays_and_no_images_are_no_images(images):
    assert torch.equal(pxfast.purify(images, within=(images, images)), images)
    none = images[:0]
    assert pxfast.purify(none, within=(none, none)).shape == (0, 1, 28, 28)
    assert pxfast.verify(none, none, within=(none, none)).passed


@pytest.mark.parametrize("adaptive", ["image", pytest.param("sub-pixel", marks=pytest.mark.whole)])
def test_the_adaptive_rules_hold_within_ranges(images, within, adaptive):
    plain = pxfast.purify(images, within=within, precision="fp32")
    bits = pxfast.bits_per_dim(images)
    threshold = float(bits.median()) if adaptive == "image" else 6.0
    settings = {"adaptive": adaptive, "threshold": threshold, "precision": "fp32"}
    found = pxfast.purify(images, within=within, **settings)
    assert pxfast.verify(images, found, within=within, **settings).passed
    assert not pxfast.verify(images, plain, within=within, **settings).passed
    if adaptive == "image":
        assert torch.equal(found[bits < threshold], images[bits < threshold])
        assert torch.equal(found[bits >= threshold], plain[bits >= threshold])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda low, high: low, TypeError, r"within must be None or a pair \(lower, upper\)"),
        (lambda low, high: (low,), ValueError, "within must be .* got 1 of them"),
        (lambda low, high: (low, 255), TypeError, "within must be .* got 255 in it"),
        (lambda low, high: (low, high.float()), TypeError, "within must be .* got one of torch.float32"),
        (lambda low, high: (low, high.numpy().astype("int64")), TypeError, "within must be .* got one of int64"),
        (
            lambda low, high: (low[:2], high),
            ValueError,
            r"within: lower must broadcast to the images' shape \(3, 1, 28, 28\), got \(2, 1, 28, 28\)",
        ),
        (lambda low, high: (low, high[None, None]), ValueError, "within: upper must broadcast"),
        (
            lambda low, high: (high, low),
            ValueError,
            r"within: at \(0, 0, 0, 0\) \d+ is the least value and \d+ the greatest",
        ),
        (
            lambda low, high: (low * 0 + 254, high * 0 + 255),
            ValueError,
            r"within: at \(0, 0, 0, 0\) \d+ is what the image has, and 254 the least value",
        ),
        (
            lambda low, high: (low * 0, low * 0),
            ValueError,
            r"within: at \(0, 0, .*\) \d+ is what the image has, and 0 the greatest value",
        ),
    ],
)
def test_ranges_that_are_none(images, within, change, error, message):
    wrong = change(*within)
    with pytest.raises(error, match=message):
        pxfast.purify(images, within=wrong)
    with pytest.raises(error, match=message):
        pxfast.verify(images, images, within=wrong)
    if "what the image has" not in message:
        with pytest.raises(error, match=message):
            pxfast.sample(3, model=SHIPPED, within=wrong)


def test_eps_beside_ranges_is_refused(images, within):
    for call in (pxfast.purify, lambda *given, **more: pxfast.verify(images, *given, **more)):
        with pytest.raises(ValueError, match="eps=8 means nothing beside within"):
            call(images, 8, within=within)


def test_samples_within_ranges(within):
    drawn = pxfast.sample(3, model=SHIPPED, seed=5, within=within)
    assert ((within[0] <= drawn) & (drawn <= within[1])).all()
    assert torch.equal(
        pxfast.sample(1, model=SHIPPED, seed=5, first=1, within=(within[0][1], within[1][1]))[0], drawn[1]
    )
    assert not torch.equal(pxfast.sample(3, model=SHIPPED, seed=6, within=within), drawn)
    whole = torch.zeros((), dtype=torch.uint8), torch.full((), 255, dtype=torch.uint8)
    assert torch.equal(pxfast.sample(2, model=SHIPPED, within=whole), pxfast.sample(2, model=SHIPPED))
