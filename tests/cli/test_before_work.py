"""Work is checked before it starts: a missing library or a bad output ends a command before any network is made."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import random_model, real_images, whole_command
from torch import nn

import pxfast
from pxfast.cli.main import COMMANDS
from pxfast.data.image_files import write_png
from pxfast.evaluation.figures import pictures

# a command that could do its work, but for what is missing: {pictures} are images of Fashion-MNIST's shape, {classes}
# the same in folders of classes, {empty} an empty folder
EXTRAS = [
    ("sklearn.metrics", "evaluate", "figures density {pictures} --out out --model fashion-mnist"),
    ("scipy.optimize", "evaluate", "figures density {pictures} --out out --model fashion-mnist"),
    ("foolbox", "attacks", "figures density {pictures} --out out --model fashion-mnist --attacks gaussian-blur"),
    ("sklearn.metrics", "evaluate", "figures detectors {pictures} --out out --classifier fashion-mnist"),
    ("foolbox", "attacks", "attack {pictures} --out out.npy --attack gradient"),
    ("foolbox", "attacks", "attack {pictures} --out out.npy --attack uniform-noise"),
    ("pyautoattack", "attacks", "attack {pictures} --out out.npy --attack autoattack"),
    ("scipy.optimize", "attacks", "attack {pictures} --out out.npy --attack lbfgs"),
    ("foolbox", "attacks", "evaluate reproduction --root {empty} --out out"),
    ("scipy.optimize", "attacks", "evaluate reproduction --root {empty} --out out --columns lbfgs"),
    ("ray", "ray", "evaluate table1 --root {empty} --out out --runner ray"),
    ("ray.data", "ray", "evaluate table1 --root {empty} --out out --runner ray"),
    ("sklearn.metrics", "evaluate", "evaluate figures --root {empty} --out out"),
    ("scipy.optimize", "evaluate", "evaluate figures --root {empty} --out out"),
    ("ray", "ray", "evaluate figures --root {empty} --out out --runner ray"),
]
# what writes a file with a suffix, and what writes into a folder
FILES = {
    "purify": ("purify {pictures} {out}", ".npy"),
    "purify, .pt": ("purify {pictures} {out}", ".pt"),
    "purify --grid": ("purify {pictures} right.npy --grid {out}", ".png"),
    "detect": ("detect {pictures} --out {out}", ".tsv"),
    "bpd": ("bpd {pictures} --out {out}", ".json"),
    "sample": ("sample 2 --model fashion-mnist --out {out}", ".npy"),
    "sample --grid": ("sample 2 --model fashion-mnist --grid {out}", ".png"),
    "attack": ("attack {pictures} --out {out}", ".npy"),
    "attack, .png": ("attack {pictures} --images 1 --out {out}", ".png"),
    "attack --grid": ("attack {pictures} --out right.npy --grid {out}", ".png"),
    "certify": ("certify {classes} --model fashion-mnist --out {out}", ".json"),
    "certify --curve": ("certify {classes} --model fashion-mnist --out right.json --curve {out}", ".png"),
    "certify --page": ("certify {classes} --model fashion-mnist --out right.json --page {out}", ".html"),
    "train": ("train {pictures} --preset small --start fashion-mnist --out {out}", ".safetensors"),
    "train-classifier": ("train-classifier {classes} resnet62 --out {out}", ".safetensors"),
    "train-adp": ("train-adp {pictures} --preset small --start fashion-mnist --out {out}", ".safetensors"),
    "convert openai-tf": ("convert openai-tf {pictures} {out}", ".safetensors"),
    "demo": ("demo --out {out}", ".png"),
}
FOLDERS = {
    "purify, a folder": "purify {pictures} {out}",
    "attack, a folder": "attack {pictures} --out {out}",
    "evaluate table1": "evaluate table1 --root {empty} --out {out}",
    "evaluate table": "evaluate table {table} --root {empty} --out {out}",
    "evaluate figures": "evaluate figures --root {empty} --out {out}",
    "figures density": "figures density {pictures} --model fashion-mnist --out {out}",
    "figures detectors": "figures detectors {pictures} --classifier fashion-mnist --out {out}",
}
WITHOUT = {"info", "bench", "tune", "app", "report"}  # no output, one of its own, no network


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("before-work")
    found = {name: folder / name for name in ("pictures", "classes", "empty")}
    for each in (found["pictures"], found["empty"], *(found["classes"] / str(n) for n in range(10))):
        each.mkdir(parents=True)
    for n in range(4):
        picture = torch.full((1, 28, 28), 50 * n, dtype=torch.uint8)
        write_png(picture, found["pictures"] / f"{n}.png")
        write_png(picture, found["classes"] / str(n) / f"{n}.png")
    found["table"] = Path(pxfast.__file__).parent / "evaluation" / "tables" / "adaptive.toml"
    return found


@pytest.fixture
def no_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes a network or runs one is caught."""

    def caught(self: nn.Module, *arguments: Any, **options: Any) -> None:
        raise AssertionError(f"a {type(self).__name__} is made or run before everything was checked")

    monkeypatch.setattr(nn.Module, "register_parameter", caught)  # a module without weights may be a defence alone
    monkeypatch.setattr(nn.Module, "__call__", caught)


