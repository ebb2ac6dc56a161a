"""The files of a training run, its model, checkpoint and log, which belong to one run at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..base.files import OwnFile, check_encodable, claimed, refuse_existing, refuse_folder
from ..base.reading import regular_file
from ..base.streams import note
from ..base.unfinished import remove_leftovers
from ..tensors.safetensors import metadata_table
from .log import TrainingLog, events_path, has_checkpoint, log_path, writes_events
from .processes import Processes, is_first
from .provenance import training_parts
from .run import OF_THE_MACHINE, checkpoint_path


@dataclasses.dataclass(frozen=True)
class RunOutputs:
    """model: the file for the weights. checkpoint: the path of the whole state. resumed: whether to go on from it.
    log: of what is measured, in the process that writes files.
    """

    model: OwnFile
    checkpoint: Path
    resumed: bool
    log: TrainingLog | None


@contextlib.contextmanager
def run_outputs(
    out: str | os.PathLike[str], *, resume: bool, force: bool, processes: Processes | None = None, progress: bool = True
) -> Iterator[RunOutputs]:
    """The files of a run that writes ``out``, after a look at what is there already; no other run may write them now.

    A run that is to be resumed but has no checkpoint, because it was killed before the first one, begins anew; a line
    on standard error says so where ``progress`` is shown. Where ``force`` replaces another run, that one's checkpoint
    is removed with its log when the first line is written, and its model is replaced by the first one of this run. Of
    several ``processes`` the first one claims the files.
    Raises FileNotFoundError when the folder does not exist: now, not when the first checkpoint is due. FileExistsError
    when ``out``, its checkpoint or its log exists and neither ``resume`` nor ``force`` is set, or when ``out`` is not
    of the run that is to be resumed. IsADirectoryError when ``out`` is a folder, BlockingIOError when another process
    trains to the same files. ValueError when a log is there that is none, or ``out`` can't be a training's output
    (:func:`pxfast.training.run.checkpoint_path`).
    """
    first = processes is None or processes.first
    path, checkpoint, log = Path(out), checkpoint_path(out), log_path(out)
    check_encodable(path)
    with contextlib.ExitStack() as stack:
        for target in sorted({path, checkpoint, log}) if first else ():
            stack.enter_context(claimed(target))
            remove_leftovers(target)
        refuse_folder(path)
        unfinished = False
        resumed = resume and checkpoint.exists()
        if resume and not resumed:
            if path.exists() and not force:
                raise FileExistsError(
                    f"{path} exists, but not {checkpoint}, from which its training could be resumed; pass --force "
                    "(force=True) to train it anew"
                )
            if log.exists() and not force:
                has_checkpoint(log)  # or ValueError: it is no log
            note(f"there is no checkpoint {checkpoint}: the training begins anew", quiet=not (progress and first))
        elif not resume:
            refuse_existing(path, force=force)
            refuse_existing(checkpoint, force=force)
            unfinished = log.is_file() and not force and _is_worthless(log)
            refuse_existing(log, force=force or unfinished)
            if writes_events():
                refuse_existing(events_path(out), force=force or unfinished)
        elif path.exists() and not force and not _is_of_the_run(path, checkpoint):
            raise FileExistsError(
                f"{path} exists, and its training was not the one of {checkpoint}; move it away, or pass --force "
                "(force=True) to replace it"
            )
        replaced = checkpoint if force and not resumed else None
        may_replace = force or resume or unfinished
        lines = TrainingLog(out, own=resumed, force=may_replace, replaced=replaced) if first else None
        yield RunOutputs(OwnFile(path, force=force, own=resumed), checkpoint, resumed, lines)


def _is_worthless(log: Path) -> bool:
    """Whether a log, of which there is no checkpoint, is of a run that was killed before its first one was there."""
    try:
        return not has_checkpoint(log)
    except ValueError:  # no log
        return False


def check_run_outputs(out: str | os.PathLike[str], *, resume: bool, force: bool) -> None:
    """Raise what :func:`run_outputs` would: before data and networks are loaded. Of many processes the first one looks.

    It is for the process's own beginning, when it knows no :class:`Processes` yet.
    """
    if is_first():
        with run_outputs(out, resume=resume, force=force, progress=False):
            pass


def earlier_parts(model: Path, checkpoint: Path) -> list[dict[str, Any]]:
    """The runs that a model's file tells of before the last one, where that is the run of the checkpoint; else none."""
    if not model.exists() or not _is_of_the_run(model, checkpoint):
        return []
    return training_parts(metadata_table(_metadata(model), "notes", model))[:-1]


def _is_of_the_run(model: Path, checkpoint: Path) -> bool:
    """Whether a model's file was written with the settings of a checkpoint; True for what is no checkpoint."""
    try:
        settings = metadata_table(_metadata(checkpoint), "settings", checkpoint)
    except (OSError, ValueError, SafetensorError):
        return True  # of which the trainer will say what is wrong with it
    try:
        parts = training_parts(metadata_table(_metadata(model), "notes", model))
    except (OSError, ValueError, SafetensorError):
        return False
    training = parts[-1].get("training", {}) if parts else None
    unsaid = dict.fromkeys(OF_THE_MACHINE)
    return isinstance(training, dict) and {**training, **unsaid} == {**settings, **unsaid}


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(regular_file(path), framework="pt") as file:
        return file.metadata() or {}
