"""The fused choice of values: in go the head's parameters of one pixel for a batch, and the input's pixel.

What is chosen is what ``pxfast.engines.choosers`` says. Only the values in range are evaluated; ties go to the
smallest. A component's mass in the bin [a, b) (edges in units of its scale) is sigmoid(b) * sigmoid(-a) *
(1 - exp(a - b)), without cancellation; where every mass of a range underflows, the likeliest is found by logarithms in
double precision.

The sum over components is a loop, in their order: an image's choice does not depend on how many values or images a
program holds, hence not on the ranges of its neighbours.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from .functions import UNIT, log_sigmoid, relative_sinh, sigmoid, tanh
from .launch import Launch

LOGISTIC = tl.constexpr(0)
SOFTMAX = tl.constexpr(1)
JOINT = tl.constexpr(2)
HEADS = {"logistic": LOGISTIC.value, "softmax": SOFTMAX.value, "pixelcnn++": JOINT.value}
BINS_PER_UNIT = {"logistic": 128.0, "softmax": 0.0, "pixelcnn++": 127.5}
MIN_LOG_SCALE = tl.constexpr(-7.0)
LOG_128, LOG_127_5 = tl.constexpr(math.log(128.0)), tl.constexpr(math.log(127.5))
WIDE_LOG_SCALE = tl.constexpr(80.0)  # above it the inverse scale leaves what fp32 can hold
TOO_SMALL = tl.constexpr(1e-30)  # a mass below it may have lost digits to underflow


@triton.jit
def _component(parameters, start, k, red, green, CHANNEL: tl.constexpr, CHANNELS: tl.constexpr, K: tl.constexpr):
    """Mean, inverse scale and log scale of component k, in PixelCNN++'s layout, given the earlier channels' values."""
    STRIDE: tl.constexpr = 3 * K if CHANNELS == 3 else 2 * K
    at = parameters + start + K + k
    mean = tl.load(at + CHANNEL * STRIDE)
    log_scale = tl.maximum(tl.load(at + CHANNEL * STRIDE + K), MIN_LOG_SCALE)
    if CHANNEL == 1:
        mean += tanh(tl.load(at + 2 * K)) * ((red.to(tl.float32) - 127.5) / 127.5)
    if CHANNEL == 2:
        mean += tanh(tl.load(at + STRIDE + 2 * K)) * ((red.to(tl.float32) - 127.5) / 127.5)
        mean += tanh(tl.load(at + 2 * STRIDE + 2 * K)) * ((green.to(tl.float32) - 127.5) / 127.5)
    return mean, tl.exp(-log_scale), log_scale


@triton.jit
def _log_mass(z, mean, scale, log_scale, BINS: tl.constexpr):
    """Log of a component's mass in the bin of value z, in the precision of mean, inverse scale and log scale."""
    LOG_BINS: tl.constexpr = LOG_128 if BINS == 128.0 else LOG_127_5
    lower = scale * ((z - 128).to(mean.dtype) / BINS - mean)
    width = scale / BINS
    below = log_sigmoid(lower + width)
    above = log_sigmoid(-lower)
    # 1 - exp(-w) = exp(-w / 2) * 2 sinh(w / 2)
    narrow = tl.log(width * relative_sinh(tl.minimum(width, 1.0))) - 0.5 * width
    narrow = tl.where(log_scale > WIDE_LOG_SCALE, -log_scale - LOG_BINS, narrow)
    inside = below + above + tl.where(width < 1.0, narrow, tl.log(1.0 - tl.exp(-tl.maximum(width, 0.5))))
    return tl.where(z == 0, below, tl.where(z == 255, above, inside))


@triton.jit
def _log_weight(
    parameters,
    start,
    k,
    red,
    green,
    CHANNEL: tl.constexpr,
    CHANNELS: tl.constexpr,
    K: tl.constexpr,
    HEAD: tl.constexpr,
    BINS: tl.constexpr,
):
    """Of component k, not normalised; with the joint head it is conditioned on the earlier channels."""
    log_weight = tl.load(parameters + start + k)
    if HEAD == JOINT:
        if CHANNEL > 0:
            mean, scale, log_scale = _component(parameters, start, k, red, green, 0, CHANNELS, K)
            log_weight += _log_mass(red, mean, scale, log_scale, BINS)
        if CHANNEL > 1:
            mean, scale, log_scale = _component(parameters, start, k, red, green, 1, CHANNELS, K)
            log_weight += _log_mass(green, mean, scale, log_scale, BINS)
    return log_weight


