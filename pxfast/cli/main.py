"""The command line: ``pxfast purify``, ``bpd``, ``info``, ``train``, ``train-classifier``, ``bench`` and ``demo``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from safetensors import SafetensorError

from ..base.memory import keep_freed_memory
from ..base.version import __version__
from .attack import attack
from .bench import bench
from .convert import app as convert_app
from .demo import demo
from .detect import detect
from .evaluate import app as evaluate_app
from .figures import app as figures_app
from .info import info
from .purify import bpd, purify
from .report import report
from .sample import sample
from .train import train
from .train_adp import train_adp
from .train_classifier import train_classifier
from .tune import tune

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=False)


def print_version(wanted: bool) -> None:
    if wanted:
        print(f"pxfast {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Fast PixelDefend: purify images with a PixelCNN++ and compiled, cached decoding."""
    if context.invoked_subcommand is None:
        print(context.get_help())


app.command()(purify)
app.command()(bpd)
app.command()(info)
app.command()(bench)
app.command()(demo)
app.command()(train)
app.command()(train_classifier)
app.command()(train_adp)
app.command()(attack)
app.command()(report)
app.command()(sample)
app.command()(detect)
app.command()(tune)
app.add_typer(convert_app, name="convert")
app.add_typer(figures_app, name="figures")
app.add_typer(evaluate_app, name="evaluate")


def main() -> None:
    """Run the command line. Errors are one line and exit code 2, Ctrl-C is 130."""
    keep_freed_memory()
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        usage = getattr(error, "format_message", None)  # typer's own errors, whose base class it does not export
        expected = (OSError, ImportError, ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError)
        if usage is None and not isinstance(error, (*expected, SafetensorError)):
            raise
        message = usage() if usage is not None else str(error)
        print(f"error: {' '.join(message.split()) or type(error).__name__}", file=sys.stderr)
        code = 2
    if code == 130:
        print("interrupted", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
