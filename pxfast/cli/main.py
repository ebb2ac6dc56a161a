"""The command line: all commands by what they are for, their errors and exit codes.

torch and what is built on it are imported by the commands that need them, so that help and completion come at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Annotated

import typer
from typer.core import TyperGroup

from ..base.environment import draw_to_files, wrap_somewhere
from ..base.memory import keep_freed_memory
from ..base.streams import note, open_streams
from ..base.unfinished import FULL
from ..base.version import __version__
from .app import app as page
from .attack import attack
from .bench import bench
from .bpd import bpd
from .certify import certify
from .convert import app as convert_app
from .demo import demo
from .detect import detect
from .evaluate import app as evaluate_app
from .figures import app as figures_app
from .groups import add_command
from .info import info
from .purify import purify
from .report import report
from .sample import sample
from .train import train
from .train_adp import train_adp
from .train_classifier import train_classifier
from .tune import tune

COMMANDS: dict[str, dict[str, typer.Typer | Callable[..., None]]] = {
    "Use": {"purify": purify, "detect": detect, "bpd": bpd, "sample": sample},
    "Study": {"attack": attack, "certify": certify, "evaluate": evaluate_app, "figures": figures_app, "report": report},
    "Make": {
        "train": train,
        "train-classifier": train_classifier,
        "train-adp": train_adp,
        "convert": convert_app,
    },
    "Look": {"app": page, "info": info, "bench": bench, "tune": tune, "demo": demo},
}

INTERRUPTED, TERMINATED = 130, 143  # exit codes, as shells have them of SIGINT and SIGTERM
EXPECTED = (OSError, ImportError, ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError)


class InOrder(TyperGroup):
    """Commands in the order of ``COMMANDS``; typer has those with commands of their own last."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return [name for commands in COMMANDS.values() for name in commands]


app: typer.Typer = typer.Typer(cls=InOrder, pretty_exceptions_enable=False)


def print_version(wanted: bool) -> None:
    if wanted:
        print(f"pxfast {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fast PixelDefend: purify images with a PixelCNN++ and compiled, cached decoding."""
    if context.invoked_subcommand is None:
        print(context.get_help())


for _panel, _commands in COMMANDS.items():
    for _name, _command in _commands.items():
        if isinstance(_command, typer.Typer):
            app.add_typer(_command, name=_name, rich_help_panel=_panel)
        else:
            add_command(app, _name, _command, panel=_panel)


def is_expected(error: Exception) -> bool:
    """Whether one line tells users all about an error: it is about their input, their machine or their files."""
    safetensors = sys.modules.get("safetensors")  # not imported for this: it raises nothing then
    return isinstance(error, EXPECTED) or (safetensors is not None and isinstance(error, safetensors.SafetensorError))


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[threading.Event]:
    """Take SIGTERM, by which systems end what runs, as Ctrl-C: a training keeps its checkpoint. The event tells of it.

    Nothing changes where Python delivers no signals, or where SIGTERM does something else already.
    """
    told = threading.Event()
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield told
        return
    process = os.getpid()

    def handler(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a fork, whose work is not to be kept
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
            return
        told.set()
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # Ctrl-C is ignored, as a shell has it of what runs in the background
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)

    signal.signal(signal.SIGTERM, handler)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def check_folder() -> None:
    """FileNotFoundError where the current folder has been removed: libraries fail there by errors that don't say so."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise FileNotFoundError("the current folder has been removed; change to one that is there") from None


def main() -> None:
    """Run the command line. Errors are one line and exit code 2, Ctrl-C is 130, SIGTERM 143, a pipe whose reader has
    gone is 1.
    """
    open_streams()
    keep_freed_memory()
    draw_to_files()
    wrap_somewhere()
    with terminated_as_interrupted() as terminated:
        code = run()
    if code == INTERRUPTED:
        note("terminated" if terminated.is_set() else "interrupted")
        code = TERMINATED if terminated.is_set() else code
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or else the interpreter fails once more when it ends
    sys.exit(code)


def run() -> int | None:
    """Run the command that was asked for; its exit code. What it raises is told of in a line."""
    try:
        check_folder()
        code: int | None = app(prog_name="pxfast", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:  # as typer has it of what commands print themselves
        code = 1
    except Exception as error:
        usage = getattr(error, "format_message", None)  # typer's own errors, whose base class it does not export
        if usage is None and not is_expected(error):
            raise
        message = usage() if usage is not None else str(error)
        if isinstance(error, OSError) and error.filename is None and error.errno in (*FULL, errno.EIO):
            message = f"standard output can't be written to: {error.strerror}"  # errors of files have a name
        note(f"error: {' '.join(message.split()) or type(error).__name__}")
        code = 2
    return code


if __name__ == "__main__":
    main()