@triton.jit
def _mixture_masses(
    parameters,
    start,
    z,
    red,
    green,
    CHANNEL: tl.constexpr,
    CHANNELS: tl.constexpr,
    K: tl.constexpr,
    HEAD: tl.constexpr,
    BINS: tl.constexpr,
):
    """Masses of the values z, and that of all 256, in units of the largest component's weight; and its logarithm."""
    highest = _log_weight(parameters, start, 0, red, green, CHANNEL, CHANNELS, K, HEAD, BINS)
    for k in range(1, K):
        log_weight = _log_weight(parameters, start, k, red, green, CHANNEL, CHANNELS, K, HEAD, BINS)
        highest = tl.maximum(highest, log_weight)
    mass = (z * 0).to(tl.float32)
    total = highest * 0.0
    for k in range(0, K):
        log_weight = _log_weight(parameters, start, k, red, green, CHANNEL, CHANNELS, K, HEAD, BINS)
        weight = tl.exp(log_weight - highest)
        mean, scale, _ = _component(parameters, start, k, red, green, CHANNEL, CHANNELS, K)
        width = scale / BINS
        half = 0.5 * width
        narrow = width * relative_sinh(tl.minimum(width, 1.0)) * tl.exp(-half)
        within = tl.where(width < 1.0, narrow, 1.0 - tl.exp(-width))
        edge = (z - 128).to(tl.float32)
        below = sigmoid(scale[:, None] * ((edge + 1.0) / BINS - mean[:, None]))
        above = sigmoid(scale[:, None] * (mean[:, None] - edge / BINS))
        inside = (weight * within)[:, None] * below * above
        outermost = tl.where(z == 0, weight[:, None] * below, weight[:, None] * above)  # they take the tails
        mass += tl.where((z == 0) | (z == 255), outermost, inside)
        total += weight
    return mass, total, highest


@triton.jit
def _log_masses_far_out(
    parameters,
    start,
    z,
    red,
    green,
    highest_weight,
    CHANNEL: tl.constexpr,
    CHANNELS: tl.constexpr,
    K: tl.constexpr,
    HEAD: tl.constexpr,
    BINS: tl.constexpr,
):
    """Logarithms of the masses of the values z in double precision."""
    highest = (z * 0).to(tl.float64) - 1e300
    sum = (z * 0).to(tl.float64)
    for k in range(0, K):
        log_weight = _log_weight(parameters, start, k, red, green, CHANNEL, CHANNELS, K, HEAD, BINS) - highest_weight
        mean, scale, log_scale = _component(parameters, start, k, red, green, CHANNEL, CHANNELS, K)
        mean, scale, log_scale = mean.to(tl.float64), scale.to(tl.float64), log_scale.to(tl.float64)
        log_mass = _log_mass(z, mean[:, None], scale[:, None], log_scale[:, None], BINS)
        log_mass += log_weight.to(tl.float64)[:, None]
        higher = tl.maximum(highest, log_mass)
        sum = sum * tl.exp(highest - higher) + tl.exp(log_mass - higher)
        highest = higher
    return highest + tl.log(sum)


@triton.jit
def _softmax_logits(parameters, start, tables, z, red, green, CHANNEL: tl.constexpr):
    logit = tl.load(parameters + start[:, None] + CHANNEL * 256 + z)
    if CHANNEL == 1:
        logit += tl.load(tables + red[:, None] * 256 + z)
    if CHANNEL == 2:
        logit += tl.load(tables + 65536 + red[:, None] * 256 + z)
        logit += tl.load(tables + 131072 + green[:, None] * 256 + z)
    return logit


@triton.jit
def _smallest_best(scores, z, lowest):
    """The smallest of the values z >= 0 with the highest score, and that score; ``lowest`` if there is none (NaN)."""
    best = tl.max(scores, axis=1)
    value = tl.min(tl.where(scores == best[:, None], z, 256), axis=1)
    return tl.where(value < 256, value, lowest), best


@triton.jit
def _draw(mass, z, image, seed, position, inverse_temperature):
    """Inversion of the cumulative sum at a uniform number that depends on seed, image and position alone."""
    # both ways, not in a branch: Triton 3.2 can't compile a maximum over values in one for AMD
    tempered = tl.exp(tl.log(mass / tl.max(mass, axis=1)[:, None]) * inverse_temperature)
    mass = tl.where(inverse_temperature == 1.0, mass, tempered)
    cumulative = tl.cumsum(mass.to(tl.float64), axis=1)
    zero = (image * 0).to(tl.int32)
    low = (image & 0xFFFFFFFF).to(tl.int32)
    high = (image >> 32).to(tl.int32)
    bits, _, _, _ = tl.philox(seed, low, high, zero + position, zero)
    uniform = ((bits >> 9).to(tl.float64) + 0.5) / 8388608.0
    target = uniform * tl.max(cumulative, axis=1)
    return tl.minimum(tl.sum((cumulative <= target[:, None]).to(tl.int32), axis=1), 255)


