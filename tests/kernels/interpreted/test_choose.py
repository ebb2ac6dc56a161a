"""The fused choice against its twin: a head's own 256 probabilities. Where it runs: tests/support/triton_device.py."""

import dataclasses
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.helpers import assert_sampled, assert_within, cells, wide_component_parameters
from support.triton_device import DEVICE, few_examples, on_device
from torch import Tensor

from pxfast.engines.choosers import Greedy, Sample, out_of, uniforms
from pxfast.pixelcnn.heads import HEADS, SoftmaxHead, make_head
from pxfast.pixeldefend.verify import regret_of

pytestmark = on_device

H, W, ROW, COLUMN = 4, 8, 2, 3


def random_pixel(head_name: str, channels: int, mixtures: int, seed: int, sharpness: float = 1.0):
    """A head, its parameters (16, P) for 16 images, and the input's pixel (16, channels)."""
    generator = torch.Generator().manual_seed(seed)
    head = make_head(head_name, channels, mixtures).requires_grad_(False)
    if isinstance(head, SoftmaxHead):
        head.tables.copy_(torch.randn(head.tables.shape, generator=generator))
    parameters = torch.randn(16, head.features, generator=generator) * sharpness
    return head, parameters, torch.randint(0, 256, (16, channels), dtype=torch.uint8, generator=generator)


