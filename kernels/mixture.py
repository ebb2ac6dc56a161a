"""The fused log-likelihood of the logistic mixture heads, forward and backward.

The head's parameters of a pixel and its values go in, the log-probability of every sub-pixel comes out; the backward
pass computes the same once more and hands out the gradient of the parameters. What lies between, some thirty numbers a
sub-pixel and component in plain torch, stays in registers.

Its twin in plain torch is ``LogisticHead.plain_log_prob`` of ``pxfast.pixelcnn.heads``.

:func:`mixture_log_prob` is a custom operator of torch (``pxfast::mixture_log_prob``) with a fake implementation and a
registered gradient, so that ``torch.compile`` passes through it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .functions import log_sigmoid, relative_sinh, sigmoid, tanh
from .launch import Launch

BLOCK = 32  # pixels of a program
MIN_LOG_SCALE = -7.0


@triton.jit
def _load_component(features, offsets, mask, stride, FEATURE: tl.constexpr, COMPUTE: tl.constexpr):
    return tl.load(features + offsets + FEATURE * stride, mask=mask, other=0.0).to(COMPUTE)


@triton.jit
def _log_mass(value, mean, log_scale, BINS: tl.constexpr, LOG_BINS: tl.constexpr):
    """Log of the components' mass in a value's bin, and its derivatives by mean and log scale: (pixels, components)."""
    inverse_scale = tl.exp(-log_scale)
    lower = inverse_scale * ((value - 128.0) / BINS - mean)
    width = inverse_scale / BINS
    upper = lower + width
    below, above = log_sigmoid(upper), log_sigmoid(-lower)
    # 1 - exp(-w) = exp(-w / 2) * 2 sinh(w / 2); for small w from log w, since w itself underflows for wide components
    ratio = relative_sinh(tl.minimum(width, 1.0))
    narrow = -log_scale - LOG_BINS - 0.5 * width + tl.log(ratio)
    rest = tl.maximum(width, 0.5)
    shrinking = tl.exp(-rest)
    inside = below + above + tl.where(width < 1.0, narrow, tl.log(1.0 - shrinking))
    by_width = tl.where(width < 1.0, tl.exp(-0.5 * width) / ratio, rest * shrinking / (1.0 - shrinking))
    is_first, is_last = value == 0, value == 255  # they take the tails
    log_mass = tl.where(is_first, below, tl.where(is_last, above, inside))
    to_upper = tl.where(is_last, 0.0, sigmoid(-upper))
    to_lower = tl.where(is_first, 0.0, sigmoid(lower))
    by_mean = inverse_scale * (to_lower - to_upper)
    by_log_scale = lower * to_lower - upper * to_upper - tl.where(is_first | is_last, 0.0, by_width)
    return log_mass, by_mean, by_log_scale


@triton.jit
def _log_sum(x, known):
    """log of the sum of exp over the components: (pixels, 1)."""
    x = tl.where(known, x, float("-inf"))
    highest = tl.max(x, axis=1)[:, None]
    return highest + tl.log(tl.sum(tl.exp(x - highest), axis=1)[:, None])


@triton.jit
def _unit(value):
    return (value - 127.5) / 127.5


@triton.jit(do_not_specialize=["pixels", "plane", "image_stride", "channel_stride", "pixel_stride"])
def mixture_kernel(
    features,  # (N, P, H, W) of any float type
    images,  # (N, CHANNELS, H, W) uint8, contiguous
    output,  # (N, CHANNELS, H, W): forward, the result; backward, its gradient
    gradient,  # backward: that of the features, laid out as they are
    pixels,  # N * H * W
    plane,  # H * W
    image_stride,  # of the features; their pixels are pixel_stride apart
    channel_stride,
    pixel_stride,
    CHANNELS: tl.constexpr,
    K: tl.constexpr,
    K_BLOCK: tl.constexpr,  # a power of two, at least K
    BINS: tl.constexpr,
    LOG_BINS: tl.constexpr,
    MIN_LOG_SCALE: tl.constexpr,
    JOINT: tl.constexpr,
    BACKWARD: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    STEP: tl.constexpr = 3 * K if CHANNELS == 3 else 2 * K  # features of a channel
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    image = pixel // plane
    position = pixel - image * plane
    k = tl.arange(0, K_BLOCK)[None, :]
    known = k < K
    mask = inside[:, None] & known
    channel_stride = channel_stride.to(tl.int64)  # the features of one large image may be more than 2^31 values
    start = image.to(tl.int64) * image_stride + position.to(tl.int64) * pixel_stride
    offsets = start[:, None] + k * channel_stride
    at = image.to(tl.int64) * (CHANNELS * plane) + position

    logits = _load_component(features, offsets, mask, channel_stride, 0, COMPUTE)
    normaliser = _log_sum(logits, known)
    log_weights = logits - normaliser
    mean0 = _load_component(features, offsets, mask, channel_stride, K, COMPUTE)
    raw0 = _load_component(features, offsets, mask, channel_stride, 2 * K, COMPUTE)
    value0 = tl.load(images + at, mask=inside, other=0).to(COMPUTE)[:, None]
    mass0, by_mean0, by_scale0 = _log_mass(value0, mean0, tl.maximum(raw0, MIN_LOG_SCALE), BINS, LOG_BINS)
    score0 = log_weights + mass0
    sum0 = _log_sum(score0, known)
    if CHANNELS == 3:
        unit0 = _unit(value0)
        tanh0 = tanh(_load_component(features, offsets, mask, channel_stride, 3 * K, COMPUTE))
        mean1 = _load_component(features, offsets, mask, channel_stride, K + STEP, COMPUTE) + tanh0 * unit0
        raw1 = _load_component(features, offsets, mask, channel_stride, 2 * K + STEP, COMPUTE)
        value1 = tl.load(images + at + plane, mask=inside, other=0).to(COMPUTE)[:, None]
        mass1, by_mean1, by_scale1 = _log_mass(value1, mean1, tl.maximum(raw1, MIN_LOG_SCALE), BINS, LOG_BINS)
        unit1 = _unit(value1)
        tanh1 = tanh(_load_component(features, offsets, mask, channel_stride, 3 * K + STEP, COMPUTE))
        tanh2 = tanh(_load_component(features, offsets, mask, channel_stride, 3 * K + 2 * STEP, COMPUTE))
        mean2 = _load_component(features, offsets, mask, channel_stride, K + 2 * STEP, COMPUTE)
        mean2 = mean2 + tanh1 * unit0 + tanh2 * unit1
        raw2 = _load_component(features, offsets, mask, channel_stride, 2 * K + 2 * STEP, COMPUTE)
        value2 = tl.load(images + at + 2 * plane, mask=inside, other=0).to(COMPUTE)[:, None]
        mass2, by_mean2, by_scale2 = _log_mass(value2, mean2, tl.maximum(raw2, MIN_LOG_SCALE), BINS, LOG_BINS)
        # with the joint head a pixel has one component: the scores of a channel hold those of the earlier ones
        score1 = mass1 + score0 if JOINT else mass1 + log_weights
        score2 = mass2 + score1 if JOINT else mass2 + log_weights
        sum1 = _log_sum(score1, known)
        sum2 = _log_sum(score2, known)

    if BACKWARD:
        # `up`: the gradient of a channel's log-sum; `toward`: that of a component's log-mass
        grad0 = tl.load(output + at, mask=inside, other=0.0).to(COMPUTE)[:, None]
        up0 = grad0
        if CHANNELS == 3:
            grad1 = tl.load(output + at + plane, mask=inside, other=0.0).to(COMPUTE)[:, None]
            grad2 = tl.load(output + at + 2 * plane, mask=inside, other=0.0).to(COMPUTE)[:, None]
            up0 = grad0 - grad1 if JOINT else grad0
            up1 = grad1 - grad2 if JOINT else grad1
            share2 = tl.where(known, grad2 * tl.exp(score2 - sum2), 0.0)
            share1 = tl.where(known, up1 * tl.exp(score1 - sum1), 0.0)
            toward2 = share2
            toward1 = share1 + share2 if JOINT else share1
            later = share1 + share2
        else:
            later = tl.zeros((BLOCK, K_BLOCK), dtype=COMPUTE)
        share0 = tl.where(known, up0 * tl.exp(score0 - sum0), 0.0)
        toward0 = share0 + later if JOINT else share0
        by_weight = share0 + later
        by_logit = by_weight - tl.exp(log_weights) * tl.sum(by_weight, axis=1)[:, None]
        to = gradient + offsets
        tl.store(to, by_logit, mask=mask)
        tl.store(to + K * channel_stride, toward0 * by_mean0, mask=mask)
        by_raw0 = tl.where(raw0 >= MIN_LOG_SCALE, toward0 * by_scale0, 0.0)
        tl.store(to + 2 * K * channel_stride, by_raw0, mask=mask)
        if CHANNELS == 3:
            tl.store(to + 3 * K * channel_stride, toward1 * by_mean1 * unit0 * (1.0 - tanh0 * tanh0), mask=mask)
            to += STEP * channel_stride
            tl.store(to + K * channel_stride, toward1 * by_mean1, mask=mask)
            by_raw1 = tl.where(raw1 >= MIN_LOG_SCALE, toward1 * by_scale1, 0.0)
            tl.store(to + 2 * K * channel_stride, by_raw1, mask=mask)
            tl.store(to + 3 * K * channel_stride, toward2 * by_mean2 * unit0 * (1.0 - tanh1 * tanh1), mask=mask)
            to += STEP * channel_stride
            tl.store(to + K * channel_stride, toward2 * by_mean2, mask=mask)
            by_raw2 = tl.where(raw2 >= MIN_LOG_SCALE, toward2 * by_scale2, 0.0)
            tl.store(to + 2 * K * channel_stride, by_raw2, mask=mask)
            tl.store(to + 3 * K * channel_stride, toward2 * by_mean2 * unit1 * (1.0 - tanh2 * tanh2), mask=mask)
    else:
        # a component of the padding has no part in a sum, so every row is finite
        to = output + at[:, None]
        tl.store(to, sum0, mask=inside[:, None])
        if CHANNELS == 3:
            tl.store(to + plane, sum1 - sum0 if JOINT else sum1, mask=inside[:, None])
            tl.store(to + 2 * plane, sum2 - sum1 if JOINT else sum2, mask=inside[:, None])


def mixture(
    features: Tensor, images: Tensor, output: Tensor, gradient: Tensor | None, bins_per_unit: float, joint: bool
) -> Launch:
    """The launch that fills ``output`` (N, C, H, W), or, given its gradient there, ``gradient`` of the features.

    features: (N, P, H, W), contiguous or channels last; fp64 is computed in fp64, anything else in fp32. gradient: laid
    out as the features are. images: (N, C, H, W) uint8, contiguous. bins_per_unit, joint: of the head.
    """
    N, C, H, W = images.shape
    K = features.shape[1] // (10 if C == 3 else 3)
    image_stride, channel_stride, row_stride, pixel_stride = features.stride()
    if row_stride != W * pixel_stride and H > 1:
        raise ValueError(f"expected features whose rows lie side by side, got strides {features.stride()}")
    if gradient is not None and gradient.stride() != features.stride():
        raise ValueError(f"expected a gradient with strides {features.stride()}, got {gradient.stride()}")
    return Launch(
        mixture_kernel,
        (triton.cdiv(N * H * W, BLOCK),),
        {
            "features": features,
            "images": images,
            "output": output,
            "gradient": output if gradient is None else gradient,
            "pixels": N * H * W,
            "plane": H * W,
            "image_stride": image_stride,
            "channel_stride": channel_stride,
            "pixel_stride": pixel_stride,
        },
        {
            "CHANNELS": C,
            "K": K,
            "K_BLOCK": triton.next_power_of_2(K),
            "BINS": bins_per_unit,
            "LOG_BINS": float(torch.tensor(bins_per_unit, dtype=torch.float64).log()),
            "MIN_LOG_SCALE": MIN_LOG_SCALE,
            "JOINT": joint,
            "BACKWARD": gradient is not None,
            "COMPUTE": tl.float64 if features.dtype == torch.float64 else tl.float32,
            "BLOCK": BLOCK,
        },
        4,
        1,
    )


def _laid_out(features: Tensor) -> Tensor:
    """The features, copied unless they are contiguous or channels last: with gaps or overlaps their gradient, which has
    none, would lie in memory otherwise.
    """
    formats = torch.contiguous_format, torch.channels_last
    return features if any(features.is_contiguous(memory_format=each) for each in formats) else features.contiguous()


@torch.library.custom_op("pxfast::mixture_log_prob", mutates_args=())
def mixture_log_prob(features: Tensor, images: Tensor, bins_per_unit: float, joint: bool) -> Tensor:
    """Log-probability in nats of every sub-pixel under a logistic mixture head: (N, C, H, W), fp32 (fp64 for fp64).

    features: (N, P, H, W) floating, on a GPU. images: (N, C, H, W) uint8 there. bins_per_unit: 128.0 or 127.5. joint:
    whether the channels of a pixel share their component; see ``pxfast.pixelcnn.heads``. Differentiable by the
    features.
    """
    output = _empty_output(features, images)
    if output.numel():
        with _device(features):
            mixture(_laid_out(features), images.contiguous(), output, None, bins_per_unit, joint).run()
    return output


@torch.library.custom_op("pxfast::mixture_log_prob_backward", mutates_args=())
def mixture_log_prob_backward(
    features: Tensor, images: Tensor, output_gradient: Tensor, bins_per_unit: float, joint: bool
) -> Tensor:
    """The gradient of ``mixture_log_prob`` by the features, in their dtype and layout."""
    features = _laid_out(features)
    gradient = torch.empty_like(features)
    if gradient.numel():
        with _device(features):
            upstream = output_gradient.contiguous()
            mixture(features, images.contiguous(), upstream, gradient, bins_per_unit, joint).run()
    return gradient


def _empty_output(features: Tensor, images: Tensor) -> Tensor:
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    return torch.empty(images.shape, dtype=dtype, device=features.device)


def _device(tensor: Tensor) -> torch.cuda.device:
    """The context of launches for a tensor: its GPU, or in the interpreter nothing."""
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)


@mixture_log_prob.register_fake
def _(features: Tensor, images: Tensor, bins_per_unit: float, joint: bool) -> Tensor:
    return _empty_output(features, images)


@mixture_log_prob_backward.register_fake
def _(features: Tensor, images: Tensor, output_gradient: Tensor, bins_per_unit: float, joint: bool) -> Tensor:
    return torch.empty_like(_laid_out(features))


def _setup_context(ctx, inputs, output) -> None:
    features, images, ctx.bins_per_unit, ctx.joint = inputs
    ctx.save_for_backward(features, images)


def _backward(ctx, output_gradient: Tensor):
    features, images = ctx.saved_tensors
    gradient = mixture_log_prob_backward(features, images, output_gradient, ctx.bins_per_unit, ctx.joint)
    return gradient, None, None, None


mixture_log_prob.register_autograd(_backward, setup_context=_setup_context)