@triton.jit
def _choose_channel(
    parameters,
    start,
    given,
    tables,
    low,
    high,
    image,
    settings,
    generator,
    position,
    red,
    green,
    CHANNEL: tl.constexpr,
    CHANNELS: tl.constexpr,
    K: tl.constexpr,
    HEAD: tl.constexpr,
    BINS: tl.constexpr,
    SAMPLE: tl.constexpr,
    BLOCK: tl.constexpr,
    VALUES: tl.constexpr,
):
    """One channel's values (BLOCK,) int32 for BLOCK images, out of low..high."""
    z = low[:, None] + tl.arange(0, VALUES)[None, :]
    inside = z <= high[:, None]
    z = tl.minimum(z, 255)
    if HEAD == SOFTMAX:
        if SAMPLE:
            logits = tl.where(inside, _softmax_logits(parameters, start, tables, z, red, green, CHANNEL), float("-inf"))
            scores = tl.exp(logits - tl.max(logits, axis=1)[:, None])
        else:
            every = tl.zeros((BLOCK, 256), dtype=tl.int32) + tl.arange(0, 256)[None, :]
            logits = _softmax_logits(parameters, start, tables, every, red, green, CHANNEL)
            masses = tl.exp(logits - tl.max(logits, axis=1)[:, None])
            scores = _softmax_logits(parameters, start, tables, z, red, green, CHANNEL)
            total = tl.sum(masses, axis=1)
            mass = tl.sum(tl.where(every == given[:, None], masses, 0.0), axis=1)
    else:
        scores, total, highest = _mixture_masses(parameters, start, z, red, green, CHANNEL, CHANNELS, K, HEAD, BINS)
        mass = tl.sum(tl.where(inside & (z == given[:, None]), scores, 0.0), axis=1)
    if SAMPLE:
        scores = tl.where(inside, scores, 0.0)
        best = tl.sum(scores, axis=1)
        place = _draw(scores, z, image, tl.load(generator), position + CHANNEL, tl.load(settings + 1))
        value = tl.minimum(low + place, high)
    else:
        value, best = _smallest_best(tl.where(inside, scores, float("-inf")), z, low)
    if HEAD != SOFTMAX:
        far_out = best <= TOO_SMALL
        if tl.max(far_out.to(tl.int32), axis=0) > 0:
            logs = _log_masses_far_out(parameters, start, z, red, green, highest, CHANNEL, CHANNELS, K, HEAD, BINS)
            again, _ = _smallest_best(tl.where(inside, logs, float("-inf")), z, low)
            value = tl.where(far_out, again, value)
    if not SAMPLE:
        value = tl.where(mass >= tl.load(settings) * total, given, value)
    return value


@triton.jit(do_not_specialize=["column", "images"])
def choose_kernel(
    parameters,  # (images, P) fp32
    given,  # (images, CHANNELS, H, W) uint8: the input
    result,  # (images, CHANNELS, H, W) uint8
    caches,
    entry,  # int32: the row, and where column 0 of it is in the cache of pixels, in units of 16 elements
    tables,  # of the softmax head: (pairs, 256, 256) fp32
    lower,  # as given: the least value of every sub-pixel
    upper,  # and the greatest
    settings,  # fp32: keep_probability, 1 / temperature
    generator,  # int64: seed, number of the first image
    column,
    images,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    FEATURES: tl.constexpr,
    K: tl.constexpr,
    HEAD: tl.constexpr,
    BINS: tl.constexpr,
    SAMPLE: tl.constexpr,
    BLOCK: tl.constexpr,
    VALUES: tl.constexpr,
):
    image = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    start = image * FEATURES
    pixel = tl.load(entry) * WIDTH + column
    PLANE: tl.constexpr = HEIGHT * WIDTH
    at = image.to(tl.int64) * (CHANNELS * PLANE) + pixel  # a batch may have more than 2 GiB of pixels
    number = tl.load(generator + 1) + image.to(tl.int64)
    EVEN: tl.constexpr = CHANNELS + 1 + (CHANNELS + 1) % 2
    seen = caches + tl.load(entry + 1).to(tl.int64) * UNIT + (column * images + image) * EVEN
    red = image * 0
    green = red
    for channel in tl.static_range(CHANNELS):
        value = _choose_channel(
            parameters,
            start,
            tl.load(given + at + channel * PLANE).to(tl.int32),
            tables,
            tl.load(lower + at + channel * PLANE).to(tl.int32),
            tl.load(upper + at + channel * PLANE).to(tl.int32),
            number,
            settings,
            generator,
            pixel * CHANNELS,
            red,
            green,
            channel,
            CHANNELS,
            K,
            HEAD,
            BINS,
            SAMPLE,
            BLOCK,
            VALUES,
        )
        tl.store(result + at + channel * PLANE, value.to(tl.uint8))
        # what the network sees of it: 2v - 255, an odd integer that bf16 represents exactly
        tl.store(seen + channel, (2 * value - 255).to(tl.float32).to(caches.dtype.element_ty))
        if channel == 0:
            red = value
        if channel == 1:
            green = value
    ones = (red * 0 + 255).to(tl.float32)  # the channel of ones, in the same units
    tl.store(seen + CHANNELS, ones.to(caches.dtype.element_ty))


