"""A process may fork while another thread of it works: the child goes on, whatever that thread was doing."""

import gc
import os
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from support.kills import ended

from pxfast import purify
from pxfast.adp import purifier
from pxfast.base import forks
from pxfast.base.forks import ThreadLock
from pxfast.engines import schedule
from pxfast.pixelcnn import oracle

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="asks for fork"),
]


def in_a_child(work: Callable[[], object]) -> int:
    """How a forked child ends that does ``work``: 0 when it is done, -14 when that takes too long."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside other threads, which this is about
        child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(20)
            work()
            code = 0
        finally:
            os._exit(code)
    return ended(child)


@contextmanager
def held_by_another_thread(lock: AbstractContextManager[None]) -> Iterator[None]:
    held, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            enough.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def test_a_child_gets_locks_anew_that_another_thread_holds() -> None:
    lock = ThreadLock()

    def twice() -> None:
        for _ in range(2):
            with lock:
                pass

    with held_by_another_thread(lock):
        assert in_a_child(twice) == 0
    twice()


def test_a_lock_that_the_forking_thread_holds_stays_its_own() -> None:
    lock = ThreadLock()
    code = 1
    with lock:
        child = os.fork()
        if child == 0:
            signal.alarm(20)
    if child == 0:
        try:
            with lock:
                code = 0
        finally:
            os._exit(code)
    assert ended(child) == 0


def test_a_signals_handler_may_take_what_its_thread_has(make_model) -> None:
    model = make_model()
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    expected = purify(images, model=model, engine="cpu")
    found: list[torch.Tensor] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: found.append(purify(images, model=model, engine="cpu")))
    try:
        with oracle._lock, schedule._lock, oracle._copies._lock, schedule.schedule_for(model).lock:
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert torch.equal(found[0], expected)


def test_ctrl_c_at_any_moment_leaves_no_lock_held() -> None:
    """A signal arrives again and again while a lock is taken and released."""
    lock, count = ThreadLock(), 0

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(2000):
            try:
                signal.setitimer(signal.ITIMER_REAL, 2e-4)
                while True:
                    with lock:
                        count += 1
            except KeyboardInterrupt:
                pass
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert not lock.mine
    finally:
        signal.signal(signal.SIGALRM, before)
    assert count > 0


@pytest.mark.parametrize("where", ["schedule", "schedules", "oracle", "copies", "score networks"])
def test_a_child_purifies_whatever_lock_was_held(make_model, where) -> None:
    model = make_model()
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    expected = purify(images, model=model, engine="cpu")
    lock = {
        "schedule": schedule.schedule_for(model).lock,
        "schedules": schedule._lock,
        "oracle": oracle._lock,
        "copies": oracle._copies._lock,
        "score networks": purifier._copies._lock,
    }[where]

    def work() -> None:
        with lock:
            pass
        assert torch.equal(purify(images, model=model, engine="cpu"), expected)

    with held_by_another_thread(lock):
        assert in_a_child(work) == 0


def test_a_lock_is_forgotten_with_its_owner() -> None:
    before = len(forks._locks)
    locks = [ThreadLock() for _ in range(10)]
    assert len(forks._locks) == before + 10
    del locks
    gc.collect()
    assert len(forks._locks) <= before


def test_no_module_has_a_lock_that_a_child_would_inherit() -> None:
    package = Path(forks.__file__).parents[1]
    sources = {path for folder in (package, package / "kernels") for path in folder.rglob("*.py")}
    plain = {path.name for path in sources if re.search(r"threading\.R?Lock\(", path.read_text(encoding="utf-8"))}
    assert plain == {"forks.py"}, "the others would stay locked"
