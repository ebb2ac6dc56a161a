"""Estimates from cells by least squares, and PixelDefend near them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support.engines import QUICK
from support.helpers import noisy, real_images, trained_model
from support.own_classifiers import BentLinear

import pxfast
from pxfast.certification import Estimate, cells, certify, estimates, guesses, shifts
from pxfast.pixeldefend.cells import midpoints


def cells_of(images: torch.Tensor, width: int, dither: str = "lattice", seed: int = 0) -> tuple:
    """The cells of images at the offset of their number: uint8 (N, C, H, W) twice."""
    offsets = torch.arange(len(images)).reshape(-1, 1, 1, 1) * 7
    return cells(images, width, offsets + shifts(tuple(images.shape[1:]), width, dither, seed))


@pytest.mark.parametrize(("channels", "size"), [(1, (28, 28)), (3, (32, 32))])
def test_it_knows_more_of_other_images_than_the_middle_of_their_cells(channels, size):
    images = real_images(channels, size, 24)
    fitted, other = images[:20], images[20:]
    for width in (64, 300):
        estimate = Estimate.fit(fitted, width=width)
        lower, upper = cells_of(other, width)
        found = estimate(lower, upper)
        assert found.dtype == torch.uint8
        error = (found.float() - other.float()).square().mean().sqrt()
        middle = (255 * midpoints(lower, upper) - other.float()).square().mean().sqrt()
        assert error < 0.75 * middle
        assert error < 1.6 * estimate.error, "the error that it says is not of the images of the fit alone"
        assert estimate.errors[1] < estimate.errors[0], "the second stage adds to the first"


def test_both_stages_are_ridge_regression_on_windows():
    """By loops over every sub-pixel and NumPy; outside of the image everything is 0, the plane of ones as well."""
    images, width = real_images(3, (5, 6), 9), 40
    estimate = Estimate.fit(images, width=width)
    starts = torch.tensor([number * width // 9 for number in range(9)]).reshape(-1, 1, 1, 1)
    lower, upper = cells(images, width, starts + shifts((3, 5, 6), width))
    values, ones = images.double(), torch.ones(9, 1, 5, 6)
    wanted = np.stack([image[:, row, column] for image in values.numpy() for row in range(5) for column in range(6)])
    seen: list[torch.Tensor] = [lower.double(), upper.double()]
    for stage in range(2):
        scaled = torch.cat([*(each / 255 - 0.5 for each in seen), ones], 1)
        planes = np.pad(scaled.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)))
        windows = np.stack(
            [
                image[:, row : row + 7, column : column + 7].ravel()
                for image in planes
                for row in range(5)
                for column in range(6)
            ]
        )
        ridge = estimates.RIDGE * len(windows) * np.eye(windows.shape[1])
        solved = np.linalg.solve(windows.T @ windows + ridge, windows.T @ (wanted / 255 - 0.5))
        found = torch.from_numpy((windows @ solved * 255 + 127.5).reshape(9, 5, 6, 3).transpose(0, 3, 1, 2).copy())
        error = float((found - values).square().mean().sqrt())
        assert estimate.errors[stage] == pytest.approx(error, rel=1e-4)
        seen = [*seen[:2], found, estimates._mean_within(found, error, *seen[:2])]
    assert (estimate.values(lower, upper) - found).abs().max() < 0.05
    rounded = torch.minimum(torch.maximum(estimate.values(lower, upper).round(), lower), upper)
    assert torch.equal(estimate(lower, upper), rounded.byte())
    assert estimate.settings["error"] == round(estimate.error, 3)


@given(
    mean=st.floats(-40, 300),
    deviation=st.floats(0.5, 60),
    lower=st.integers(0, 255),
    width=st.integers(1, 255),
)
@example(mean=20.0, deviation=30.0, lower=0, width=60)
@example(mean=240.0, deviation=30.0, lower=200, width=100)
@example(mean=100.0, deviation=30.0, lower=90, width=20)
def test_the_mean_within_a_cell_is_that_of_the_distribution(mean, deviation, lower, width):
    """By the trapezoidal rule, where the cell is not so far off that nothing is left of it."""
    upper = min(255, lower + width - 1)
    ends = torch.tensor([[float(lower)], [float(upper)]], dtype=torch.float64)
    found = float(estimates._mean_within(torch.tensor([mean], dtype=torch.float64), deviation, ends[0], ends[1]))
    assert lower <= found <= upper
    first = mean - 12 * deviation if lower == 0 else max(lower - 0.5, mean - 12 * deviation)
    last = mean + 12 * deviation if upper == 255 else min(upper + 0.5, mean + 12 * deviation)
    away = max(lower - 0.5 - mean if lower else -math.inf, mean - upper - 0.5 if upper < 255 else -math.inf)
    if away > 4 * deviation:
        return
    points = np.linspace(first, last, 200_001)
    density = np.exp(-(((points - mean) / deviation) ** 2) / 2)
    expected = np.trapezoid(points * density, points) / np.trapezoid(density, points)
    assert found == pytest.approx(min(max(expected, lower), upper), abs=1e-2 * deviation)


@given(data=st.data())
def test_what_is_near_is_within_the_cell_and_has_the_estimate(data):
    width = data.draw(st.integers(1, 600))
    channels = data.draw(st.sampled_from([1, 3]))
    shape = (channels, data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    images = torch.randint(0, 256, (data.draw(st.integers(1, 5)), *shape), generator=generator, dtype=torch.uint8)
    estimate = Estimate.fit(images, width=width)
    lower, upper = cells_of(images, width)
    found, (first, last) = estimate(lower, upper), estimate.near(lower, upper)
    assert estimate.reach == max(1, round(1.5 * estimate.error))
    assert bool(((lower <= first) & (first <= found) & (found <= last) & (last <= upper)).all())
    assert bool((first.int() == (found.int() - estimate.reach).clamp(min=lower.int())).all())
    assert bool((last.int() == (found.int() + estimate.reach).clamp(max=upper.int())).all())


def test_an_estimate_has_the_same_bits_whatever_stands_beside_the_image():
    images = real_images(3, (32, 32), 19)
    estimate = Estimate.fit(images, width=50)
    lower, upper = cells_of(images, 50)
    whole = estimate.values(lower, upper)
    for alone in (0, 7, 18):
        assert torch.equal(estimate.values(lower[alone][None], upper[alone][None])[0], whole[alone])


def test_a_fit_depends_on_its_images_and_cells_alone():
    images = real_images(1, (8, 8), 30)
    estimate = Estimate.fit(images, width=20)
    torch.manual_seed(3)
    with torch.autocast("cpu"), torch.inference_mode():
        again = Estimate.fit(images.float() / 255, width=20)
    for first, second in zip(estimate.coefficients, again.coefficients, strict=True):
        assert torch.equal(first, second)
    assert estimate.settings == again.settings
    changed = images.clone()
    changed[-1, 0, 0, 0] ^= 1
    assert estimate.settings["estimate"] != Estimate.fit(changed, width=20).settings["estimate"]
    others = ({"width": 21}, {"dither": "random"}, {"dither": "random", "seed": 1})
    seen = [Estimate.fit(images, **{"width": 20, **change}).coefficients[0] for change in others]
    seen += [estimate.coefficients[0], Estimate.fit(images[1:], width=20).coefficients[0]]
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_of_many_images_some_are_taken_from_all_over(monkeypatch):
    """A folder's images stand class by class."""
    monkeypatch.setattr(estimates, "IMAGES", 4)
    images = real_images(1, (8, 8), 10)
    assert Estimate.fit(images, width=9).settings == Estimate.fit(images[[0, 2, 5, 7]], width=9).settings


