"""Small trained models on which engines are held to their promises, and how a result is judged."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from support.engines import engines_with
from support.helpers import noisy, real_images, trained_model
from torch import Tensor

from pxfast.engines.choosers import Greedy
from pxfast.engines.registry import select
from pxfast.engines.schedule import schedule_for
from pxfast.engines.settings import DecodeSettings
from pxfast.pixelcnn.network import PixelCNN
from pxfast.pixeldefend.verify import verify


@dataclasses.dataclass(frozen=True)
class Case:
    """A model's shape, and for how many steps it is trained."""

    head: str
    channels: int
    size: tuple[int, int]
    filters: int
    resnets: int
    steps: int = 16  # a step of the wide ones is long

    @property
    def slow(self) -> bool:
        """Whether it is too much work for the reference engine, which evaluates the whole network at every pixel."""
        return math.prod(self.size) > 32

    def __str__(self) -> str:
        return f"{self.head}-{self.channels}x{self.size[0]}x{self.size[1]}-f{self.filters}-r{self.resnets}"

    def model(self) -> PixelCNN:
        return trained_model(self.size, self.channels, self.filters, self.resnets, self.head, self.steps)


SMALL, TINY = Case("logistic", 3, (8, 12), 10, 1), Case("logistic", 3, (4, 4), 10, 1)
CASES = [
    TINY,
    Case("logistic", 1, (8, 4), 8, 1),
    Case("softmax", 3, (4, 4), 9, 1),
    Case("logistic", 1, (4, 4), 1, 1),  # the caches' padding is as large as what they hold
    Case("logistic", 1, (8, 8), 8, 1),
    SMALL,
    Case("softmax", 1, (12, 8), 17, 2, steps=8),  # odd: caches and vector lanes have a remainder
    Case("softmax", 3, (8, 8), 9, 1),
    Case("logistic", 1, (8, 8), 1, 1),
    Case("logistic", 3, (8, 8), 24, 3),
    Case("logistic", 3, (12, 16), 40, 1),
    Case("logistic", 1, (8, 12), 48, 1, steps=8),
    Case("logistic", 3, (32, 32), 8, 1),
    Case("softmax", 3, (16, 8), 24, 2, steps=8),
    Case("logistic", 1, (28, 28), 16, 1),  # an odd number of positions, 7 x 7, on the coarsest level
    Case("logistic", 1, (12, 8), 33, 1, steps=8),
]
# of the inner loop: every head, one channel and three, remainders of vectors, two layers
FEW = [*CASES[:4], SMALL, CASES[6]]


def small(engine: str) -> Case:
    """A case on which an engine may be asked for several decodes."""
    return TINY if engine == "reference" else SMALL


def with_engines(
    name: str,
    values: Iterable[Any],
    too_slow: Callable[[Any], bool],
    whole: Callable[[str, Any], bool] = lambda engine, value: False,
) -> pytest.MarkDecorator:
    """Gives a test every engine with every value; see :func:`support.engines.engines_with`."""
    return pytest.mark.parametrize(("engine", name), engines_with(values, too_slow, whole))


def decode(engine: str, model: PixelCNN, images: Tensor, eps: int, precision: str, **settings) -> Tensor:
    settings = DecodeSettings(**settings)
    return select(engine).decode(schedule_for(model), images, Greedy(eps), precision=precision, settings=settings)


def images_size(case: Case) -> int:
    """Sub-pixels of an image."""
    return case.channels * case.size[0] * case.size[1]


def attacked(case: Case, count: int) -> Tensor:
    return noisy(real_images(case.channels, case.size, count))


def assert_exact(model: PixelCNN, images: Tensor, result: Tensor, eps: int, precision: str) -> None:
    """Promise 1 and 3, for one result."""
    assert result.dtype == torch.uint8
    assert result.shape == images.shape
    verdict = verify(images, result, eps, model=model, precision=precision)
    assert verdict.bounded
    assert verdict.regret.isfinite().all()
    assert verdict.passed, f"{verdict}"


@torch.no_grad()
def runner_up_margin(model: PixelCNN, images: Tensor, given: Tensor, eps: int) -> Tensor:
    """Log-probability of the best value in range minus that of the second best: (N, C, H, W) nats."""
    distance = (torch.arange(256) - given.int().unsqueeze(-1)).abs()
    best = model.log_probs(images).masked_fill(distance > eps, -torch.inf).topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


def assert_largest_below_255(model: PixelCNN, images: Tensor, result: Tensor, precision: str) -> None:
    """What :func:`wide_component_model` asks for, with eps 3: 255 has the tail, where it is in range."""
    assert torch.equal(result.int(), (images.int() + 3).clamp(max=255))
    assert_exact(model, images, result, 3, precision)
