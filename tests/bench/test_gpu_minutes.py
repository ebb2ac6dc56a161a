"""bench/gpu.sh first and second, with stand-ins for the parts: whatever ends them, the rows so far are there."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.helpers import SOURCE

# In place of Python: keeps a row of the part that it is called for, prints, and takes its time.
INTERPRETER = """#!/bin/sh
printf '{"part": "row", "words": "%s"}\\n' "$*" >> "$OUT/gpu-rows.jsonl"
echo "printed $*"
case "$*" in *throughput*) if [ -e "$OUT/../hang" ]; then echo $$ > "$OUT/../pid"; exec sleep 60; fi ;; esac
sleep 0.05
"""


@pytest.fixture
def minutes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(SOURCE / "bench"))
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    return importlib.import_module("gpu_minutes")


@pytest.fixture
def rows(minutes: ModuleType, tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    """The rows so far; a line that is no row is an error."""
    return lambda: minutes.read_rows(tmp_path / "out" / minutes.ROWS)


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """Starts bench/gpu.sh as it would run on a machine with a GPU, but for the interpreter of its parts."""
    interpreter = tmp_path / "python"
    interpreter.write_text(INTERPRETER)
    interpreter.chmod(0o755)

    def start(*words: str) -> subprocess.Popen[bytes]:
        variables = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path / "out")}
        command = [SOURCE / "bench" / "gpu.sh", *words, "--engine", "cpu", "--python", str(interpreter)]
        return subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL)

    return start


def run(minutes: ModuleType, tmp_path: Path, *lines: dict[str, Any], seconds: float = 60) -> None:
    one = minutes.Minutes("cuda", False, sys.executable, time.monotonic() + seconds, {"OUT": str(tmp_path / "out")})
    one.run(list(lines))


@pytest.mark.process
def test_every_part_of_both_runs_is_started_in_its_order(start, rows, tmp_path):
    from_first = ["matrix", *["canary"] * 6, "throughput", "latency", "latency", "decode", "throughput", "throughput"]
    assert start("first").wait(100) == 0
    first = rows()
    ends = [row for row in first if row["part"] == "end"]
    assert all(row.get("exit") == 0 for row in ends if row["of"] != "triton-cache")
    assert first[-1]["part"] == "over"
    called = [row["words"].split() for row in first if row["part"] == "row"]
    measured = [words[1] for words in called if words[0] == "bench/gpu_report.py"]
    assert sorted(measured) == sorted([*from_first, "decode", "throughput", "throughput"])
    assert measured.index("canary") < measured.index("throughput"), "what is wrong is known before it is timed"
    order = [row["of"] for row in ends]
    assert order.index("throughput") < order.index("tests") < order.index("memcheck"), "sanitizers come last"
    assert start("second").wait(100) == 0
    again = [row["of"] for row in rows()[len(first) :] if row["part"] == "end"]
    assert again == ["machine", "racecheck", "plain", "fused", "teams", "training-step"], "nothing has failed"
    files = list((tmp_path / "out").iterdir())
    assert len(files) <= 8
    assert "throughput| printed bench/gpu_report.py throughput --network paper-cifar10" in (
        (tmp_path / "out" / "gpu-log.txt").read_text()
    )


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("part", ["matrix", "canary-speculative-mma", "profile"])
def test_a_kill_leaves_the_rows_so_far(start, rows, part, number):
    process = start("first")
    deadline = time.monotonic() + 100
    while not any(row.get("of") == part for row in rows()) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    assert process.wait(100) != 0
    found = rows()
    ended = [row["of"] for row in found if row["part"] == "end"]
    assert part in ended
    assert not any(row["part"] == "over" for row in found)
    assert sum(row["part"] == "row" for row in found) >= len(ended) - 2, "of machine and sections that need no Python"


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_ends_it_ends_its_parts(start, tmp_path, number):
    (tmp_path / "hang").touch()
    process, pid = start("throughput"), tmp_path / "pid"
    deadline = time.monotonic() + 100
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(100) == 128 + number
    while Path("/proc", pid.read_text().strip()).exists():
        assert time.monotonic() < deadline, "the part goes on"
        time.sleep(0.01)


@pytest.mark.process
def test_a_hang_costs_one_part_and_all_ends_in_time(minutes, rows, tmp_path):
    hang, quick = minutes.Part(0.5, ("sleep", "60")), minutes.Part(5, ("echo", "here"))
    before = time.monotonic()
    run(minutes, tmp_path, {"behind&": hang}, {"hang": hang, "beside": quick}, {"after": quick})
    assert time.monotonic() - before < 10
    ends = {row["of"]: row.get("exit") for row in rows()}
    assert ends == {"behind": 124, "hang": 124, "beside": 0, "after": 0}
    run(minutes, tmp_path, {"late": quick}, seconds=minutes.END + minutes.LEAST - 1)
    assert rows()[-1] == {"part": "end", "of": "late", "skipped": "no time is left"}


@pytest.mark.process
def test_what_a_part_leaves_behind_is_not_waited_for(minutes, monkeypatch, rows, tmp_path):
    """A process that outlives it and holds its output; and one that no signal ends, as where a GPU's driver hangs."""
    left = minutes.Part(20, ("sh", "-c", "setsid sleep 20 & echo started"))
    before = time.monotonic()
    run(minutes, tmp_path, {"left": left})
    assert time.monotonic() - before < 10
    assert rows()[-1]["exit"] == 0
    monkeypatch.setattr(minutes, "END", 2.0)  # before it is killed
    run(minutes, tmp_path, {"held": minutes.Part(0.2, ("sh", "-c", "trap '' TERM; sleep 8; sleep 8"))})
    assert rows()[-1]["error"] == "it could not be killed"