def test_the_door_catches(places, run_here, no_networks, monkeypatch, tmp_path) -> None:
    """The same commands get to a network where nothing is wrong."""
    monkeypatch.chdir(tmp_path)
    for command in ("purify {pictures} out.npy", "attack {pictures} --out out.npy", "demo --out a.png"):
        with pytest.raises(AssertionError, match="before everything was checked"):
            run_here(*(part.format(**places) for part in command.split()))
    assert not list(tmp_path.iterdir())


def test_every_command_is_here() -> None:
    named = " ".join([*FILES, *FOLDERS])
    for name, command in whole_command().commands.items():
        for inner in getattr(command, "commands", {"": None}):
            words = f"{name} {inner}".strip()
            table = words.startswith("evaluate ") and words != "evaluate figures"  # all of which are one function
            assert name in WITHOUT or ("evaluate table1" if table else words) in named, words
    assert {name for commands in COMMANDS.values() for name in commands} == set(whole_command().commands)


@pytest.mark.parametrize(("module", "extra", "command"), EXTRAS, ids=[f"{m}: {c}" for m, _, c in EXTRAS])
def test_a_missing_library_is_noticed_first(
    module, extra, command, places, tmp_path, monkeypatch, refused, no_networks
) -> None:
    pytest.importorskip("sklearn.metrics")  # which imports SciPy: it is to be SciPy alone that is missing
    if "." in module:  # it is to be missing from a library that is there
        pytest.importorskip(module.partition(".")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    line = refused(*(part.format(**places) for part in command.split()))
    assert line == f"error: {module} is not installed: pip install 'pxfast[{extra}]'"
    assert not list(tmp_path.iterdir()), "something was written"


@pytest.mark.parametrize("wrong", ["exists", "a folder", "no parent", "a file as parent", "not writable"])
@pytest.mark.parametrize(("command", "suffix"), FILES.values(), ids=list(FILES))
def test_a_bad_output_file_is_noticed_first(
    wrong, command, suffix, places, tmp_path, monkeypatch, refused, no_networks
) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path(f"out{suffix}")
    if wrong == "exists":
        out.write_text("mine")
    elif wrong == "a folder":
        out.mkdir()
    elif wrong == "no parent":
        out = Path("no") / out
    elif wrong == "a file as parent":
        Path("file").write_text("mine")
        out = Path("file") / out
    elif not Path("/proc/self").is_dir():
        pytest.skip("there is no /proc, in which nobody can write")
    else:
        out = Path("/proc") / out
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    line = refused(*(part.format(**places, out=out) for part in command.split()))
    said = {
        "exists": "exists already; pass --force",
        "a folder": "is a folder, expected the path of a file to write",
        "no parent": "no such folder",
        "a file as parent": "no such folder",
        "not writable": "/proc",
    }
    assert said[wrong] in line
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before, "something was written"


@pytest.mark.parametrize("wrong", ["a file", "a file as parent"])
@pytest.mark.parametrize("command", FOLDERS.values(), ids=list(FOLDERS))
def test_a_bad_output_folder_is_noticed_first(
    wrong, command, places, tmp_path, monkeypatch, refused, no_networks
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").write_text("mine")
    out = Path("out") if wrong == "a file" else Path("out") / "inner"
    line = refused(*(part.format(**places, out=out) for part in command.split()))
    assert "out" in line
    assert any(words in line for words in ("exists already", "is not a folder", "no such folder")), line
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert Path("out").read_text() == "mine"


def test_the_last_wrong_image_is_noticed_first(places, tmp_path, monkeypatch, refused, no_networks) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.full((600, 1, 28, 28), 0.5, np.float32)
    images[-1, 0, 3, 3] = np.nan
    np.save("a.npy", images)
    for command in ("purify a.npy b.npy", "bpd a.npy", "detect a.npy", "purify a.npy b --batch-size 1"):
        assert "a.npy: floating-point images must be in [0, 1], got NaN" in refused(*command.split())
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_the_settings_of_defences_are_noticed_before_their_networks(refused, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    pxfast.save(random_model(), "tiny.safetensors")
    np.save("a.npy", np.zeros((1, 1, 8, 8), np.uint8))

    def caught(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a network is read before everything was checked")

    monkeypatch.setattr("pxfast.tensors.shipped.Shipped.load", caught)
    for setting in ("precision=fp64", "threads=0", "backward=often", "clip=3", "engine=abacus", "eps=300"):
        name = setting.partition("=")[0]
        assert name in refused("purify", "a.npy", "b.npy", "--defence", f"purifier:model=tiny.safetensors,{setting}")


def test_benchmarks_are_checked_as_a_whole(refused, monkeypatch) -> None:
    def caught(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a row is measured, or a network made, before everything was checked")

    monkeypatch.setattr("pxfast.engines.benchmark.measure", caught)
    monkeypatch.setattr("pxfast.engines.benchmark.network", caught)
    assert "unknown network 'magic'" in refused("bench", "--network", "shipped-cifar10", "--network", "magic")
    line = refused("bench", "--isa", "portable", "--isa", "magic")
    assert "isa must be one of" in line
    assert "unknown network 'magic'" in refused("tune", "--network", "paper-cifar10", "--network", "magic")
    if not torch.cuda.is_available():
        assert "measures on a GPU, and none can be used here" in refused("tune")


def test_all_data_sets_of_the_figures_are_looked_for_first(places, tmp_path, monkeypatch, refused) -> None:
    """Fashion-MNIST is missing: CIFAR-10's figures, which come first, are not begun."""
    from pxfast.evaluation.figures import evaluate

    loaded = []

    def load_dataset(name: str, root: Path, *, train: bool) -> None:
        loaded.append(name)
        if name == "fashion-mnist":
            raise FileNotFoundError("fashion-mnist was not found")

    def caught(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a figure is begun")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pxfast.data.datasets.load_dataset", load_dataset)
    monkeypatch.setattr(evaluate, "evaluate_figures", caught)
    assert "fashion-mnist was not found" in refused("evaluate", "figures", "--root", places["empty"], "--out", "out")
    assert loaded == ["cifar10", "fashion-mnist"]


def test_a_rerun_after_a_failure_is_not_refused(tmp_path, monkeypatch, run_here) -> None:
    """For want of a library at first; it is installed then."""
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(pictures.STYLE, "savefig.dpi", 40)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n, image in enumerate(real_images(1, (8, 8), 4)):
        write_png(image, folder / f"{n}.png")
    pxfast.save(random_model(), "tiny.safetensors")
    drawn = {name: pictures.PICTURES[name] for name in ("samples", "roc")}
    monkeypatch.setattr(pictures, "PICTURES", drawn)
    command = [
        "figures",
        "density",
        folder,
        "--out",
        "out",
        "--model",
        "tiny.safetensors",
        "--lbfgs-images",
        0,
    ]
    command += ["--images", 1, "--train-images", 2, "--attacks", "rand", "--json"]
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "sklearn.metrics", None)
        run_here(*command, code=2)
    files = json.loads(run_here(*command)[0])["files"]
    assert all(Path(file).is_file() for file in files)
    assert len(files) == 5
