"""Locks between threads that a forked child gets anew.

A forked child has one thread, the one that forked. A lock that another thread held at that moment would stay locked in
the child for ever.
"""

from __future__ import annotations

import os
import threading
import weakref


class ThreadLock:
    """A lock for ``with``, free in a forked child unless the thread that forked held it.

    What it guards has to be usable between any two statements: the holder may have got no further.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()
        self._holder = threading.get_ident()

    def __exit__(self, *error: object) -> None:
        self._holder = None
        self._lock.release()

    def _renew(self) -> None:
        if self._holder != threading.get_ident():
            self._lock = threading.Lock()
            self._holder = None


_locks: weakref.WeakSet[ThreadLock] = weakref.WeakSet()


def _renew_all() -> None:
    for lock in list(_locks):
        lock._renew()


if hasattr(os, "register_at_fork"):  # not on Windows, which can't fork
    os.register_at_fork(after_in_child=_renew_all)