def test_certificates_are_of_guesses_near_the_estimate():
    model, images, width = trained_model((8, 8), 1, 8, 1), noisy(real_images(1, (8, 8), 3)), 60
    decode = {"model": model, "engine": QUICK, "precision": "fp32"}
    estimate = Estimate.fit(real_images(1, (8, 8), 50), width=width, dither="random", seed=4)
    options = {"width": width, "dither": "random", "seed": 4}
    starts = torch.arange(width).reshape(-1, 1, 1, 1) + shifts((1, 8, 8), width, "random", 4)
    classifier = BentLinear(64, scale=30.0)
    found = {
        "pixeldefend": certify(classifier, images, [0] * 3, near=estimate, **options, **decode),
        "sample": certify(classifier, images, [0] * 3, purifier="sample", near=estimate, **options, **decode),
        "estimate": certify(classifier, images, [0] * 3, purifier=estimate, **options),
    }
    for number, image in enumerate(images):
        lower, upper = cells(image, width, starts)
        near = estimate.near(lower, upper)
        made = {
            "pixeldefend": pxfast.purify(near[0], within=near, **decode),
            "sample": pxfast.sample(width, within=near, seed=4, **decode),
            "estimate": estimate(lower, upper),
        }
        for name, guess in made.items():
            votes = classifier(guess / 255).argmax(1).bincount(minlength=3)
            assert torch.equal(votes, found[name].counts[number]), name
    said = {name: result.settings for name, result in found.items()}
    assert said["pixeldefend"].items() >= {"near": estimate.reach, **estimate.settings}.items()
    assert said["estimate"].items() >= {"purifier": "estimate", **estimate.settings}.items()
    assert "near" not in said["estimate"]


