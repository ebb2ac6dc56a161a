"""Adaptive purification: what is likely already is spared, per image or per sub-pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.helpers import noisy, real_images

import pxfast
from pxfast.pixelcnn.likelihood import bits_per_dim_alone
from pxfast.pixeldefend.rules import IMAGE_THRESHOLD, SUB_PIXEL_THRESHOLD

SHIPPED = "fashion-mnist"


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Half clean, half noisy: some below the paper's 1.8 bits/dim, most above."""
    clean = real_images(1, (28, 28), 2)
    return torch.cat((clean, noisy(clean, 16)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_images_below_the_threshold_stay_and_the_others_are_purified_as_without(images, precision):
    bits = pxfast.bits_per_dim(images, model=SHIPPED)
    threshold = float(bits.median())
    plain = pxfast.purify(images, 16, model=SHIPPED, precision=precision)
    adaptive = pxfast.purify(images, 16, model=SHIPPED, precision=precision, adaptive="image", threshold=threshold)
    spared = bits < threshold
    assert 0 < int(spared.sum()) < len(images)
    assert torch.equal(adaptive[spared], images[spared])
    assert torch.equal(adaptive[~spared], plain[~spared])
    assert not torch.equal(plain[spared], images[spared])


def test_the_papers_threshold_is_the_default(images):
    explicit = pxfast.purify(images, 16, adaptive="image", threshold=1.8)
    assert IMAGE_THRESHOLD == {1: 1.8, 3: 3.2}
    assert torch.equal(pxfast.purify(images, 16, adaptive="image"), explicit)
    assert SUB_PIXEL_THRESHOLD == 3.0
    explicit = pxfast.purify(images, 16, adaptive="sub-pixel", threshold=3.0)
    assert torch.equal(pxfast.purify(images, 16, adaptive="sub-pixel"), explicit)


@pytest.mark.parametrize(("adaptive", "most"), [("image", 1000.0), ("sub-pixel", 99.0)])
def test_thresholds_at_their_ends(images, adaptive, most):
    """Nothing costs less than nothing, and everything in these images less than the most bits."""
    plain = pxfast.purify(images, 16)
    assert torch.equal(pxfast.purify(images, 16, adaptive=adaptive, threshold=most), images)
    assert torch.equal(pxfast.purify(images, 16, adaptive=adaptive, threshold=0.0), plain)


@pytest.mark.parametrize(
    ("precision", "adaptive"),
    [
        ("fp32", "image"),
        ("bf16", "sub-pixel"),
        pytest.param("fp32", "sub-pixel", marks=pytest.mark.whole),
        pytest.param("bf16", "image", marks=pytest.mark.whole),
    ],
)
def test_verify_knows_the_rule(images, adaptive, precision):
    settings = {"adaptive": adaptive, "threshold": 3.0, "precision": precision}
    images = images[1:3]  # one clean, one noisy
    result = pxfast.purify(images, 16, **settings)
    assert pxfast.verify(images, result, 16, **settings).passed
    if precision == "fp32":  # the mean regret that bf16 may have is more than sparing makes here
        assert not pxfast.verify(images, pxfast.purify(images, 16, precision=precision), 16, **settings).passed
        assert not pxfast.verify(images, result, 16, precision=precision).passed


def test_sparing_sub_pixels_changes_fewer_of_them(images):
    moved = [
        int((pxfast.purify(images, 16, adaptive="sub-pixel", threshold=bits) != images).sum()) for bits in (0, 3, 6, 9)
    ]
    assert moved == sorted(set(moved), reverse=True)
    assert 0 < moved[3] < 0.5 * moved[0]


def test_an_image_does_not_depend_on_its_batch(images):
    for settings in ({"adaptive": "image", "threshold": 3.0}, {"adaptive": "sub-pixel"}):
        whole = pxfast.purify(images, 16, **settings)
        assert torch.equal(pxfast.purify(images[2], 16, **settings), whole[2])
        assert torch.equal(pxfast.purify(images[1:3], 16, **settings), whole[1:3])


def test_module_and_command_line_take_the_rule(images, tmp_path, run_here):
    expected = pxfast.purify(images, 16, adaptive="sub-pixel", threshold=4.5)
    purifier = pxfast.Purifier(16, adaptive="sub-pixel", threshold=4.5)
    assert torch.equal(purifier(images), expected)
    assert "adaptive='sub-pixel', threshold=4.5" in repr(purifier)
    np.save(tmp_path / "in.npy", images.numpy())
    run_here("purify", tmp_path / "in.npy", tmp_path / "out.npy", "--adaptive", "sub-pixel", "--threshold", "4.5")
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected.numpy())


def test_progress_counts_spared_images_too(images):
    seen: list[int] = []
    pxfast.purify(images, 16, adaptive="image", threshold=3.0, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == len(images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adaptive": "pixel"}, "adaptive must be None, 'image' or 'sub-pixel', got 'pixel'"),
        ({"adaptive": "image", "threshold": -1.0}, r"threshold must be a number in \[0, inf\), got -1.0"),
        ({"adaptive": "image", "threshold": float("nan")}, r"threshold must be a number in \[0, inf\)"),
        ({"adaptive": "image", "threshold": "low"}, r"threshold must be a number in \[0, inf\)"),
        ({"threshold": 3.0}, "means nothing without adaptive"),
    ],
)
def test_bad_rules_are_refused(images, settings, message):
    for call in (pxfast.purify, lambda images, eps, **settings: pxfast.Purifier(eps, **settings)):
        with pytest.raises((TypeError, ValueError), match=message):
            call(images, 16, **settings)
    with pytest.raises((TypeError, ValueError), match=message):
        pxfast.verify(images, images, 16, **settings)


def test_whether_an_image_is_suspicious_depends_on_no_other(make_model) -> None:
    """Not even in the last digit of its bits/dim, by which a threshold may lie."""
    images = torch.randint(0, 256, (11, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    model = make_model(channels=3, filters=16)
    together = bits_per_dim_alone(images, model)
    assert torch.equal(torch.cat([bits_per_dim_alone(image[None], model) for image in images]), together)
    torch.testing.assert_close(together, pxfast.bits_per_dim(images, model=model))
    for i, threshold in enumerate(together[:4].tolist()):
        settings = {"eps": 2, "adaptive": "image", "threshold": threshold, "model": model}
        purified = pxfast.purify(images[i : i + 1], **settings)
        assert torch.equal(purified, pxfast.purify(images, **settings)[i : i + 1])
        assert pxfast.verify(images[: i + 2], pxfast.purify(images[: i + 2], **settings), **settings).bounded
