"""How long work tells of its progress."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from tqdm import tqdm


@contextlib.contextmanager
def reporting(total: int, progress: bool | Callable[[int], None]) -> Iterator[Callable[[int], None]]:
    """What to call with the number of images finished: ``progress`` itself, or a bar's update, shown if it is True."""
    with tqdm(total=total, unit="image", disable=progress is not True) as bar:

        def advance(finished: int) -> None:
            bar.update(finished - bar.n)

        yield progress if callable(progress) else advance
