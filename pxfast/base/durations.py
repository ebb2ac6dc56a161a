"""How long work took the last time, by what it depends on; and telling of work that can't be counted by that."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from . import environment
from .checks import is_number
from .kept import read_kept, write_kept
from .progress import waiting

FORMAT = "pxfast-durations"
SHORT = 5.0  # seconds: what takes less is not worth a note
MOST = 200  # durations that are kept, the latest ones
LONGEST = 1e9  # seconds, of 32 years


def record_file() -> Path:
    """Where durations are kept: pxfast/durations.json where the user keeps caches. It may be deleted at any time."""
    return environment.cache_folder() / "durations.json"


def last_time(what: str) -> float | None:
    """How many seconds it took the last time; None where nobody knows."""
    return _read().get(what)


def keep_time(what: str, seconds: float) -> None:
    """It took so many seconds now."""
    kept = _read()
    kept.pop(what, None)
    latest = [*kept.items(), (what, seconds)][-MOST:]
    write_kept(record_file(), FORMAT, "seconds", dict(latest))


def in_words(seconds: float) -> str:
    """Such as '04:52', in minutes and seconds, or with hours before them."""
    return str(tqdm.format_interval(seconds))


@contextlib.contextmanager
def phase(title: str, what: str, *, shown: bool, usual: float | None = None) -> Iterator[None]:
    """A piece of work of which nothing can be counted: ``title`` says what it is, and the last time how long it takes.

    what: all that its duration depends on. usual: seconds to speak of where nobody knows the last time. shown: tell of
    it on standard error, if it takes longer than a second.
    """
    last = last_time(what) if shown else None
    hint = f"{in_words(last)} last time" if last is not None else ""
    if last is None and usual is not None:
        hint = f"some {in_words(usual)} as a rule"
    started = time.monotonic()
    with waiting(title, shown=shown, hint=hint):
        yield
    took = time.monotonic() - started
    if took >= SHORT or (last is not None and abs(took - last) > SHORT):
        keep_time(what, took)


def _read() -> dict[str, float]:
    good = lambda value: is_number(value) and 0 <= value <= LONGEST  # noqa: E731
    return read_kept(record_file(), FORMAT, "seconds", good)
