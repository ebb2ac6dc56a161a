"""bench/experiments: what an earlier run left is of the same settings, or refused; first looks replace no results."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support.helpers import SOURCE, real_images

import pxfast
from pxfast.evaluation.verdict import Score


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    """Imports a script by its name."""

    def script(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(SOURCE / "bench" / "experiments"))
        return importlib.import_module(name)

    return script


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch):
    """Runs a script with a command line."""

    def call(module: ModuleType, *words: object) -> None:
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, words)])
        module.main()

    return call


def test_networks_of_another_budget_are_not_compared(script, call, monkeypatch, tmp_path, capsys) -> None:
    module = script("network_sizes")
    notes = {"images_seen": 1000, "seconds": 10.0, "test_bits_per_dim": 3.0}

    def trained(file: Path, command: list[str]) -> dict[str, object]:
        file.touch()
        return notes

    monkeypatch.setattr(module, "trained", trained)
    tiny = pxfast.PixelCNN(pxfast.PixelCNNConfig((8, 8), 1, filters=4, resnets=1))
    monkeypatch.setattr(module.pxfast, "load", lambda _: tiny)
    given = ["cifar10", "--root", "DATA", "--folder", tmp_path / "made"]
    call(module, *given, "--budget", "10m", "--schedule", "linear")
    first = capsys.readouterr().out
    call(module, *given, "--budget", "10m", "--schedule", "linear")
    assert capsys.readouterr().out == first
    for others in (["--budget", "20m", "--schedule", "linear"], ["--budget", "10m"]):
        with pytest.raises(SystemExit, match=r"trained with .*'10m'.*: take another"):
            call(module, *given, *others)
    (tmp_path / "made" / "cifar10-settings.json").unlink()
    with pytest.raises(SystemExit, match=r"no cifar10-settings\.json says how"):
        call(module, *given)


def test_rows_of_another_attack_are_not_taken(script, call, monkeypatch, tmp_path) -> None:
    module = script("adaptive_headline")
    before = {"settings": {**module.SETTINGS, "steps": 40}, "rows": []}
    (tmp_path / "headline.json").write_text(json.dumps(before))
    monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("it went on"))
    with pytest.raises(SystemExit, match=r"'steps': 40.*take another --out"):
        call(module, "--root", "DATA", "--out", tmp_path)
    (tmp_path / "headline.json").write_text(json.dumps({**before, "settings": module.SETTINGS}))
    assert module.finished_rows(tmp_path / "headline.json") == []


def certified(**changes: object) -> dict[str, object]:
    """What `pxfast certify` writes of one image, with other settings."""
    settings = {"norm": "l1", "width": 32, "purifier": "midpoints", "dither": "lattice", **changes}
    image = {"image": "0", "label": 0, "prediction": 0, "radius": 3, "votes": [32]}
    return {"machine": "here", "version": "0", "settings": settings, "classifier": "cifar10", "images": [image]}


def test_certificates_of_other_options_are_refused(script, monkeypatch, tmp_path) -> None:
    module = script("certificates")
    monkeypatch.setattr(module, "pxfast", lambda *_: pytest.fail("it was made anew"))
    kept = tmp_path / "cifar10-l1-32-midpoints-1.json"
    places = ("cifar10", "l1-32-midpoints", 1, Path("DATA"), tmp_path, 1)
    kept.write_text(json.dumps(certified()))
    assert module.run(*places) == kept
    for changes in ({"width": 64}, {"dither": "random", "seed": 0}, {"views": "flip"}):
        kept.write_text(json.dumps(certified(**changes)))
        with pytest.raises(SystemExit, match=f"made with {next(iter(changes))} "):
            module.run(*places)
    other = {**certified(), "classifier": {"name": "cifar10", "sha256": "0" * 64}}
    kept.write_text(json.dumps(other))
    with pytest.raises(SystemExit, match="made with classifier 0000"):
        module.run(*places)


def test_a_first_look_replaces_no_results(script, call, monkeypatch, tmp_path) -> None:
    root, work = tmp_path / "repository", tmp_path / "work"
    (root / "bench" / "results").mkdir(parents=True)
    (root / "docs").mkdir()
    work.mkdir()

    module = script("certificates")
    monkeypatch.setattr(module, "ROOT", root)
    (work / "cifar10-l1-32-midpoints-1.json").write_text(json.dumps(certified()))
    look = ["cifar10", "--root", "DATA", "--work", work, "--images"]
    call(module, *look, 1, "--only", "l1-32-midpoints")
    assert (work / "certificates-cifar10.json").exists()
    assert (work / "certificate.png").exists()

    module = script("views")
    scores = tuple(Score(name, 1, 1.0, 1, 1) for name in (module.CLEAN, module.BLIND, module.AWARE))
    monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(module, "judged", lambda _, chosen, *__: {point.title: scores for point in chosen})
    call(module, *look, 2)
    assert (work / "views-cifar10.json").exists()
    assert (work / "views.png").exists()

    assert not [*root.rglob("*.json"), *root.rglob("*.png")]
    call(module, *look, module.IMAGES)
    assert (root / "docs" / "views.png").exists()


def test_points_of_another_classifier_do_not_stay(script, call, monkeypatch, tmp_path) -> None:
    module = script("views")
    monkeypatch.setattr(module, "judged", lambda *_: pytest.fail("it went on"))
    file, only = tmp_path / "views-cifar10.json", "eps 16, one view"
    model = module.model_fingerprint(module.load("cifar10"))
    before = {"script": module.NAME, "data": "the first 2 test images of cifar10", "eps of the attacks": module.EPS}
    file.write_text(json.dumps({**before, "density model": model, "classifier": "0" * 64, "points": {}}))
    with pytest.raises(SystemExit):
        call(module, "cifar10", "--root", "DATA", "--work", tmp_path, "--images", 2, "--only", only)


@pytest.mark.parametrize(
    ("name", "columns"), [("dithers", (4, 2)), pytest.param("near_estimates", (8,), marks=pytest.mark.whole)]
)
def test_tables_of_estimates_have_a_row_for_each_width(script, call, monkeypatch, capsys, name, columns) -> None:
    module = script(name)
    images, labels = real_images(3, (32, 32), 6), torch.arange(6)
    monkeypatch.setattr(module, "load_dataset", lambda *_, **__: (images, labels))
    monkeypatch.setattr(module, "IMAGES", 2)
    monkeypatch.setattr(module, "WIDTHS", (442,))
    call(module, "--root", "DATA")
    tables = [table.splitlines() for table in capsys.readouterr().out.strip().split("\n\n")]
    for table, count in zip(tables, columns, strict=True):
        head, line, row = table
        assert head.count("|") == line.count("|") == row.count("|") == count + 2
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[0] == "442"
        assert all(float(part) > 0 for cell in cells[1:] for part in cell.split(" / ")[-1:])
