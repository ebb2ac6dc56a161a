"""Trying a GPU's kernels before they are relied upon: once a machine, in a process of its own.

A kernel that is wrong for a GPU or a driver can hang, or spoil every later call of its process. So when engine='auto'
first comes to an engine of a GPU, another process purifies images with it. One forward pass of the network judges some
of them (:mod:`pxfast.pixeldefend.verify`), and all of them must become the same whatever the batch and, of the CUDA
engine, the plan (:mod:`pxfast.engines.cuda_plans`). When a likelihood is first asked for on a GPU, another process
compares the fused kernel with plain torch. The verdict is kept by :mod:`pxfast.kernels.trust`, which starts this
program by its name. Nobody imports it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engines.choosers import Greedy
from ..engines.cuda_plans import described, plans_of
from ..engines.registry import ENGINES, Decode, Engine, select
from ..engines.schedule import schedule_for
from ..engines.settings import DEFAULTS, DecodeSettings
from ..kernels.trust import LIKELIHOOD, UNTRIED, WRONG
from ..pixelcnn.heads import HEADS, LogisticHead, make_head
from ..pixelcnn.network import PixelCNN
from ..pixelcnn.shipped import load
from .cells import cells, shifts
from .verify import verify

# shipped models and precisions that are tried (None: the engine's best); images decoded together, which fill no tile of
# an engine without plans evenly; and those that are judged, of all
CASES = (("fashion-mnist", None), ("fashion-mnist", "fp32"), ("cifar10", None))
IMAGES = 21
JUDGED = (0, 0.5, 1)
EPS = 16
WIDTH = 64  # grey levels, of the cells that images are purified within too: ranges that lie otherwise for each value
# nats: a sound engine's largest regret is 0 in fp32, and in bf16 0.08 on the CPU and 0.2 on a GPU. The mean that
# verify allows would let several wrong values of an image pass.
LARGEST_REGRET = {"fp32": 1e-2, "bf16": 0.4}
TOLERANCE = 1e-3  # of log-probabilities and their gradients, absolute and relative: wrong kernels are further off


def judge_engine(
    engine: Engine,
    cases: Sequence[tuple[str, str | None]] = CASES,
    count: int = IMAGES,
    ways: Sequence[DecodeSettings] = (),
) -> str | None:
    """What is wrong with the images that an engine purifies here; None where nothing is.

    cases: shipped models and precisions. count: images purified together. ways: plans that may change no bit of them.
    """
    for name, wish in cases:
        model, precision = load(name), wish or engine.best_precision()
        images = _images(count, model.config.channels, *model.config.image_size)
        found = judge_decode(engine.decode, model, images, precision, ways, largest=LARGEST_REGRET[precision])
        if found is not None:
            return f"{name}, {precision}: {found}"
    return None


def judge_decode(
    decode: Decode,
    model: PixelCNN,
    images: Tensor,
    precision: str,
    ways: Sequence[DecodeSettings] = (),
    *,
    settings: DecodeSettings = DEFAULTS,
    largest: float = math.inf,
) -> str | None:
    """What is wrong with a decode of images (N, C, H, W) uint8, of which some are verified; None where nothing is.

    They are decoded within ±EPS, and within cells of WIDTH grey levels.

    ways: plans that may change no bit of any image, nor may an image's batch. settings: of the decode; with each way
    its ``wgmma`` is used. largest: a regret in nats that no sub-pixel may exceed.
    """
    schedule = schedule_for(model)
    together = decode(schedule, images, Greedy(EPS), precision=precision, settings=settings)
    alone = decode(schedule, images[-1:], Greedy(EPS), precision=precision, settings=settings)
    if not torch.equal(alone, together[-1:]):
        return f"an image alone does not become what it becomes among {len(images)}"
    judged = [round(part * (len(images) - 1)) for part in JUDGED]
    C, H, W = images.shape[1:]
    ends = cells(images, WIDTH, shifts((C, H, W), WIDTH))
    ranged = decode(schedule, images, Greedy(within=ends), precision=precision, settings=settings)
    own: tuple[dict[str, Any], ...] = {"eps": EPS}, {"within": (ends[0][judged], ends[1][judged])}
    for decoded, bounds in zip((together, ranged), own, strict=True):
        found = verify(images[judged], decoded[judged], model=model, precision=precision, **bounds)
        if not found.passed:
            return str(found)
        if not found.max_regret <= largest:
            return f"a regret of {found.max_regret:.2g} nats is more than {largest:g}: {found}"
    for way in ways:
        plan = dataclasses.replace(way, wgmma=settings.wgmma)
        other = decode(schedule, images, Greedy(EPS), precision=precision, settings=plan)
        differing = int((other != together).flatten(1).any(1).sum())
        if differing:
            return f"{differing} of {len(images)} images become others by another plan: {described(way)}"
    return None


def judge_likelihood(log_prob: Callable[..., Tensor] | None = None, device: str = "cuda") -> str | None:
    """What is wrong with the fused likelihood of a mixture, or its gradient, here; None where nothing is.

    log_prob: a function like ``pxfast.kernels.mixture.mixture_log_prob``, by default that one.
    """
    if log_prob is None:
        from ..kernels import mixture

        log_prob = mixture.mixture_log_prob

    random = torch.Generator().manual_seed(0)
    for name in HEADS:
        for C in (1, 3):
            head = make_head(name, C, 10)
            if not isinstance(head, LogisticHead):
                continue
            settings = (head.bins_per_unit, name == "pixelcnn++")
            features = torch.randn(3, head.features, 9, 7, generator=random, dtype=torch.float64).requires_grad_()
            images = torch.randint(0, 256, (3, C, 9, 7), generator=random, dtype=torch.uint8)
            expected = head.plain_log_prob(features, images)
            slopes = torch.autograd.grad(expected.sum(), features)[0]
            given = features.detach().float().to(device).requires_grad_()
            found = log_prob(given, images.to(device), *settings)
            found_slopes = torch.autograd.grad(found.sum(), given)[0]
            for what, ours, theirs in (("", found, expected), ("gradient of the ", found_slopes, slopes)):
                error = (ours.detach().double().cpu() - theirs.detach()).abs() / (1 + theirs.detach().abs())
                if not error.max() <= TOLERANCE:
                    return f"{name}, {C} channels: the {what}log-likelihood is off by {float(error.max()):.2g}"
    return None


def _images(count: int, C: int, H: int, W: int) -> torch.Tensor:
    """Smooth images with some noise, the same everywhere: (count, C, H, W) uint8."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, C, H // 4, W // 4, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, (H, W), mode="bilinear", align_corners=False)
    return (255 * smooth + 16 * torch.rand(smooth.shape, generator=random) - 8).clamp(0, 255).to(torch.uint8)


