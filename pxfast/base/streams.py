"""Standard output and standard error, of which either may be closed, full or unable to show a name."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys


def note(text: str, *, quiet: bool = False) -> None:
    """A line on standard error, unless ``quiet``; none where that can't be written to, which stops no work."""
    if not quiet and sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


def open_streams() -> None:
    """Make standard output and standard error take everything that a command may print.

    A process whose standard error or output is closed (``2>&-``) writes to nowhere in its place. Otherwise the next
    file that is opened would get the number of the closed one, and with it all messages of C libraries. File names that
    are no text of the encoding are written as the bytes that they are.
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
    codecs.register_error("pxfast-names", _written_anyway)
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # a notebook's stream has none, and takes everything
    if reconfigure is not None:
        reconfigure(errors="pxfast-names")


def shown_name(path: str | os.PathLike[str]) -> str:
    """The last part of a path as text that any program can show: what is no UTF-8 in it becomes a question mark."""
    return os.fsencode(os.path.basename(os.path.normpath(path))).decode(errors="replace")


def _written_anyway(error: UnicodeError) -> tuple[str | bytes, int]:
    """How to write what an encoding does not have: the bytes of a file name as they are, others as escapes."""
    assert isinstance(error, UnicodeEncodeError)
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeEncodeError:
        return codecs.lookup_error("backslashreplace")(error)
