"""How long work took the last time, and what is told of work that can't be counted."""

from __future__ import annotations

import json
import sys
import time

import pytest

from pxfast.base import durations, progress
from pxfast.base.durations import keep_time, last_time, phase, record_file


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def quick(monkeypatch):
    """Phases are told of at once, again and again, and kept whatever they take."""
    monkeypatch.setattr(progress, "PATIENCE", 0.01)
    monkeypatch.setattr(progress, "LINE_INTERVAL", 0.02)
    monkeypatch.setattr(durations, "SHORT", 0.001)


def test_the_last_time_is_kept(tmp_path):
    assert last_time("compiling") is None
    keep_time("compiling", 290.5)
    keep_time("reading", 3.0)
    keep_time("compiling", 31.0)
    assert last_time("compiling") == 31.0
    assert last_time("reading") == 3.0
    assert record_file() == tmp_path / "cache" / "pxfast" / "durations.json"


def test_the_record_stays_small(monkeypatch):
    monkeypatch.setattr(durations, "MOST", 3)
    for i in range(5):
        keep_time(f"work {i}", 1.0 + i)
    assert [last_time(f"work {i}") for i in range(5)] == [None, None, 3.0, 4.0, 5.0]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"format": "other", "seconds": {"compiling": 3}}',
        json.dumps({"format": durations.FORMAT, "seconds": {"compiling": -1}}),
        json.dumps({"format": durations.FORMAT, "seconds": {"compiling": "3"}}),
        '{"format": "pxfast-durations", "seconds": {"compiling": NaN}}',
        '{"format": "pxfast-durations", "seconds": {"compiling": Infinity}}',
        '{"format": "pxfast-durations", "seconds": {"compiling": 1%s}}' % ("0" * 400),
        json.dumps({"format": durations.FORMAT, "seconds": [3], "more": 1}),
    ],
)
def test_a_record_that_is_none_holds_nothing(content):
    record_file().parent.mkdir(parents=True)
    record_file().write_text(content)
    assert last_time("compiling") is None
    keep_time("compiling", 3.0)
    assert last_time("compiling") == 3.0


def test_where_nothing_can_be_kept_nothing_is(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_time("compiling", 3.0)
    assert last_time("compiling") is None


def test_a_log_tells_what_is_done_and_how_long_it_took_last_time(quick, capfd):
    for expected in ("compiling (some 05:00 as a rule)", "compiling (00:00 last time)"):
        with phase("compiling", "compiling a", shown=True, usual=300.0):
            time.sleep(0.1)
        lines = capfd.readouterr().err.splitlines()
        assert lines[0] == expected
        assert f"{expected}: 00:00 so far" in lines[1:-1]
        assert lines[-1] == "compiling: took 00:00"
    assert last_time("compiling a") == pytest.approx(0.1, abs=0.09)


def test_a_terminal_shows_the_time_running(quick, monkeypatch, capfd):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    keep_time("compiling a", 292.0)
    with phase("compiling", "compiling a", shown=True):
        time.sleep(0.1)
    err = capfd.readouterr().err
    assert err.count("\rcompiling (04:52 last time): 00:00") > 1
    assert err.endswith("compiling: took 00:00\n")


def test_short_work_is_not_told_of_nor_kept(capfd):
    with phase("reading", "reading a", shown=True):
        pass
    with phase("reading", "reading a", shown=False):
        pass
    assert capfd.readouterr().err == ""
    assert not record_file().exists()


def test_what_becomes_short_is_not_said_to_be_long():
    """As compiling does once the compiler has kept its results."""
    keep_time("compiling a", 300.0)
    with phase("compiling", "compiling a", shown=True):
        pass
    assert last_time("compiling a") < 1.0


def test_work_that_fails_keeps_no_time(quick):

    def fail() -> None:
        with phase("compiling", "compiling a", shown=True):
            time.sleep(0.02)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert last_time("compiling a") is None
