"""Locks between threads that a forked child gets anew.

A forked child has one thread, the one that forked. A lock that another thread held at that moment would stay locked in
the child for ever.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:

    class _ReentrantLock:
        def acquire(self, blocking: bool = True) -> bool: ...
        def release(self) -> None: ...
        def __enter__(self) -> bool: ...
        def __exit__(self, *error: object) -> None: ...
        def _is_owned(self) -> bool: ...
        def _at_fork_reinit(self) -> None: ...

else:
    _ReentrantLock = type(threading.RLock())  # written in C


class ThreadLock(_ReentrantLock):
    """A lock for ``with``, free in a forked child unless the thread that forked held it.

    A thread may take it again while it has it: a signal's handler and a finaliser run in the midst of whatever their
    thread does. So what it guards has to be usable between any two statements, by them and by a child, and the holder
    may find it changed by them.

    Python's own methods take and release it, without a moment at which Ctrl-C finds it held and nobody to release it.
    """

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()
        _locks.add(self)

    @property
    def mine(self) -> bool:
        """Whether this thread has it."""
        return self._is_owned()

    def _renew(self) -> None:
        if self.acquire(blocking=False):  # nobody had it, or this thread did
            self.release()
        else:
            self._at_fork_reinit()


_locks: weakref.WeakSet[ThreadLock] = weakref.WeakSet()


def _renew_all() -> None:
    for lock in list(_locks):
        lock._renew()


if hasattr(os, "register_at_fork"):  # not on Windows, which can't fork
    os.register_at_fork(after_in_child=_renew_all)