def choose(
    parameters: Tensor,
    given: Tensor,
    result: Tensor,
    caches: Tensor,
    entry: Tensor,
    tables: Tensor,
    lower: Tensor,
    upper: Tensor,
    settings: Tensor,
    generator: Tensor,
    *,
    column: int,
    head: str,
    mixtures: int,
    sample: bool,
    values: int,
    block: int = 1,
) -> Launch:
    """The launch that chooses all channels of the pixel (entry[0], column) of every image.

    parameters: (images, P) fp32 of the head. given, result: (images, C, H, W) uint8, the input and what is decoded; of
    result only this pixel is written. caches: gets the network's view of the pixel, in the cache of pixels, whose
    column 0 of this row begins at element 16 * entry[1]. tables: of the softmax head, any fp32 tensor for others.
    lower, upper: (images, C, H, W) uint8, the least and the greatest value of every sub-pixel. settings: fp32 (2,), the
    probability from which on an input's value is kept (2: none is) and 1 / temperature, for ``sample``. generator:
    int64 (2,), seed and number of the first image. values: a power of two, at least the number of values in the widest
    range, 256 if ``sample``. block: images per program; divides their number.
    """
    images, C, H, W = given.shape
    if images % block:
        raise ValueError(f"block must divide the number of images, {images}, got {block}")
    return Launch(
        choose_kernel,
        (images // block,),
        {
            "parameters": parameters,
            "given": given,
            "result": result,
            "caches": caches,
            "entry": entry,
            "tables": tables,
            "lower": lower,
            "upper": upper,
            "settings": settings,
            "generator": generator,
            "column": column,
            "images": images,
        },
        {
            "CHANNELS": C,
            "HEIGHT": H,
            "WIDTH": W,
            "FEATURES": parameters.shape[1],
            "K": mixtures,
            "HEAD": HEADS[head],
            "BINS": BINS_PER_UNIT[head],
            "SAMPLE": sample,
            "BLOCK": block,
            "VALUES": values,
        },
        # the softmax head's sum over the values must not depend on the widest range of the batch
        4 if values > 64 or head == "softmax" else 1,
        1,
    )


def values_for(widest: int) -> int:
    """Values that a program holds for ranges of up to ``widest``: a power of two, one of few, so that few kernels are
    compiled.
    """
    return next(values for values in (64, 256) if values >= widest)


class Head(Protocol):
    """What is asked of a module of ``pxfast.pixelcnn.heads``."""

    def log_probs(self, features: Tensor, images: Tensor) -> Tensor: ...


class Chooser(Protocol):
    """What is asked of a chooser of ``pxfast.engines.choosers``."""

    def choose(self, log_probs: Tensor, given: Tensor, ranges: tuple[Tensor, Tensor], position: int) -> Tensor: ...


def choose_twin(
    head: Head, chooser: Chooser, parameters: Tensor, given: Tensor, ranges: tuple[Tensor, Tensor], position: int
) -> Tensor:
    """What :func:`choose` chooses: (N, C) uint8, by a module of ``pxfast.pixelcnn.heads`` and a chooser's own
    definition.

    parameters: (N, P) fp32. given: (N, C) uint8, the input's pixel. ranges: (N, C) uint8 both, the least and the
    greatest values there. position: of its first channel in raster order.
    """
    N, C = given.shape
    pixel = torch.zeros(N, C, 1, 1, dtype=torch.uint8)
    for channel in range(C):
        log_probs = head.log_probs(parameters[:, :, None, None], pixel)[:, channel, 0, 0]
        own = ranges[0][:, channel], ranges[1][:, channel]
        pixel[:, channel, 0, 0] = chooser.choose(log_probs, given[:, channel], own, position + channel)
    return pixel[:, :, 0, 0]
