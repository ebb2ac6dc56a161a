"""The command line: all commands by what they are for, their errors and exit codes.

torch and what is built on it are imported by the commands that need them, so that help and completion come at once.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from typer.core import TyperGroup

from ..base.environment import draw_to_files
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


def main() -> None:
    """Run the command line. Errors are one line and exit code 2, Ctrl-C is 130, a pipe whose reader has gone is 1."""
    open_streams()
    keep_freed_memory()
    draw_to_files()
    try:
        code = app(prog_name="pxfast", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        code = 130
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
    if code == 130:
        note("interrupted")
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or else the interpreter fails once more when it ends
    sys.exit(code)


if __name__ == "__main__":
    main()
