"""Ranges of one's own for every sub-pixel, on every engine: exact, bounded, and dependent on nothing else."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.engines import INSTRUCTION_SETS, engines_with
from support.helpers import (
    assert_as_exact,
    assert_chosen,
    assert_within,
    cells,
    noisy,
    real_images,
    trained_model,
    wide_component_model,
)
from torch import Tensor

from pxfast.base.checks import PRECISIONS
from pxfast.engines.choosers import Chooser, Greedy, Ranges, Sample
from pxfast.engines.registry import select
from pxfast.engines.schedule import schedule_for
from pxfast.engines.settings import DEFAULTS, DecodeSettings
from pxfast.pixelcnn.network import PixelCNN

SHAPES = [("logistic", 1), ("logistic", 3), ("softmax", 3), ("pixelcnn++", 3)]
WIDTHS = (1, 2, 32, 33, 64, 132, 256)


REFERENCE = [("pixelcnn++", 3)]  # those of the inner loop that the reference engine takes
PAIRS = engines_with(SHAPES, whole=lambda engine, shape: engine == "reference" and shape not in REFERENCE)


@pytest.fixture
def model(engine: str, shape: tuple[str, int]) -> PixelCNN:
    head, channels = shape
    return trained_model((4, 4) if engine == "reference" else (8, 8), channels, 8, 1, head)


def decode(
    engine: str,
    model: PixelCNN,
    images: Tensor,
    chooser: Chooser,
    precision: str = "fp32",
    settings: DecodeSettings = DEFAULTS,
) -> Tensor:
    return select(engine).decode(schedule_for(model), images, chooser, precision=precision, settings=settings)


def images_of(model: PixelCNN, count: int) -> Tensor:
    return noisy(real_images(model.config.channels, model.config.image_size, count))


def mixed_cells(images: Tensor) -> Ranges:
    """Cells of another width for each image."""
    parts = [cells(image[None], WIDTHS[n % len(WIDTHS)], n) for n, image in enumerate(images)]
    return torch.cat([lower for lower, _ in parts]), torch.cat([upper for _, upper in parts])


def middle(ranges: Ranges) -> Tensor:
    return (ranges[0].int() + ranges[1].int()).div(2, rounding_mode="floor").byte()


@pytest.mark.parametrize(("engine", "shape"), PAIRS)
def test_the_likeliest_value_of_ranges_of_every_width(engine, model):
    images = images_of(model, 7 if engine != "reference" else 4)
    chooser = Greedy(within=mixed_cells(images))
    result = decode(engine, model, images, chooser)
    assert_chosen(model, images, result, chooser)
    assert torch.equal(result[0], images[0]), "a cell of one value"
    assert not torch.equal(result[3], images[3])


@pytest.mark.parametrize(("engine", "shape"), PAIRS)
def test_as_exact_in_bf16(engine, model):
    images = images_of(model, 1)
    chooser = Greedy(within=cells(images, 64))
    expected = decode("reference", model, images, chooser, "bf16")
    assert_as_exact(model, images, decode(engine, model, images, chooser, "bf16"), expected, chooser, "bf16")


@pytest.mark.parametrize(("engine", "shape"), PAIRS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_eps_is_the_special_case_bit_for_bit(engine, model, precision):
    images = images_of(model, 1 if engine == "reference" else 3)
    for eps in (16,) if engine == "reference" else (0, 1, 16, 255):
        lower, upper = (images.int() - eps).clamp(min=0).byte(), (images.int() + eps).clamp(max=255).byte()
        by_ranges = decode(engine, model, images, Greedy(within=(lower, upper)), precision)
        assert torch.equal(by_ranges, decode(engine, model, images, Greedy(eps), precision))
        keeping = Greedy(within=(lower, upper), keep_bits=5.0)
        assert torch.equal(
            decode(engine, model, images, keeping, precision),
            decode(engine, model, images, Greedy(eps, keep_bits=5.0), precision),
        )


@pytest.mark.parametrize(("engine", "shape"), PAIRS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_ranges_alone_decide_in_any_batch(engine, model, precision):
    """An image tells nothing but its cells: whatever lies in them becomes the same, in any company."""
    few = engine == "reference"
    images = images_of(model, 2 if few else 4)
    within = cells(images, 64) if few else mixed_cells(images)
    result = decode(engine, model, images, Greedy(within=within), precision)
    for other in within[:1] if few else (*within, middle(within)):
        assert torch.equal(decode(engine, model, other, Greedy(within=within), precision), result)
    for n in (1,) if few else (1, 3):
        own = within[0][n : n + 1].contiguous(), within[1][n : n + 1].contiguous()
        assert torch.equal(decode(engine, model, images[n : n + 1], Greedy(within=own), precision)[0], result[n])


@pytest.mark.engine("cpu")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_no_instruction_set_order_or_team_changes_a_bit(isa, precision):
    """Speculation starts from the image that was given, which the result must not show."""
    for head, channels in SHAPES[1:]:
        model = trained_model((8, 8), channels, 8, 1, head)
        images = images_of(model, 4)
        within = mixed_cells(images)
        for chooser in (Greedy(within=within), Sample(3, within=within)):
            plain = DecodeSettings(isa=isa, order="sequential", threads=1)
            expected = decode("cpu", model, images, chooser, precision, plain)
            assert_within(within, expected)
            for threads in (1, 3):
                for start in (images, within[0]):
                    way = dataclasses.replace(plain, order="speculative", threads=threads)
                    assert torch.equal(decode("cpu", model, start, chooser, precision, way), expected), way


@pytest.mark.parametrize(("engine", "shape"), PAIRS)
def test_draws_keep_to_the_ranges_and_follow_their_random_numbers(engine, model):
    images = images_of(model, 1 if engine == "reference" else 5)
    for temperature in (1.0, 0.7):
        chooser = Sample(2**40, temperature, 3, within=cells(images, 100))
        result = decode(engine, model, images, chooser)
        assert_chosen(model, images, result, chooser)
    whole = torch.zeros_like(images), torch.full_like(images, 255)
    free = decode(engine, model, images, Sample(7, within=whole))
    assert torch.equal(free, decode(engine, model, images, Sample(7)))


@pytest.mark.parametrize("head", ["logistic", "pixelcnn++"])
def test_a_range_far_from_all_mass_gets_its_likeliest_value(engine, head):
    model = wide_component_model(3, head)  # the more likely the larger, and fp32 holds none of it
    images = real_images(3, (4, 4), 2).clamp(4, 100)
    within = images - 3, images + 3
    for temperature in (1.0, 0.5):
        chooser = Sample(1, temperature, within=within)
        assert torch.equal(decode(engine, model, images, chooser), within[1])


@pytest.mark.parametrize(("engine", "shape"), PAIRS)
def test_likely_values_are_kept_in_ranges(engine, model):
    images = images_of(model, 1 if engine == "reference" else 4)
    chooser = Greedy(within=cells(images, 64), keep_bits=9.0)
    result = decode(engine, model, images, chooser)
    assert_chosen(model, images, result, chooser)
    assert not torch.equal(result, decode(engine, model, images, Greedy(within=chooser.within)))
