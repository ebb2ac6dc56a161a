"""The measurements for a GPU, with the CPU engine in its place: what a row tells, and that an error costs one row."""

from __future__ import annotations

import dataclasses
import importlib
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.helpers import SOURCE

from pxfast.engines import cpu
from pxfast.engines.registry import ENGINES
from pxfast.engines.settings import DecodeSettings

pytestmark = pytest.mark.engine("cpu")

FASHION = ("--network", "paper-fashion-mnist")  # the smaller one
Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SOURCE / "bench"))
    return importlib.import_module("gpu_report")


@pytest.fixture
def run(report: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    """Runs a part in this process; gives its rows. wrong: whether it must fail."""
    rows = importlib.import_module("gpu_rows")

    def run(*words: str, wrong: bool = False) -> list[dict[str, Any]]:
        monkeypatch.setenv("OUT", str(tmp_path))
        rows.failures.clear()
        monkeypatch.setattr(sys, "argv", ["gpu_report.py", *words, "--engine", "cpu", "--small", "--repeats", "1"])
        if wrong:
            with pytest.raises(SystemExit, match="rows tell of an error or of wrong images"):
                report.main()
        else:
            report.main()
        found: list[dict[str, Any]] = rows.read_rows(tmp_path / rows.ROWS)
        return found

    yield run
    rows.failures.clear()


def engine_of(monkeypatch: pytest.MonkeyPatch, decode: Callable[..., torch.Tensor]) -> None:
    monkeypatch.setitem(ENGINES, "cpu", dataclasses.replace(ENGINES["cpu"], decode=decode))


@pytest.mark.parametrize("part", ["crossover", "fused", "decode", "memory"])
def test_a_part_keeps_rows_without_an_error(run, part):
    rows = run(part)
    assert rows or part == "memory", "the memory of a GPU alone is counted"
    assert not [row for row in rows if "error" in row]


def test_throughput_is_kept_before_its_images_are_judged(run):
    rows = run("throughput", *FASHION, "--plans", "default,2,mma")
    assert [(row["plan"], row["verified"]) for row in rows] == [
        ("default", None),
        ("default", "by a pass"),
        ("2", None),
        ("2", "as the first plan's"),
        ("mma", None),
        ("mma", "by a pass"),
    ]
    assert all(row["images_per_second"] > 0 and row["weights"] == "random" for row in rows)
    assert rows[1]["passed"]
    assert rows[3]["differing"] == 0


def test_what_was_timed_is_what_is_judged(run, monkeypatch):
    """A plan that spoils images beyond the first few, and only when it is timed."""
    calls = []

    def spoilt(schedule, images, chooser, *, settings, **options):
        calls.append(settings)
        result = cpu.decode(schedule, images, chooser, settings=settings, **options)
        return result if settings.team != 4 or len(calls) % 2 else torch.cat((result[:5], images[5:]))

    engine_of(monkeypatch, spoilt)
    rows = run("throughput", *FASHION, "--plans", "default,2,4", wrong=True)
    assert [row.get("differing") for row in rows if row["verified"]] == [None, 0, 3]
    assert calls[-1] == DecodeSettings(team=4)


def test_an_error_costs_one_plan(run, monkeypatch):
    def refused(schedule, images, chooser, *, settings, **options):
        if settings.team == 2:
            raise RuntimeError("an illegal address")
        return cpu.decode(schedule, images, chooser, settings=settings, **options)

    engine_of(monkeypatch, refused)
    rows = run("throughput", *FASHION, "--plans", "2,default", wrong=True)
    assert rows[0]["error"] == "RuntimeError: an illegal address"
    assert rows[-1]["passed"]


def test_want_of_memory_in_plain_torch_keeps_the_engines_figure(run, report, monkeypatch):
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    monkeypatch.setattr(report, "TorchDecoder", refuse)
    rows = run("plain", *FASHION, wrong=True)
    assert rows[-2]["part"] == "throughput"
    assert rows[-2]["images_per_second"] > 0
    assert rows[-1]["error"] == "OutOfMemoryError: tried to allocate 80 GiB"


def test_a_canary_tells_which_plan_hangs_and_which_is_wrong(run, monkeypatch):
    def spoilt(schedule, images, chooser, *, settings, **options):
        result = cpu.decode(schedule, images, chooser, settings=settings, **options)
        return images if settings.team == 3 else result

    engine_of(monkeypatch, spoilt)
    rows = run("canary", "--network", "shipped-fashion-mnist", wrong=True)
    assert [(row["plan"], row.get("started"), row.get("differing"), row.get("passed")) for row in rows] == [
        ("sequential, the engine's choice", True, None, None),
        ("sequential, the engine's choice", None, 0, True),
        ("sequential, teams of 1", True, None, None),
        ("sequential, teams of 1", None, 0, None),
        ("sequential, teams of 3", True, None, None),
        ("sequential, teams of 3", None, 9, False),
    ]


def test_latency_is_of_trained_weights_and_real_images(run, report, monkeypatch):
    seen = []
    monkeypatch.setattr(report, "SINGLE", 2)
    engine_of(monkeypatch, lambda schedule, images, *rest, **options: seen.append(images) or images)
    rows = run("latency", "--network", "shipped-fashion-mnist")
    assert {(row["weights"], row["order"]) for row in rows} == {
        ("trained", order) for order in ("auto", "sequential", "speculative")
    }
    images = importlib.import_module("noisy_images").noisy_images(1, 2)
    assert all(len(given) == 1 and (given == images).flatten(1).all(1).any() for given in seen)
    with pytest.raises(SystemExit, match="trained weights, not of paper-cifar10"):
        run("latency")


def test_what_the_sanitizers_watch_is_checked(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_small_decode.py", "--engine", "cpu"])
    runpy.run_path(str(SOURCE / "bench" / "gpu_small_decode.py"), run_name="__main__")
    assert capsys.readouterr().out.count(": passed (") == 3


def test_a_wrong_plan_is_named(report):
    assert report.parse_plan("2+speculative") == DecodeSettings(team=2, order="speculative")
    assert report.parse_plan("clusters+mma") == DecodeSettings(clusters=True, wgmma=False)
    with pytest.raises(ValueError, match="got 'quick'"):
        report.parse_plan("2+quick")