@pytest.mark.process
def test_a_command_that_is_not_there_is_a_row(minutes, rows, tmp_path):
    missing = minutes.Part(5, ("PYTHON",), tool=(str(tmp_path / "ncu"),))
    run(minutes, tmp_path, {"profile": missing}, {"after": minutes.Part(5, ("true",))})
    assert [(row["of"], row["exit"]) for row in rows()] == [("profile", 127), ("after", 0)]


@pytest.mark.process
def test_what_parts_print_is_bounded(minutes, monkeypatch, tmp_path):
    monkeypatch.setattr(minutes, "LOG_BYTES", 1000)
    flood = minutes.Part(5, ("sh", "-c", "yes | head -n 100000"))
    run(minutes, tmp_path, {"a": flood}, {"b": flood})
    log = (tmp_path / "out" / minutes.LOG).read_text()
    assert 1500 < len(log) < 2500
    assert log.count("== ") == 2


def test_no_file_of_the_folder_is_too_large(minutes, monkeypatch, rows, tmp_path):
    monkeypatch.setattr(minutes, "FILE_BYTES", 1000)
    archive = minutes.out_folder() / f"{minutes.CACHE.name}.tar.gz"
    archive.write_bytes(bytes(1001))
    minutes.keep_module()
    assert not archive.exists()
    assert {"part": "too large", "file": archive.name, "bytes": 1001} in rows()
    assert all(file.stat().st_size <= 1000 for file in (tmp_path / "out").iterdir())


def test_the_second_run_takes_what_failed_and_what_had_no_time(minutes, monkeypatch, tmp_path):
    earlier = [
        {"part": "end", "of": "matrix", "exit": 0},
        {"part": "end", "of": "throughput", "exit": 124},
        {"part": "end", "of": "fp32", "skipped": "no time is left"},
        {"part": "end", "of": "triton-cache", "skipped": minutes.NO_GPU},
        {"part": "end", "of": "memcheck", "error": "no such file"},
        {"part": "end", "of": "shipped", "exit": 1},
        {"part": "end", "of": "shipped", "exit": 0},
        {"part": "end", "of": "tests", "exit": 1, "failed_tests": ["tests/a.py::test_b[x y]"]},
    ]
    found = minutes.failed(earlier)
    assert list(found) == ["throughput", "fp32", "memcheck", "tests"]
    assert found["tests"].words == (*minutes.TESTS, "tests/a.py::test_b[x y]")
    monkeypatch.setattr(minutes, "ROOT", tmp_path)
    names = [name for line in minutes.lines_of(["second"], earlier) for name in line]
    assert names == ["machine", "build", *found, "racecheck", "plain", "fused", "teams", "training-step"]
    (tmp_path / "pxfast").mkdir()
    (tmp_path / "pxfast" / f"_C{minutes.EXTENSION}").touch()
    assert {"build": minutes.PARTS["build"]} not in minutes.lines_of(["second"], earlier)


