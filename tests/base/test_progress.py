"""How work tells of its progress: in a terminal, elsewhere, and to nobody."""

from __future__ import annotations

import io
import time
from types import SimpleNamespace

import pytest

from pxfast.base import progress, streams
from pxfast.base.progress import progress_of, reporting


class Stream(io.StringIO):
    """A standard error that is a terminal, or is not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Stream:
    stream = Stream(terminal=True)
    for module in (progress, streams):
        monkeypatch.setattr(module, "sys", SimpleNamespace(stderr=stream))  # sys.stderr itself is pytest's
    return stream


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Stream:
    stream = Stream(terminal=False)
    for module in (progress, streams):
        monkeypatch.setattr(module, "sys", SimpleNamespace(stderr=stream))  # sys.stderr itself is pytest's
    return stream


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the clock of the module shows, as its only element."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_bar_in_a_terminal(terminal: Stream) -> None:
    with progress_of(4, "step", shown=True, done=1) as shown:
        shown.entitle("work")
        shown.annotate("loss 3")
        shown.advance()
        shown.reach(4)
    assert "\r" in terminal.getvalue()
    assert "4/4" in terminal.getvalue()
    assert "work: 100%" in terminal.getvalue()
    assert "loss 3" in terminal.getvalue()


def test_a_bar_can_turn_to_other_work(terminal: Stream) -> None:
    with progress_of(None, shown=True, leave=False) as shown:
        shown.turn_to("one", 3, 5)
        shown.turn_to("two", 0, 7)
    assert "one" in terminal.getvalue()
    assert "3/5" in terminal.getvalue()
    assert "0/7" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r"), "the bar is wiped away"


def test_lines_now_and_then_elsewhere(log: Stream, clock: list[float]) -> None:
    with progress_of(10, shown=True) as shown:
        for _ in range(5):
            clock[0] += 16.0
            shown.advance()
        assert log.getvalue().splitlines() == [
            "2/10 images, 0.0625 images/s, 02:08 left",
            "4/10 images, 0.0625 images/s, 01:36 left",
        ]
        shown.entitle("clean")
        shown.annotate("loss 3.1")
        clock[0] += 20.0
        shown.reach(10)
    assert log.getvalue().splitlines()[2:] == ["clean: 10/10 images, 0.1 images/s, loss 3.1"]
    assert "\r" not in log.getvalue()


def test_what_was_done_before_is_not_in_the_rate(log: Stream, clock: list[float]) -> None:
    with progress_of(8, "step", shown=True, done=2) as shown:
        clock[0] += 31.0
        shown.reach(3)
        clock[0] += 1.0
        shown.reach(8)
    assert log.getvalue().splitlines() == ["3/8 steps, 0.0323 steps/s, 02:35 left", "8/8 steps, 0.188 steps/s"]


def test_work_that_takes_long_shows_that_it_is_alive(log: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_INTERVAL", 0.01)
    with progress_of(3, shown=True) as shown, progress_of(None, shown=True, leave=False):
        assert shown.done == 0
        deadline = time.monotonic() + 30.0
        while log.getvalue().count("\n") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert set(log.getvalue().splitlines()) == {"0/3 images"}
    lines = log.getvalue()
    time.sleep(0.05)
    assert log.getvalue() == lines, "it is over"


def test_lines_follow_other_work(log: Stream, clock: list[float]) -> None:
    with progress_of(None, shown=True, leave=False) as shown:
        shown.turn_to("  attack", 64, 256)
        clock[0] += 40.0
        shown.turn_to("  attack", 128, 256)
        shown.turn_to("  purify", 0, 8)
        clock[0] += 20.0
        shown.turn_to("  purify", 8, 8)
    assert log.getvalue() == "attack: 128/256 images, 1.6 images/s, 01:20 left\n"


def test_work_of_unknown_length(log: Stream, clock: list[float]) -> None:
    with progress_of(None, "step", shown=True) as shown:
        clock[0] += 10.0
        shown.advance(5)
        assert shown.rate == 0.5
    assert log.getvalue() == "5 steps, 0.5 steps/s\n"


def test_work_that_did_not_begin_says_nothing(log: Stream) -> None:
    with pytest.raises(ValueError, match="no"), progress_of(3, shown=True):
        raise ValueError("no")
    assert not log.getvalue()


@pytest.mark.parametrize("shown", [True, False])
def test_nothing_without_a_reader(monkeypatch: pytest.MonkeyPatch, shown: bool) -> None:
    stream = None if shown else Stream(terminal=True)
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))  # sys.stderr itself is pytest's
    with progress_of(2, shown=shown) as silent:
        silent.entitle("work")
        silent.annotate("more")
        silent.advance(2)
        assert silent.done == 2
        silent.turn_to("other", 1, 3)
        assert (silent.done, silent.total) == (1, 3)
    assert stream is None or not stream.getvalue()


def test_reporting_calls_the_function_or_shows(log: Stream) -> None:
    seen: list[int] = []
    with reporting(3, seen.append) as report:
        report(2)
    assert seen == [2]
    assert not log.getvalue()
    with reporting(3, True) as report:
        report(3)
    assert log.getvalue().startswith("3/3 images")
    with reporting(3, False) as report:
        report(1)
    assert len(log.getvalue().splitlines()) == 1
