"""Trying a GPU's kernels before they are relied upon: once a machine, in a process of its own.

A kernel that is wrong for a GPU or a driver can hang, or spoil every later call of its process. So when engine='auto'
first comes to an engine of a GPU, another process purifies a few images with it, and one forward pass of the network
judges them (:mod:`pxfast.pixeldefend.verify`); and when a likelihood is first asked for on a GPU, another process
compares the fused kernel with plain torch. The verdict is kept by :mod:`pxfast.kernels.trust`, which starts this
program by its name. Nobody imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..engines.choosers import Greedy
from ..engines.registry import Engine, select
from ..engines.schedule import schedule_for
from ..kernels.trust import LIKELIHOOD, UNTRIED, WRONG
from ..pixelcnn.heads import HEADS, LogisticHead, make_head
from ..pixelcnn.shipped import load
from .verify import verify

# shipped models and precisions that are tried (None: the engine's best); images decoded together, which fill no tile of
# any engine evenly, and those of them that are judged
CASES = (("fashion-mnist", None), ("fashion-mnist", "fp32"), ("cifar10", None))
IMAGES, JUDGED = 21, 3
EPS = 16
TOLERANCE = 1e-3  # of log-probabilities and their gradients, absolute and relative: wrong kernels are further off


def judge_engine(engine: Engine, cases: Sequence[tuple[str, str | None]] = CASES) -> str | None:
    """What is wrong with the images that an engine purifies here; None where nothing is."""
    for name, wish in cases:
        model, precision = load(name), wish or engine.best_precision()
        images = _images(model.config.channels, *model.config.image_size)
        schedule = schedule_for(model)
        together = engine.decode(schedule, images, Greedy(EPS), precision=precision)
        alone = engine.decode(schedule, images[-1:], Greedy(EPS), precision=precision)
        if not torch.equal(alone, together[-1:]):
            return f"{name}, {precision}: an image alone does not become what it becomes among {len(images)}"
        found = verify(images[-JUDGED:], together[-JUDGED:], EPS, model=model, precision=precision)
        if not found.passed:
            return f"{name}, {precision}: {found}"
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


def _images(C: int, H: int, W: int) -> torch.Tensor:
    """Smooth images with some noise, the same everywhere: (IMAGES, C, H, W) uint8."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(IMAGES, C, H // 4, W // 4, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, (H, W), mode="bilinear", align_corners=False)
    return (255 * smooth + 16 * torch.rand(smooth.shape, generator=random) - 8).clamp(0, 255).to(torch.uint8)


def main(arguments: Sequence[str]) -> int:
    """Hold the trial of a name on a device: the process that :func:`run` starts."""
    name, device = arguments
    engine = None if name == LIKELIHOOD else select(name)
    if engine is None or engine.gpu:
        try:
            torch.cuda.set_device(int(device))
            torch.empty(1, device="cuda")
        except RuntimeError as error:  # such as another process that has the GPU for itself
            return _say(error, UNTRIED)
    try:
        found = judge_likelihood() if engine is None else judge_engine(engine)
    except torch.OutOfMemoryError as error:
        return _say(error, UNTRIED)
    return 0 if found is None else _say(found, WRONG)


def _say(what: object, code: int) -> int:
    print(" ".join(str(what).split()))
    return code