def main(arguments: Sequence[str]) -> int:
    """Hold the trial of a name on a device: the process that :func:`run` starts."""
    name, device = arguments
    if name == LIKELIHOOD or ENGINES[name].gpu:
        try:
            torch.cuda.set_device(int(device))
            torch.empty(1, device="cuda")
        except RuntimeError as error:  # such as another process that has the GPU for itself
            return _say(error, UNTRIED)
    engine = None if name == LIKELIHOOD else select(name)  # on the GPU that is current now
    try:
        found = _judge(engine, int(device))
    except (torch.OutOfMemoryError, MemoryError) as error:
        return _say(error or "out of memory", UNTRIED)
    except RuntimeError as error:
        if "out of memory" in str(error):  # as a driver says it that is asked past torch's allocator
            return _say(error, UNTRIED)
        raise
    return 0 if found is None else _say(found, WRONG)


def _judge(engine: Engine | None, device: int) -> str | None:
    """What is wrong with an engine, or with the likelihood (None)."""
    if engine is None:
        return judge_likelihood()
    if engine.name != "cuda":
        return judge_engine(engine)
    count, ways = plans_of(device)
    return judge_engine(engine, count=count, ways=ways)


def _say(what: object, code: int) -> int:
    print(" ".join(str(what).split()))
    return code