def test_kept_guesses_are_those_near_the_same_estimate(tmp_path, monkeypatch):
    images, width = real_images(1, (4, 4), 2), 6
    near = Estimate.fit(real_images(1, (4, 4), 30), width=width)
    options = {"width": width, "model": trained_model((4, 4), 1, 8, 1), "engine": QUICK, "precision": "fp32"}
    options["keep"] = tmp_path / "kept"
    found = certify(BentLinear(16), images, [0, 1], near=near, **options)

    def never(*given: object, **options: object) -> torch.Tensor:
        raise AssertionError("purified again")

    monkeypatch.setattr(guesses, "purify", never)
    assert torch.equal(certify(BentLinear(16), images, [0, 1], near=near, **options).counts, found.counts)
    for other in (None, Estimate.fit(real_images(1, (4, 4), 29), width=width)):
        with pytest.raises(AssertionError, match="again"):
            certify(BentLinear(16), images, [0, 1], near=other, **options)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"near": "estimate"}, TypeError, "near must be of Estimate"),
        ({"near": "fit", "purifier": "midpoints"}, ValueError, "near means nothing to purifier='midpoints'"),
        ({"near": "fit", "width": 7}, ValueError, r"expected near to be an estimate of .* width 7, .* got .* width 6"),
        ({"near": "fit", "dither": "random"}, ValueError, "dither 'random', seed 0, got one of .* dither 'lattice'"),
        ({"purifier": "fit", "width": 7}, ValueError, "expected the purifier to be an estimate of"),
        ({"near": "fit", "images": real_images(1, (5, 4), 1)}, ValueError, r"images \(1, 5, 4\) .* got one of images"),
    ],
)
def test_an_estimate_of_other_cells_is_refused(change, error, message):
    fitted = Estimate.fit(real_images(1, (4, 4), 30), width=6)
    given = {"images": real_images(1, (4, 4), 1), "labels": [0], "width": 6, **change}
    given |= {name: fitted for name in ("near", "purifier") if change.get(name) == "fit"}
    with pytest.raises(error, match=message):
        certify(BentLinear(given["images"][0].numel()), **given)


def test_seeds_matter_to_random_cells_alone():
    images, classifier = real_images(1, (4, 4), 1), BentLinear(16)
    lattice = Estimate.fit(images, width=6, seed=1)
    assert len(certify(classifier, images, [0], width=6, purifier=lattice, seed=2).radii) == 1
    drawn = Estimate.fit(images, width=6, dither="random", seed=1)
    with pytest.raises(ValueError, match=r"seed 2, got one of .* seed 1"):
        certify(classifier, images, [0], width=6, purifier=drawn, dither="random", seed=2)


@pytest.mark.parametrize(
    "ends",
    [
        torch.zeros(1, 1, 4, 5, dtype=torch.uint8),
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        torch.zeros(1, 4, 4, dtype=torch.uint8),
        torch.zeros(1, 1, 4, 4),
    ],
)
def test_ends_of_other_cells_are_named(ends):
    estimate = Estimate.fit(real_images(1, (4, 4), 9), width=6)
    nothing = torch.zeros(0, 1, 4, 4, dtype=torch.uint8)
    assert estimate(nothing, nothing).shape == (0, 1, 4, 4)
    right = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    for lower, upper in ((ends, right), (right, ends)):
        with pytest.raises(ValueError, match=r"uint8 ends of cells \(M, C, H, W\) = \(M, 1, 4, 4\), got "):
            estimate(lower, upper)


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (torch.zeros(0, 1, 4, 4), {}, ValueError, "fitted to at least one image, got none"),
        (torch.full((1, 1, 4, 4), math.nan), {}, ValueError, "NaN"),
        ("images", {}, TypeError, "torch tensor or NumPy array"),
        (torch.zeros(1, 1, 4, 4), {"width": 0}, ValueError, r"width must be an integer in 1\.\.1024, got 0"),
        (torch.zeros(1, 1, 4, 4), {"dither": "blue"}, ValueError, "dither must be one of"),
        (torch.zeros(1, 1, 4, 4), {"seed": -1}, ValueError, "seed"),
    ],
)
def test_fits_of_nothing_are_refused(images, options, error, message):
    with pytest.raises(error, match=message):
        Estimate.fit(images, **options)