@pytest.mark.process
def test_tests_that_fail_are_named_in_a_row(minutes, rows, tmp_path):
    lines = "FAILED tests/a.py::test_b[x y] - AssertionError: 1 - 2\nERROR tests/c.py\n1 failed\n"
    (tmp_path / "printed").write_text(lines)
    run(minutes, tmp_path, {"tests": minutes.Part(5, ("cat", str(tmp_path / "printed")))})
    assert rows()[-1]["failed_tests"] == ["tests/a.py::test_b[x y]", "tests/c.py"]


def test_a_hung_kernel_cannot_hang_the_tests(minutes):
    words = minutes.PARTS["tests"].words
    assert "--timeout-method=thread" in words
    assert words[words.index("-n") + 1] == "8"


def test_a_part_runs_under_its_tool_where_there_is_a_gpu(minutes):
    part = minutes.PARTS["memcheck"]
    given = {"small": True, "python": "python3", "ends": 0.0, "variables": {"OUT": "out"}}
    by_gpu = minutes.Minutes("cuda", **given).command(part)
    assert by_gpu[0].endswith("compute-sanitizer")
    assert by_gpu[1:] == [
        "--error-exitcode",
        "9",
        "--tool",
        "memcheck",
        *("python3", "bench/gpu_small_decode.py", "--engine", "cuda"),
    ]
    rehearsed = minutes.Minutes("cpu", **given)
    assert rehearsed.command(part) == ["python3", "bench/gpu_small_decode.py", "--engine", "cpu"]
    assert rehearsed.command(minutes.PARTS["triton"])[-3:] == ["--engine", "cpu", "--small"]
    assert rehearsed.command(minutes.PARTS["triton-cache"]) is None


def test_the_module_is_built_for_the_gpu_at_hand(minutes, monkeypatch):
    def says(text: str) -> str | None:
        done = subprocess.CompletedProcess([], 0, text, "")
        monkeypatch.setattr(minutes.subprocess, "run", lambda *_, **__: done)
        return minutes.architecture()

    assert (says("9.0\n"), says("8.9\n8.9\n"), says("12.0\n"), says("")) == ("90a", "89", "120", None)


def test_the_files_of_an_earlier_run_are_taken(minutes, monkeypatch, tmp_path):
    """On a machine that was given anew, the compiled module and what Triton compiled."""
    earlier, root = tmp_path / "earlier", tmp_path / "root"
    earlier.mkdir()
    (root / "pxfast").mkdir(parents=True)
    cache = root / "build" / "triton-cache"
    cache.mkdir(parents=True)
    (cache / "kernel").write_text("compiled")
    tar = ["tar", "-czf", str(earlier / "triton-cache.tar.gz"), "-C", str(cache.parent), cache.name]
    subprocess.run(tar, check=True)
    (cache / "kernel").unlink()
    cache.rmdir()
    (earlier / f"_C{minutes.EXTENSION}").write_text("module")
    monkeypatch.setattr(minutes, "ROOT", root)
    monkeypatch.setattr(minutes, "CACHE", cache)
    minutes.restore(earlier)
    assert (root / "pxfast" / f"_C{minutes.EXTENSION}").read_text() == "module"
    assert (cache / "kernel").read_text() == "compiled"


@pytest.mark.parametrize("name", ["first", "second"])
def test_the_limits_leave_time_for_all(minutes, name):
    """The limits are of a machine that struggles; those of the parts whose absence would cost most fit the time."""
    order = [word.rstrip("&") for line in minutes.ORDER[name] for word in line.split()]
    assert set(order) <= {*minutes.PARTS, "FAILED", "MISSING"}
    first = order[: order.index("throughput") + 1] if name == "first" else ["racecheck", "plain"]
    together = {part for part in first if part.startswith("canary")}
    seconds = sum(minutes.PARTS[part].seconds for part in first if part not in together) + (45 if together else 0)
    assert seconds + minutes.END <= minutes.SECONDS[name]


def test_the_commands_of_all_parts_are_those_of_programs_that_are_here(minutes):
    for name, part in minutes.PARTS.items():
        programs = [word for word in part.words if word.endswith(".py") and "/" in word]
        assert all((SOURCE / program).is_file() for program in programs), name
        json.dumps(part.words)
