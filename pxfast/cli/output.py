"""What commands print: results on standard output, notes on standard error."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def print_json(facts: Any) -> None:
    """One JSON document on standard output. Paths are written as text."""
    print(json.dumps(facts, indent=1, default=os.fspath), flush=True)


def note(text: str, *, quiet: bool = False) -> None:
    """A line on standard error, where there is one, unless ``quiet``."""
    if not quiet and sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


def print_files(paths: list[Path], *, as_json: bool) -> None:
    """The files that a command has written: a line each, or as JSON."""
    if as_json:
        print_json({"files": paths})
    else:
        print("\n".join(map(str, paths)))


def open_streams() -> None:
    """Let a process whose standard error or output is closed (``2>&-``) write to nowhere in its place.

    Otherwise the next file that is opened would get the number of the closed one, and with it all messages of C
    libraries.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            if nowhere == number:
                os.set_inheritable(number, True)
            else:
                try:
                    os.fstat(number)
                except OSError:
                    os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
