"""Commands that are killed, stopped and started again: in forked processes, which need no time to import torch.

``python -c "from support.kills import ..."`` runs this in a process of its own, since forks and pytest's threads do not
go together. A *step* is a call by which Python changes a folder: a link, a renaming, a removal, a new folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pxfast.cli.main import main

STEPS = ("link", "mkdir", "remove", "rename", "replace", "rmdir", "unlink")
TIMES = ("seconds", "rates", "machine", "images_per_second")  # what no two runs have in common
REFUSALS = ("exists already", "another process is writing")


def command(words: list[str]) -> int:
    """Run ``pxfast`` with these words in this process; its exit code. What it says on standard error goes to 'said'."""
    sys.argv = ["pxfast", *words]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    raise AssertionError("main() always exits")


@contextlib.contextmanager
def counted(at_step: Callable[[int], None]) -> Iterator[list[int]]:
    """Call ``at_step`` with its number before every step; yields a list whose only element counts them."""
    count, before = [0], {name: getattr(os, name) for name in STEPS}

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            at_step(count[0])
            return function(*arguments, **options)

        return call

    for name, function in before.items():
        setattr(os, name, counting(function))
    try:
        yield count
    finally:
        for name, function in before.items():
            setattr(os, name, function)


def forked(words: list[str], folder: Path, number: int = 0, step: int | None = None) -> int:
    """Start a command in ``folder`` in a forked process; its id. It sends itself signal ``number`` before a step."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.chdir(folder)
        said = os.open(folder.with_name(f"{folder.name}.said"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        with counted(lambda now: os.kill(os.getpid(), number) if now == step else None):
            code = command(words)
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """The exit code of a forked process, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def said(folder: Path) -> str:
    return folder.with_name(f"{folder.name}.said").read_text(errors="replace")


def tree(folder: Path) -> dict[str, Any]:
    """All files in a folder by their paths in it, with what they hold but for times."""
    return {name: _content(folder / name) for name in _files(folder)}


def _files(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return {name: (tensor.dtype, tensor.tolist()) for name, tensor in load_file(path).items()}
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    return path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if key not in TIMES}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def visible(folder: Path) -> dict[str, Any]:
    """As :func:`tree`, without what is hidden: a killed process leaves half a file there, which cannot be read."""
    shown = [name for name in _files(folder) if not any(part.startswith(".") for part in Path(name).parts)]
    return {name: _content(folder / name) for name in shown}


def check(words: list[str], again: list[str], base: Path, *, repeatable: bool = False) -> None:
    """Everything that may happen to a command that writes to the current folder, in folders of its own in ``base``.

    again: the same command, to go on after a kill. repeatable: whether a command may do again what is done already.
    """
    torch.set_num_threads(1)
    whole, steps, seconds = undisturbed(words, base)
    few = 3 if seconds < 0.5 else 1
    moments = [(step, 0.0) for step in sorted({*some(steps, few), *range(max(1, steps - few), steps + 1)})]
    for step, moment in [*moments, (None, random.Random(0).uniform(0.0, seconds))]:
        folder = base / f"killed-{step}"
        folder.mkdir()
        check_kill(words, again, folder, whole, step, moment)
    refused = 0
    for step in [1, steps // 2 + 1][few == 1 :]:
        folder = base / f"rivals-{step}"
        folder.mkdir()
        refused += check_rivals(words, folder, whole, step, repeatable=repeatable)
    assert refused, "the rivals never met"


def some(steps: int, most: int) -> list[int]:
    """At most so many of the steps, which are counted from 1, evenly chosen."""
    return sorted({1 + i * steps // most for i in range(most)})


def undisturbed(words: list[str], base: Path) -> tuple[dict[str, Any], int, float]:
    """What a command writes that nobody disturbs, after how many steps and how much time; it also warms up caches."""
    for name in ("warm-up", "whole"):
        (base / name).mkdir()
        os.chdir(base / name)
        started = time.perf_counter()
        with counted(lambda step: None) as count:
            assert command(words) == 0
        seconds = time.perf_counter() - started
    whole = tree(base / "whole")
    assert whole
    assert whole == tree(base / "warm-up"), "the command does the same each time"
    return whole, count[0], seconds


def check_kill(
    words: list[str], again: list[str], folder: Path, whole: dict[str, Any], step: int | None, moment: float
) -> None:
    """Kill a command before a step, or after some seconds; ``again`` then ends as if nothing had been."""
    child = forked(words, folder, signal.SIGKILL, step)
    if step is None:
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    code = ended(child)
    assert code == -signal.SIGKILL or (step is None and code == 0), (step, code, said(folder))
    complete = visible(folder) == whole
    code = ended(forked(again, folder))
    where = f"killed before step {step}, after {moment:.3f} s: {said(folder)}; {sorted(tree(folder))}"
    assert code == 0 or (code == 2 and complete and REFUSALS[0] in said(folder)), where
    assert tree(folder) == whole, where
    assert not list(folder.rglob(".*")), where


def check_rivals(words: list[str], folder: Path, whole: dict[str, Any], step: int, *, repeatable: bool) -> bool:
    """Stop a command before a step while another one writes the same output; whether one of them was refused.

    One of them wins, and the other is, unless they did not meet and the command is repeatable; nothing is harmed.
    """
    first = forked(words, folder, signal.SIGSTOP, step)
    os.waitpid(first, os.WUNTRACED)
    of_first = folder.with_name(f"{folder.name}.said").rename(folder.with_name(f"{folder.name}.first"))
    second_code = ended(forked(words, folder))
    os.kill(first, signal.SIGCONT)
    codes = ended(first), second_code
    loser = of_first.read_text() if codes[0] else said(folder)
    where = f"stopped before step {step}: {codes}, {of_first.read_text()}; {said(folder)}; {sorted(tree(folder))}"
    assert sorted(codes) == [0, 2] or (repeatable and codes == (0, 0)), where
    assert codes == (0, 0) or any(each in loser for each in REFUSALS), where
    assert tree(folder) == whole, where
    assert not list(folder.rglob(".*")), where
    return codes != (0, 0)
