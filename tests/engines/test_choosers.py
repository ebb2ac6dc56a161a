"""What goes into a sub-pixel: eps per image, sub-pixels that are kept, sampling; on every engine."""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from support.engines import engines_with
from support.helpers import assert_chosen, noisy, real_images, trained_model
from torch import Tensor

import pxfast
from pxfast.engines.choosers import MOST_KEEP_BITS, Greedy, Sample, uniforms
from pxfast.engines.registry import select
from pxfast.engines.schedule import schedule_for
from pxfast.engines.settings import DecodeSettings
from pxfast.pixelcnn.network import PixelCNN
from pxfast.pixelcnn.oracle import oracle
from pxfast.pixeldefend.verify import regret_of

HEADS = ("logistic", "softmax", "pixelcnn++")
SHAPES = [(head, channels) for head in HEADS for channels in (1, 3)]


REFERENCE = [("softmax", 1), ("pixelcnn++", 3)]  # those of the inner loop that the reference engine takes
PAIRS = engines_with(SHAPES, whole=lambda engine, shape: engine == "reference" and shape not in REFERENCE)


@pytest.fixture
def model(engine: str, shape: tuple[str, int]) -> PixelCNN:
    """Of every head; for the reference engine, which evaluates it at every pixel, over a quarter of the pixels."""
    head, channels = shape
    return trained_model((4, 4) if engine == "reference" else (8, 8), channels, 8, 1, head)


def decode(engine: str, model: PixelCNN, images: Tensor, chooser: Greedy | Sample, precision: str = "fp32") -> Tensor:
    return select(engine).decode(schedule_for(model), images, chooser, precision=precision)


def attacked(model: PixelCNN, count: int) -> Tensor:
    return noisy(real_images(model.config.channels, model.config.image_size, count))


# --- greedy ---


@pytest.mark.parametrize(("engine", "shape"), PAIRS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_image_has_its_own_eps(engine, model, precision):
    eps = torch.tensor([0, 255] if engine == "reference" else [0, 1, 7, 16, 100, 255], dtype=torch.uint8)
    images = attacked(model, len(eps))
    together = decode(engine, model, images, Greedy(eps), precision)
    for i in range(len(images)):
        assert torch.equal(together[i], decode(engine, model, images[i : i + 1], Greedy(int(eps[i])), precision)[0])
    assert torch.equal(together[0], images[0])
    assert not torch.equal(together[-1], images[-1])


@pytest.mark.parametrize(("engine", "shape"), PAIRS)
@pytest.mark.parametrize("bits", [0.5, 3.0, 6.0])
def test_likely_sub_pixels_are_kept_and_only_those(engine, model, bits):
    images = attacked(model, 1 if engine == "reference" else 6)
    chooser = Greedy(16, keep_bits=bits)
    result = decode(engine, model, images, chooser)
    with torch.no_grad():
        log_probs = oracle(model, "fp32").log_probs(result)
    cost = -log_probs.gather(-1, images.long().unsqueeze(-1)).squeeze(-1) / math.log(2)
    assert torch.equal(result[cost < bits - 1e-4], images[cost < bits - 1e-4])
    unlikely = cost > bits + 1e-4
    assert unlikely.any()
    free = regret_of(partial(log_probs.gather, -1), images, result, Greedy(16))
    assert float(free[unlikely].max()) < 1e-3
    assert float(regret_of(partial(log_probs.gather, -1), images, result, chooser).max()) < 1e-3


@pytest.mark.parametrize(("engine", "shape"), PAIRS)
def test_dear_sub_pixels_are_kept_up_to_the_most_bits_that_fp32_can_tell(engine, model):
    """Where values cost hundreds of bits, every engine decides as the oracle does."""
    sharp = copy.deepcopy(model)
    with torch.no_grad():
        sharp.output.g.mul_(100.0)
    images = attacked(sharp, 1 if engine == "reference" else 6)
    result = decode(engine, sharp, images, Greedy(64, keep_bits=MOST_KEEP_BITS))
    with torch.no_grad():
        log_probs = oracle(sharp, "fp32").log_probs(result)
    cost = -log_probs.gather(-1, images.long().unsqueeze(-1)).squeeze(-1) / math.log(2)
    assert cost.max() > MOST_KEEP_BITS
    kept, free = cost < MOST_KEEP_BITS - 0.05, cost > MOST_KEEP_BITS + 0.05
    assert torch.equal(result[kept], images[kept])
    regret = regret_of(partial(log_probs.gather, -1), images, result, Greedy(64))
    assert bool((regret[free] <= 1e-4 * cost[free] + 1e-3).all())
    with pytest.raises(ValueError, match=r"threshold must be a number in \[0, 99\]"):
        pxfast.purify(images, adaptive="sub-pixel", threshold=MOST_KEEP_BITS + 1, model=sharp)


def test_regret_sees_a_sub_pixel_that_should_have_been_kept_or_moved():
    log_probs = torch.full((1, 1, 1, 1, 256), -20.0)
    log_probs[..., 100], log_probs[..., 101], log_probs[..., 102] = -0.5, -1.0, -6.0

    def regret(given: int, chosen: int, bits: float | None) -> float:
        values = (torch.full((1, 1, 1, 1), value, dtype=torch.uint8) for value in (given, chosen))
        return float(regret_of(partial(log_probs.gather, -1), *values, Greedy(2, keep_bits=bits)))

    assert regret(101, 100, None) == 0.0
    assert regret(101, 101, None) == pytest.approx(0.5)
    assert regret(101, 101, 3.0) == 0.0  # 1 nat is fewer than 3 bits: kept
    assert regret(101, 100, 3.0) == pytest.approx(3 * math.log(2) - 1.0)  # moved all the same
    assert regret(102, 100, 3.0) == 0.0
    assert regret(102, 102, 3.0) == pytest.approx(6.0 - 3 * math.log(2))  # kept all the same


# --- random numbers ---


def test_uniforms_are_philox_as_published():
    """Random123's known answers for philox4x32-10, counter and key of zeros, and of ones."""
    zeros = uniforms(0, np.array([0], dtype=np.uint64), 0)
    assert zeros[0] == ((0x6627E8D5 >> 9) + 0.5) / 2**23
    assert uniforms(1, np.array([0], dtype=np.uint64), 0)[0] != zeros[0]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 9), st.integers(0, 2**20))
