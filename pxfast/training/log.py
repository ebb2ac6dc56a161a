"""The log of a training: a line of JSON for each measurement, and the same for TensorBoard where that is installed."""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.util
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..base import environment
from ..base.checks import integer_of, is_number
from ..base.reading import parse_json, regular_file
from ..base.streams import note
from .checkpoints import remove_checkpoint

INTERVAL = 10.0  # seconds between two lines, where nothing else is measured
LONGEST_LINE = 1 << 16  # bytes
CHECKPOINT = "checkpoint"  # what lines have that were written just before one: whether it is there
PLANNED, KEPT = (f'"{CHECKPOINT}": {word}}}\n'.encode() for word in ("false", "true "))  # of one length
EVENTS = "events.out.tfevents.*"  # what TensorBoard's files are called


def log_path(out: str | os.PathLike[str]) -> Path:
    """Where a run that writes ``out`` keeps its log."""
    return Path(out).with_suffix(".log.jsonl")


def events_path(out: str | os.PathLike[str]) -> Path:
    """The folder of TensorBoard's files of a run that writes ``out``."""
    return Path(out).with_suffix(".tensorboard")


def writes_events() -> bool:
    """Whether trainings here write files for TensorBoard: it is installed, and ``PXFAST_TENSORBOARD`` is not 0."""
    return environment.tensorboard() and importlib.util.find_spec("tensorboard") is not None


class TrainingLog:
    """A log that a run writes, a line at a time: each is there whole or not at all, after kill -9 as well.

    out: the run's output. own: whether lines that are there already are of this run's earlier part. force: whether a
    file that appears meanwhile may be replaced. replaced: the checkpoint of an earlier run that this one replaces: it
    goes with that run's lines, since a run that is resumed goes on with both.
    """

    def __init__(self, out: str | os.PathLike[str], *, own: bool, force: bool, replaced: Path | None = None) -> None:
        self.path: Path = log_path(out)
        self.events: Path | None = events_path(out) if writes_events() else None
        self.own = own
        self.force = force
        self.replaced = replaced
        self.last_step: int = -1
        self.written_at: float = time.monotonic()
        self._last_line: int = 0  # where it begins, in bytes
        self._descriptor: int | None = None
        self._writer: Any = None

    def begin(self, step: int) -> None:
        """Go on behind the lines of the steps up to this one; later ones were of steps that are taken again.

        ValueError, naming the file, where lines that are there are none of a training.
        """
        if self.own and os.path.lexists(self.path):
            self._last_line, end, self.last_step = _lines_up_to(self.path, step)
            os.truncate(self.path, end)
            if self.last_step == step:  # the run was killed before its line could say that the checkpoint is there
                self.checkpoint_kept()
        self.written_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last line was written long enough ago."""
        return time.monotonic() - self.written_at >= INTERVAL

    def write(self, step: int, values: Mapping[str, float], *, checkpoint: bool = False) -> None:
        """A line of what was measured after a step. OSError, which names the file, where the disk is full.

        checkpoint: whether one of this step is about to be written; :meth:`checkpoint_kept` is called when it is there.
        """
        if step <= self.last_step:
            return
        told = {"step": step, **values, **({CHECKPOINT: False} if checkpoint else {})}
        line = (json.dumps(told) + "\n").encode()
        if self._descriptor is None:
            self._open()
        assert self._descriptor is not None
        before = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):  # a pipe, or another file that can't be cut
                os.ftruncate(self._descriptor, before)
            raise OSError(error.errno, error.strerror, os.fspath(self.path)) from error
        self._last_line, self.last_step, self.written_at = before, step, time.monotonic()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def checkpoint_kept(self) -> None:
        """The checkpoint that the last line tells of is there now, which the line says from here on.

        It is written over in place: a run that was killed has that line as it was or as it should be.
        """
        # a log that can't be written over, such as a pipe, may later be taken for one of a run without a checkpoint
        with contextlib.suppress(OSError), open(self.path, "rb+", buffering=0) as file:
            file.seek(self._last_line)
            line = file.readline()
            if line.endswith(PLANNED):
                file.seek(self._last_line + len(line) - len(PLANNED))
                file.write(KEPT)

    def close(self) -> None:
        """No more lines come."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> None:
        new = 0 if self.own else os.O_TRUNC if self.force else os.O_EXCL
        if self.replaced is not None:
            remove_checkpoint(self.replaced)
        try:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | new, 0o666)
        except FileExistsError:
            raise FileExistsError(
                f"{self.path} exists already: it appeared while this was running, and is not replaced without --force "
                "(force=True)"
            ) from None
        if self.events is not None:
            self._writer = _events_writer(self.events, self.last_step + 1 if self.own and self.last_step >= 0 else None)


def has_checkpoint(path: Path) -> bool:
    """Whether a log is of a run that is sure to have come to a checkpoint; one of another is worth nothing.

    A line is written before the checkpoint of which it tells, and says that this is there only when it is.
    ValueError, naming the file, unless it holds the lines of a training's log.
    """
    kept = [checkpoint for _, _, checkpoint in _lines(path)]  # all lines are looked at
    return any(kept)


def _lines_up_to(path: Path, step: int) -> tuple[int, int, int]:
    """Where the last of the lines up to a step begins and ends, in bytes, and its step, -1 where there is none."""
    begin, end, last = 0, 0, -1
    for size, found, _ in _lines(path):
        if found <= step:
            begin, end, last = end, end + size, found
    return begin, end, last


def _lines(path: Path) -> Iterator[tuple[int, int, bool]]:
    """Of each line of a log: its bytes, its step, and whether a checkpoint of it was there.

    A last line without an end is left out: its writing was cut off. ValueError for a line that is none of a log.
    """
    before = 0
    with open(regular_file(path), "rb") as file:
        for number in itertools.count(1):
            line = file.readline(LONGEST_LINE)
            if not line.endswith(b"\n") and len(line) < LONGEST_LINE:
                return
            values = _values_of(line)
            step = integer_of(values.pop("step", None))
            checkpoint = values.pop(CHECKPOINT, False)
            if step is None or step <= before or not all(map(is_number, values.values())):
                raise ValueError(f"{path}: line {number} is no measurement of a training; move the file away")
            before = step
            yield len(line), step, checkpoint is True


def _values_of(line: bytes) -> dict[str, Any]:
    """What a line says; nothing where it is no table."""
    try:
        values = parse_json(line.decode("utf-8"), "it", finite=True)
    except ValueError:  # UnicodeDecodeError is one
        return {}
    return values if isinstance(values, dict) else {}


def _events_writer(folder: Path, purge_step: int | None) -> Any:
    """What writes TensorBoard's files to a folder; None where it can't be imported.

    purge_step: later steps of an earlier part of the run are not shown; None: neither is anything that is there.
    """
    try:
        kind = importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except Exception as error:  # such as of a protobuf that does not fit
        note(f"no files for TensorBoard, which can't be imported: {' '.join(str(error).split())}")
        return None
    if purge_step is None:
        for file in folder.glob(EVENTS):
            with contextlib.suppress(FileNotFoundError):
                file.unlink()
    return kind(os.fspath(folder), purge_step=purge_step, max_queue=1)
