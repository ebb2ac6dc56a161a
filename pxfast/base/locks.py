"""Locks of files, which end with the process that holds them, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path

if sys.platform == "win32":

    def _lock(descriptor: int) -> bool:
        return False

else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        """Lock an open file. BlockingIOError where another has it; False where files can't be locked."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            return False
        return True


class Lock:
    """A file that this process has locked. Raises BlockingIOError where another has it, PermissionError, naming the
    file in its words alone, for another user's that can't be opened, FileExistsError for a link, and OSError.

    path: made where it is missing. certain: False where the system or the file system knows no locks; then another
    process may believe that it has the file, too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.certain: bool = False
        while True:
            descriptor = _open(path)
            try:
                self.certain = _lock(descriptor)
                if not self.certain or _is_at(descriptor, path):
                    break
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # whoever had it removed it between the two calls
        self._descriptor: int | None = descriptor
        self.mode: int = os.fstat(descriptor).st_mode & 0o777  # what this process gives to ordinary files
        if not self.certain:
            self._close()

    def release(self) -> None:
        """Remove the file, then let go of it: in the other order it could be another's by then."""
        with contextlib.suppress(OSError):
            self.path.unlink()
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _open(path: Path) -> int:
    """A descriptor of a file to lock, which is made where it is missing."""
    straight = getattr(os, "O_NOFOLLOW", 0)  # a link would have an empty file made where it leads
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | straight, 0o666)
    except PermissionError as error:
        try:
            # a lock that another user's killed process left: reading is enough
            return os.open(path, os.O_RDONLY | straight)
        except FileNotFoundError:
            raise error from None
        except PermissionError:
            # without a number and a name, for which the output's would be put
            raise PermissionError(
                f"the lock {path} is another user's and can't be opened; remove it when no process uses it any more"
            ) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise FileExistsError(f"the lock {path} is a link, which no process of pxfast makes; remove it") from None
        raise


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
