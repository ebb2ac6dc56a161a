"""How long work tells of its progress: by bars in a terminal, elsewhere by a line now and then, on standard error."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

from .streams import note

LINE_INTERVAL = 30.0  # seconds from one line to the next
PATIENCE = (
    1.0  # seconds before work is told of that can't be counted, and from one look of it in a terminal to the next
)


class Progress:
    """How far some work is: ``done`` of ``total`` units. This class shows nothing; its children do.

    total: None where nobody knows it. unit: what is counted, in the singular.
    """

    def __init__(self, total: int | None = None, unit: str = "image", done: int = 0) -> None:
        self.total: int | None = total
        self.unit = unit
        self.done: int = done
        self.title: str = ""
        self.note: str = ""
        self._begun = time.monotonic(), done

    @property
    def rate(self) -> float:
        """Units a second; 0 before the first of them."""
        since, before = self._begun
        return (self.done - before) / max(time.monotonic() - since, 1e-9)

    def advance(self, count: int = 1) -> None:
        """``count`` more units are done."""
        self.reach(self.done + count)

    def reach(self, done: int) -> None:
        """``done`` units are done by now."""
        self.done = done
        self.show()

    def entitle(self, title: str) -> None:
        """Say what is being done, in front of the count."""
        self.title = title

    def annotate(self, note: str) -> None:
        """Say more, behind the count."""
        self.note = note

    def turn_to(self, title: str, done: int, total: int) -> None:
        """Show other work than before, or the same further on."""
        if title != self.title:
            self._begun = time.monotonic(), done
        self.title = title
        self.total = total
        self.reach(done)

    def show(self) -> None:
        """Bring the display up to date, where that is due."""

    def close(self) -> None:
        """Nothing more is done."""


class Bar(Progress):
    """A bar in a terminal. leave: whether it stays there when it is closed."""

    def __init__(self, total: int | None, unit: str, done: int, *, leave: bool) -> None:
        super().__init__(total, unit, done)
        self._bar = tqdm(total=total, unit=unit, initial=done, leave=leave, mininterval=0.2, file=sys.stderr)

    @property
    def rate(self) -> float:
        return float(self._bar.format_dict["rate"] or 0.0)

    def entitle(self, title: str) -> None:
        super().entitle(title)
        self._bar.set_description_str(title)

    def annotate(self, note: str) -> None:
        super().annotate(note)
        self._bar.set_postfix_str(note, refresh=False)

    def turn_to(self, title: str, done: int, total: int) -> None:
        self._bar.set_description_str(title, refresh=False)
        self._bar.total, self._bar.n = total, done
        super().turn_to(title, done, total)
        self._bar.refresh()

    def show(self) -> None:
        self._bar.update(self.done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class Lines(Progress):
    """A line every ``LINE_INTERVAL`` seconds, for logs and pipes.

    leave: whether a last line says how it ended, and whether lines are written when nothing comes to an end for long.
    """

    def __init__(self, total: int | None, unit: str, done: int, *, leave: bool) -> None:
        super().__init__(total, unit, done)
        self.leave = leave
        self._told = self._begun
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._tell_of_silence, daemon=True)
        if leave:
            self._watch.start()

    def show(self) -> None:
        ended = self.leave and self.done == self.total  # of which the last line tells
        if not ended and time.monotonic() - self._told[0] >= LINE_INTERVAL:
            self._tell()

    def close(self) -> None:
        self._closed.set()
        if self._watch.ident is not None:
            self._watch.join()
        if self.leave and self.done != self._told[1]:
            self._tell()

    def line(self) -> str:
        """Such as 'clean: 64/500 images, 3.2 images/s, 2:16 left, loss 3.1'."""
        units = f"{self.unit}s"
        parts = [f"{self.done} {units}" if self.total is None else f"{self.done}/{self.total} {units}"]
        rate = self.rate
        if rate > 0:
            parts.append(f"{rate:.3g} {units}/s")
            if self.total is not None and self.done < self.total:
                parts.append(f"{tqdm.format_interval((self.total - self.done) / rate)} left")
        if self.note:
            parts.append(self.note)
        title = self.title.strip()
        return (f"{title}: " if title else "") + ", ".join(parts)

    def _tell(self) -> None:
        self._told = time.monotonic(), self.done
        note(self.line())

    def _tell_of_silence(self) -> None:
        """Until this is closed, write a line whenever the last one is too long ago."""
        while not self._closed.wait(max(0.0, self._told[0] + LINE_INTERVAL - time.monotonic())):
            if time.monotonic() - self._told[0] >= LINE_INTERVAL:
                self._tell()


@contextlib.contextmanager
def progress_of(
    total: int | None, unit: str = "image", *, shown: bool, done: int = 0, leave: bool = True
) -> Iterator[Progress]:
    """What to tell how far some work is, which starts at ``done`` of ``total`` units; see :class:`Progress`.

    shown: False shows nothing, and neither does a process without standard error. leave: whether a trace of finished
    work stays.
    """
    progress: Progress
    if not shown or sys.stderr is None:
        progress = Progress(total, unit, done)
    elif sys.stderr.isatty():
        progress = Bar(total, unit, done, leave=leave)
    else:
        progress = Lines(total, unit, done, leave=leave)
    try:
        yield progress
    finally:
        progress.close()


@contextlib.contextmanager
def waiting(title: str, *, shown: bool, hint: str = "") -> Iterator[None]:
    """Tell of work that can't be counted, once it has taken a second: what it is, and for how long it has lasted.

    hint: how long it may take. shown: False shows nothing, and neither does a process without standard error. A last
    line says how long it took.
    """
    if not shown or sys.stderr is None:
        yield
        return
    ended, told = threading.Event(), threading.Event()
    started = time.monotonic()
    name = f"{title} ({hint})" if hint else title

    def tell() -> None:
        if ended.wait(PATIENCE):
            return
        told.set()
        if not sys.stderr.isatty():
            note(name)
            while not ended.wait(LINE_INTERVAL):
                note(f"{name}: {_since(started)} so far")
            return
        with tqdm(bar_format="{desc}", leave=False, file=sys.stderr) as line:
            while True:
                line.set_description_str(f"{name}: {_since(started)}")
                if ended.wait(PATIENCE):
                    return

    watch = threading.Thread(target=tell, daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()
    if told.is_set():
        note(f"{title}: took {_since(started)}")


def _since(started: float) -> str:
    return str(tqdm.format_interval(time.monotonic() - started))


@contextlib.contextmanager
def reporting(
    total: int, progress: bool | Callable[[int], None], unit: str = "image", *, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """What to call with the number of units finished: ``progress`` itself, or what shows it if that is True."""
    with progress_of(total, unit, shown=progress is True, done=done) as shown:
        yield progress if callable(progress) else shown.reach