def run(head, chooser, parameters: Tensor, given_pixel: Tensor, block: int = 8) -> Tensor:
    """The kernel's choice (16, C) uint8; the cache of pixels and the rest of the result are checked on the way."""
    from pxfast.kernels.choose import choose, values_for

    N, C = given_pixel.shape
    images = torch.zeros(N, C, H, W, dtype=torch.uint8)
    images[:, :, ROW, COLUMN] = given_pixel
    result = torch.full_like(images, 7).to(DEVICE)
    even = C + 1 + (C + 1) % 2
    caches = torch.full((N * even * (W + 3),), -1.0).to(DEVICE)
    sample = isinstance(chooser, Sample)
    keep = None if sample else chooser.keep_bits
    ranges = chooser.ranges(images)
    choose(
        parameters.to(DEVICE),
        images.to(DEVICE),
        result,
        caches,
        torch.tensor([ROW, N * even // 16, 0, 0], dtype=torch.int32).to(DEVICE),
        head.tables.to(DEVICE) if isinstance(head, SoftmaxHead) else torch.zeros(1).to(DEVICE),
        *(bound.to(DEVICE) for bound in ranges),
        torch.tensor([2.0 if keep is None else 2.0**-keep, 1.0 / chooser.temperature if sample else 1.0]).to(DEVICE),
        torch.tensor([chooser.seed, chooser.first] if sample else [0, 0]).to(DEVICE),
        column=COLUMN,
        head=head.name,
        mixtures=getattr(head, "mixtures", 1),
        sample=sample,
        values=256 if sample else values_for(int((ranges[1] - ranges[0]).max()) + 1),
        block=block,
    ).run()
    result, cells = result.cpu(), caches.cpu().view(W + 3, N, even)
    chosen = result[:, :, ROW, COLUMN].clone()
    seen = cells[1 + COLUMN]
    assert torch.equal(seen[:, :C], 2.0 * chosen.float() - 255.0), "the network's view of the pixel"
    assert (seen[:, C] == 255.0).all()
    seen[:, : C + 1] = -1.0
    assert (cells == -1.0).all()
    result[:, :, ROW, COLUMN] = 7
    assert (result == 7).all()
    return chosen


def twin(head, chooser, parameters: Tensor, given_pixel: Tensor) -> Tensor:
    from pxfast.kernels.choose import choose_twin

    ranges = ranges_at(chooser, given_pixel)
    return choose_twin(head, chooser, parameters, given_pixel, ranges, (ROW * W + COLUMN) * given_pixel.shape[1])


def ranges_at(chooser, given_pixel: Tensor) -> tuple[Tensor, Tensor]:
    """The chooser's ranges, (N, C) uint8 both."""
    if chooser.within is not None:
        chooser = dataclasses.replace(chooser, within=tuple(bound[:, :, ROW, COLUMN] for bound in chooser.within))
    lower, upper = chooser.ranges(given_pixel[:, :, None, None] if chooser.within is None else given_pixel)
    return lower.reshape(given_pixel.shape), upper.reshape(given_pixel.shape)


def around(pixel: Tensor, ranges: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Ranges of whole images (N, C, H, W) that are these at the pixel (N, C), and 0 elsewhere."""
    found = []
    for bound in ranges:
        found.append(torch.zeros(*pixel.shape, H, W, dtype=torch.uint8))
        found[-1][:, :, ROW, COLUMN] = bound
    return found[0], found[1]


def log_probs_of(head, parameters: Tensor, chosen: Tensor) -> Tensor:
    """(N, C, 256) in nats, given the chosen earlier channels (N, C)."""
    return head.log_probs(parameters[:, :, None, None], chosen[:, :, None, None])[:, :, 0, 0]


def verdict(head, chooser: Greedy, parameters: Tensor, given_pixel: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Per sub-pixel (N, C), given the chosen earlier channels: regret in nats, and bits of the input's value."""
    log_probs = log_probs_of(head, parameters, chosen)
    ranges = ranges_at(chooser, given_pixel)
    assert_within(ranges, chosen)
    best = log_probs.masked_fill(out_of(ranges), -torch.inf).amax(-1)
    bits = -log_probs.gather(-1, given_pixel[..., None].long())[..., 0] / math.log(2.0)
    return best - log_probs.gather(-1, chosen[..., None].long())[..., 0], bits


@pytest.mark.parametrize("name", HEADS)
@few_examples(4)
@given(
    channels=st.sampled_from([1, 3]),
    mixtures=st.integers(1, 10),
    seed=st.integers(0, 1000),
    sharpness=st.sampled_from([0.3, 1.0, 3.0]),
    widest=st.sampled_from([0, 5, 31, 255]),
    keep_bits=st.sampled_from([None, 3.0]),
)
def test_greedy_takes_the_best_value_in_range(name, channels, mixtures, seed, sharpness, widest, keep_bits):
    head, parameters, pixel = random_pixel(name, channels, mixtures, seed, sharpness)
    chooser = Greedy(torch.linspace(0, widest, 16).byte(), keep_bits)
    chosen = run(head, chooser, parameters, pixel)
    found, bits = verdict(head, chooser, parameters, pixel, chosen)
    kept = torch.zeros_like(found, dtype=torch.bool) if keep_bits is None else bits <= keep_bits
    assert (found[~kept] < 1e-4).all()
    certain = kept & (bits < (keep_bits or 0.0) - 1e-4)
    assert torch.equal(chosen[certain], pixel[certain])


@pytest.mark.parametrize("name", ["logistic", "pixelcnn++"])
def test_a_component_wider_than_fp32_hides_no_other(name):
    head = make_head(name, 3, 2)
    pixel = torch.arange(4, 4 + 48, dtype=torch.uint8).reshape(16, 3) * 4
    chosen = run(head, Greedy(3), wide_component_parameters(3).repeat(16, 1), pixel)
    assert torch.equal(chosen.int(), (pixel.int() + 3).clamp(max=255))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("keep_bits", [None, 9.0])
def test_greedy_does_what_its_twin_does(name, keep_bits):
    head, parameters, pixel = random_pixel(name, 3, 3, 0)
    chooser = Greedy(24, keep_bits)
    chosen = run(head, chooser, parameters, pixel)
    expected = twin(head, chooser, parameters, pixel)
    for made in (chosen, expected):  # after a near-tie, which each rounds in its way, the later channels may differ
        log_probs, before, after = (x[:, :, None, None] for x in (log_probs_of(head, parameters, made), pixel, made))
        assert (regret_of(partial(log_probs.gather, -1), before, after, chooser) < 1e-4).all()
    if keep_bits is not None:
        assert (expected == pixel).sum() > (twin(head, Greedy(24), parameters, pixel) == pixel).sum()


@pytest.mark.parametrize("name", HEADS)
def test_ties_go_to_the_smallest_value(name):
    head, parameters, pixel = random_pixel(name, 3, 2, 0)
    parameters.zero_()
    if isinstance(head, SoftmaxHead):
        head.tables.zero_()
        expected = (pixel.int() - 20).clamp(min=0)
    else:  # symmetric around the middle of the grid: 127 and 128 are equally likely, whatever the earlier channels
        pixel[:] = torch.randint(108, 148, pixel.shape, generator=torch.Generator().manual_seed(0))
        expected = torch.full(pixel.shape, 127, dtype=torch.int32)
    assert torch.equal(run(head, Greedy(20), parameters, pixel).int(), expected)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("width", [1, 32, 64, 132, 256])
def test_greedy_takes_the_best_value_of_a_range_of_any_width(name, width):
    head, parameters, pixel = random_pixel(name, 3, 3, 5)
    chooser = Greedy(within=around(pixel, cells(pixel, width)))
    chosen = run(head, chooser, parameters, pixel)
    assert (verdict(head, chooser, parameters, pixel, chosen)[0] < 1e-4).all()
    assert width > 1 or torch.equal(chosen, pixel)


@pytest.mark.parametrize("name", ["logistic", "pixelcnn++"])
def test_a_range_far_from_all_mass_is_chosen_from_by_logarithms(name):
    head, parameters, pixel = random_pixel(name, 3, 4, 1)
    K = head.mixtures
    for channel in range(3):
        at = K + channel * 3 * K
        parameters[:, at : at + K] = 0.9  # means near white
        parameters[:, at + K : at + 2 * K] = -6.5  # as sharp as 1 / 665
        parameters[:, at + 2 * K : at + 3 * K] = 0.0
    pixel[:] = 20
    chosen = run(head, Greedy(3), parameters, pixel)
    assert (chosen == 23).all()
    for temperature in (1.0, 0.5):
        chooser = Sample(7, temperature, within=around(pixel, (pixel - 3, pixel + 3)))
        assert (run(head, chooser, parameters, pixel) == 23).all()


def test_an_image_alone_is_chosen_for_as_in_a_batch():
    for name in HEADS:
        head, parameters, pixel = random_pixel(name, 3, 3, 2)
        eps = torch.arange(16, dtype=torch.uint8)
        whole = run(head, Greedy(eps), parameters, pixel)
        company = torch.randn(16, head.features)
        company[5] = parameters[5]
        wide = torch.full((16,), 200, dtype=torch.uint8)  # makes the programs hold more values
        wide[5] = eps[5]
        assert torch.equal(run(head, Greedy(wide), company, pixel, block=4)[5], whole[5])


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("width", [None, 100])
def test_samples_are_those_of_the_twin(name, temperature, width):
    head, parameters, pixel = random_pixel(name, 3, 5, 3)
    within = None if width is None else around(pixel, cells(pixel, width))
    chooser = Sample(seed=2**63 - 25, temperature=temperature, first=2**33 - 7, within=within)
    lower, upper = ranges_at(chooser, pixel)
    chosen = run(head, chooser, parameters, pixel)
    expected = twin(head, chooser, parameters, pixel)
    for made in (chosen, expected):  # beside a step of the cumulative sum rounding decides between neighbours
        log_probs = log_probs_of(head, parameters, made)
        for channel in range(3):
            own = lower[:, channel], upper[:, channel]
            assert_sampled(log_probs[:, channel], made[:, channel], chooser, own, (ROW * W + COLUMN) * 3 + channel)
    assert len(chosen.unique()) > 3
    assert len({round(float(u), 6) for u in uniforms(chooser.seed, torch.arange(4).numpy(), 5)}) == 4


def test_a_batch_may_have_more_pixels_than_32_bits_count():
    """Most pages of the images are never touched."""
    from pxfast.kernels.choose import choose

    side, images = 12_000, 16
    assert (images - 1) * side**2 > 2**31
    head, parameters, _ = random_pixel("logistic", 1, 2, 0)
    given = torch.zeros(images, 1, side, side, dtype=torch.uint8, device=DEVICE)
    given[:, 0, 0, COLUMN] = torch.arange(1, images + 1).to(DEVICE)
    result = torch.zeros_like(given)
    choose(
        parameters.to(DEVICE),
        given,
        result,
        torch.zeros(images * 2 * (COLUMN + 1), device=DEVICE),
        torch.zeros(4, dtype=torch.int32, device=DEVICE),
        torch.zeros(1, device=DEVICE),
        given,
        given,
        torch.tensor([2.0, 1.0], device=DEVICE),
        torch.tensor([0, 0], device=DEVICE),
        column=COLUMN,
        head=head.name,
        mixtures=2,
        sample=False,
        values=64,
        block=8,
    ).run()
    assert torch.equal(result[:, 0, 0, COLUMN], given[:, 0, 0, COLUMN])
