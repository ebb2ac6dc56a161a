"""What all trainings are told: how long, at what rate, and on what sequence of images."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable
from typing import ClassVar, TypeVar

from ..base.checks import (
    check_count,
    check_flag,
    check_instance,
    check_number,
    check_precision,
    check_seed,
    put,
)
from .processes import Processes

MOST_RUNS = 1 << 40  # seeds, each of which has a range of the generators


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """How long to train, at what rate, and on what sequence of images.

    The run ends after ``epochs``, or after ``budget`` seconds spent in training steps (over all resumed parts; with
    their compiling, but not with reading data, checkpoints, validation and the measurement at the end) when that is
    given. The learning rate falls along a cosine to zero at the end of the
    run. ``horizontal_flips``: of every second image. ``precision``: 'bf16' (autocast), 'fp32', or 'auto': the faster
    one of the device (:func:`pxfast.base.machine.torch_prefers_bf16`), of a resumed run its own. ``compile``: use
    torch.compile (minutes to start, then faster); None: where the run is long enough for it to pay
    (:mod:`pxfast.training.compilation`). ``seed``: 0 to 2^40 - 1. TypeError or ValueError names what is wrong.
    """

    batch_size: int
    epochs: float
    budget: float | None = None
    learning_rate: float = 0.0
    horizontal_flips: bool | None = False
    precision: str = "auto"
    compile: bool | None = False
    seed: int = 0

    flips_by_data_set: ClassVar[bool] = False  # whether horizontal_flips may be None: as the data set wants it

    def __post_init__(self) -> None:
        self._count("batch_size", least=1)
        if self.budget is not None:
            self._number("budget", ends="()")
        self._number("epochs", "learning_rate", ends="()")
        if self.horizontal_flips is not None or not self.flips_by_data_set:
            put(self, horizontal_flips=check_flag("horizontal_flips", typing.cast("bool", self.horizontal_flips)))
        put(
            self,
            precision=check_precision(self.precision),
            compile=None if self.compile is None else check_flag("compile", self.compile),
            seed=check_seed(self.seed, MOST_RUNS),
        )

    def measuring(self, what: str) -> str:
        """What to call the measurement of ``what`` at the end of a run."""
        return f"measuring {what}" + ("" if self.budget is None else ", which the budget does not count")

    def steps_of(self, images: int) -> int:
        """Steps of the whole run over so many images, where it is bounded by epochs."""
        return max(1, round(self.epochs * max(1, images // self.batch_size)))

    def _count(self, *fields: str, least: int = 0) -> None:
        put(self, **{field: check_count(field, getattr(self, field), least) for field in fields})

    def _number(self, *fields: str, low: float = 0.0, high: float = math.inf, ends: str = "[]") -> None:
        for field in fields:
            value = getattr(self, field)
            found = check_number(field, value, low, high, ends=ends)
            if type(value) not in (int, float):  # NumPy's; Python's stay as they are in a file's notes
                put(self, **{field: found})


Settings = TypeVar("Settings", bound=RunSettings)


def run_settings(
    settings: Settings | None,
    kind: type[Settings],
    *,
    resume: bool,
    force: bool,
    progress: bool,
    checkpoint_interval: float,
    processes: Processes | None,
) -> Settings:
    """A run's settings, by default those of ``kind``. TypeError or ValueError for other kinds and other options."""
    for name, flag in (("resume", resume), ("force", force), ("progress", progress)):
        check_flag(name, flag)
    check_number("checkpoint_interval", checkpoint_interval, 0.0)
    if processes is not None:
        check_instance("processes", processes, Processes)
    if settings is None:
        return typing.cast("Callable[[], Settings]", kind)()
    return typing.cast("Settings", check_instance("settings", settings, kind))
