"""A training run from where it stands to its end: what is told of it, what is kept, its log, and Ctrl-C."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..base.durations import SHORT, keep_time, phase
from ..base.progress import progress_of
from .compilation import compiling_key, duration_key, step_key, usual_compiling
from .log import TrainingLog
from .run import TrainingRun

ANNOTATED = 1.0  # seconds, between two texts behind the bar where steps are slow
LONG_ENOUGH = 6 * SHORT  # seconds of steps that tell how long one takes


@contextlib.contextmanager
def deferred_interrupt(patient: bool = False) -> Iterator[threading.Event]:
    """Let a first Ctrl-C only set the event, so that a step is finished and kept; a second one interrupts at once.

    patient: further ones do nothing either; torchrun passes on a Ctrl-C that its processes have got already.
    Python delivers signals to the main thread; elsewhere this does nothing.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGINT)

    def handler(number: int, frame: Any) -> None:
        asked.set()
        if not patient:
            signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, handler)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


class Meter:
    """What the steps came to since the last line of the log."""

    def __init__(self, run: TrainingRun) -> None:
        self.run = run
        self._sums: dict[str, float] = {}
        self._since: int = run.step
        self._timed_since: tuple[int, float] = (run.step, run.seconds)

    def start_clock(self) -> None:
        """The rate is that of the steps from here on: the first one may have been compiled, which takes minutes."""
        self._timed_since = (self.run.step, self.run.seconds)

    def add(self, found: Any) -> None:
        """Another step gave ``found``."""
        for name, value in self.run.losses(found).items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def line(self) -> dict[str, float]:
        """The means of the losses, the last rates, and images a second; the next line begins anew."""
        run = self.run
        steps, (timed_step, timed_seconds) = run.step - self._since, self._timed_since
        timed, seconds = run.step - timed_step, run.seconds - timed_seconds
        values = {"seconds": round(run.seconds, 3)}
        if steps:
            values |= {name: total / steps for name, total in self._sums.items()}
            values |= run.rates()
        if timed:
            values["images_per_second"] = round(timed * run.settings.batch_size / max(seconds, 1e-9), 3)
        self._sums, self._since, self._timed_since = {}, run.step, (run.step, run.seconds)
        return values


def run_to_the_end(
    run: TrainingRun,
    keep: Callable[[], None],
    describe: Callable[[Any], str],
    *,
    config: Any,
    log: TrainingLog | None,
    measure: Callable[[], dict[str, float]] = dict,
    checkpoint_interval: float,
    progress: bool,
) -> None:
    """Take the steps that are left, show how far they are, and ``keep`` every so many seconds and at the end.

    describe: gets what every ``train_step`` returns, and gives the text to show behind the bar. measure: is called
    before ``keep``, and gives what the log gets besides losses and rates. log: None in all processes but the first one.
    config: of the network. Ctrl-C ends the run after the step at hand, with everything kept, and raises
    KeyboardInterrupt.
    """
    settings, device = run.settings, run.processes.device
    kept_at = time.monotonic()
    over, stopping, text = run.progress >= 1.0, False, ""
    total = run.total_steps if settings.budget is None else None
    meter = Meter(run)

    def advance() -> str:
        found = run.train_step()
        meter.add(found)
        return describe(found)

    def keep_all() -> None:
        measured = measure()
        if log is not None:  # before the checkpoint: a run that is resumed drops the lines behind that
            log.write(run.step, {**meter.line(), **measured}, checkpoint=True)
        keep()
        if log is not None:
            log.checkpoint_kept()

    with contextlib.ExitStack() as stack:
        interrupted = stack.enter_context(deferred_interrupt(patient=run.processes.count > 1))
        if log is not None:
            stack.callback(log.close)
            log.begin(run.step)
        if not over:
            title, what, usual = "the first step", duration_key("the first step", config, settings, device), None
            if settings.compile:
                title, what = "compiling the steps", compiling_key(config, settings, device)
                usual = usual_compiling(device)
            with phase(title, what, shown=progress, usual=usual):
                text = advance()
            meter.start_clock()
        first = run.step, run.seconds
        shown = stack.enter_context(progress_of(total, "step", shown=progress, done=run.step))
        shown.entitle("training")
        annotated_at = -math.inf
        while not over:
            stopping = run.agree(interrupted.is_set())
            over = run.progress >= 1.0 or stopping
            if run.step % 10 == 0 or time.monotonic() - annotated_at >= ANNOTATED:
                annotated_at = time.monotonic()
                left = f"{100 * run.progress:.0f} % of budget, " if settings.budget is not None else ""
                rate = f", {shown.rate * settings.batch_size:.0f} images/s" if shown.rate else ""
                shown.annotate(f"{left}{text}{rate}")
            shown.reach(run.step)
            if not over and time.monotonic() - kept_at >= checkpoint_interval:  # at the end all is kept below
                shown.entitle("measuring and keeping")
                keep_all()
                shown.entitle("training")
                kept_at = time.monotonic()
            elif log is not None and log.due and not over:
                log.write(run.step, meter.line())
            if not over:
                text = advance()
        shown.entitle("measuring and keeping")
        keep_all()
        shown.entitle("training")
        steps, seconds = run.step - first[0], run.seconds - first[1]
        if run.processes.first and steps and seconds >= LONG_ENOUGH:
            keep_time(step_key(config, settings, device), seconds / steps)
    if stopping:
        raise KeyboardInterrupt(f"training stopped at step {run.step}")