def test_uniforms_lie_inside_the_unit_interval_and_depend_on_everything(seed, first, position):
    images = np.arange(8, dtype=np.uint64) + np.uint64(first)
    u = uniforms(seed, images, position)
    assert ((u > 0) & (u < 1)).all()
    assert len({*u, *uniforms(seed, images, position + 1), *uniforms(seed ^ 1 << 63, images, position)}) > 20


# --- sampling ---


@pytest.mark.parametrize(("engine", "shape"), PAIRS)
def test_a_sample_follows_its_random_numbers_on_every_engine(engine, model):
    """Inverse transform, checked sub-pixel by sub-pixel against one teacher-forced pass."""
    C, H, W = model.config.channels, *model.config.image_size
    for temperature in (1.0, 0.7):
        chooser = Sample(seed=2**63 + 5, temperature=temperature, first=2**33)
        images = torch.zeros((1 if engine == "reference" else 5, C, H, W), dtype=torch.uint8)
        assert_chosen(model, images, decode(engine, model, images, chooser), chooser)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sample_i_is_the_same_in_any_batch_with_any_threads_in_any_order(precision):
    model = trained_model((8, 8), 3, 8, 1)
    whole = pxfast.sample(70, model=model, seed=4, precision=precision)
    assert len(torch.unique(whole.flatten(1), dim=0)) == 70
    for first, count in ((0, 1), (3, 2), (63, 7)):
        part = pxfast.sample(count, model=model, seed=4, first=first, precision=precision)
        assert torch.equal(part, whole[first : first + count])
    for threads in (1, 3):
        assert torch.equal(pxfast.sample(5, model=model, seed=4, precision=precision, threads=threads), whole[:5])
        for order in ("sequential", "speculative"):
            way = DecodeSettings(threads=threads, order=order)
            drawn = select("auto").decode(
                schedule_for(model), torch.zeros_like(whole[:5]), Sample(4), precision=precision, settings=way
            )
            assert torch.equal(drawn, whole[:5]), way


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("head", HEADS)
def test_the_first_pixel_has_the_models_own_frequencies(head, temperature):
    """Chi-square of 3,000 first pixels against the model's probabilities, values pooled into some 32 equal classes."""
    model = trained_model((4, 4), 1, 8, 1, head)
    n = 3_000
    drawn = pxfast.sample(n, model=model, seed=11, temperature=temperature, precision="fp32")[:, 0, 0, 0]
    with torch.no_grad():
        log_probs = oracle(model, "fp32").log_probs(torch.zeros((1, 1, 4, 4), dtype=torch.uint8))
    expected = n * (log_probs[0, 0, 0, 0].double() / temperature).softmax(0).numpy()
    pooled = np.minimum((np.cumsum(expected) / (n / 32)).astype(int), 31)
    observed = np.bincount(pooled, weights=np.bincount(drawn.numpy(), minlength=256))
    classes = np.bincount(pooled, weights=expected)
    used = classes > 0
    assert used.sum() > 5
    assert chisquare(observed[used], classes[used] * observed.sum() / classes.sum()).pvalue > 1e-3


def test_samples_of_the_shipped_model_look_like_its_data_to_it():
    samples = pxfast.sample(8, model="fashion-mnist", seed=0)
    assert samples.shape == (8, 1, 28, 28)
    assert samples.dtype == torch.uint8
    # about the entropy of the model, hence about the bits/dim of real images: 2.8, where noise has more than 8
    assert 1.5 < float(pxfast.bits_per_dim(samples).mean()) < 4.5
    cold = pxfast.sample(8, model="fashion-mnist", seed=0, temperature=0.5)
    assert float(pxfast.bits_per_dim(cold).mean()) < float(pxfast.bits_per_dim(samples).mean())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": -1}, ValueError, "n must be an integer in 0"),
        ({"n": 1.5}, TypeError, "n must be an integer"),
        ({"seed": -1}, ValueError, "seed must be an integer in 0"),
        ({"seed": True}, TypeError, "seed must be an integer"),
        ({"temperature": 0}, ValueError, r"temperature must be a number in \[0\.001, 4\]"),
        ({"temperature": 50.0}, ValueError, r"temperature must be a number in \[0\.001, 4\], got 50"),
        ({"temperature": float("nan")}, ValueError, r"temperature must be a number in \[0\.001, 4\]"),
        ({"temperature": "hot"}, TypeError, r"temperature must be a number in \[0\.001, 4\]"),
        ({"model": None}, TypeError, "model must be"),
        ({"engine": "abacus"}, ValueError, "unknown engine"),
        ({"precision": "fp8"}, ValueError, "precision must be"),
    ],
)
def test_bad_arguments_of_sample_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        pxfast.sample(**({"n": 1, "model": "fashion-mnist"} | arguments))


def test_no_samples_are_an_empty_batch():
    assert pxfast.sample(0, model="fashion-mnist").shape == (0, 1, 28, 28)
