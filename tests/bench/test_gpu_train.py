"""bench/gpu.sh train: the network that fits the time, pieces that go on from each other, files that fit the folder."""

from __future__ import annotations

import argparse
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
from support.helpers import SOURCE, random_model

from pxfast.pixelcnn.files import load_model, save
from pxfast.pixelcnn.shipped import model_path

# In place of pxfast: notes its arguments, keeps a model and a checkpoint, and is over at its second call.
TRAINING = """
import json, os, sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
calls = Path(sys.argv[0]).with_name("calls")
Path(sys.argv[0]).with_name("process").write_text(str(os.getpid()))
with calls.open("a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
whole = out.with_name("whole")
whole.write_bytes(Path(sys.argv[0]).with_name("model").read_bytes())
whole.replace(out)  # at once, as pxfast does
out.with_suffix(".checkpoint.safetensors").write_bytes(b"state")
if len(calls.read_text().splitlines()) % 2 == 0:
    print(json.dumps({"bits_per_dim": 3.0}))
    sys.exit()
time.sleep(100)
"""


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(SOURCE / "bench"))
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    module = importlib.import_module("gpu_train")
    monkeypatch.setattr(module, "WORK", tmp_path / "run")
    monkeypatch.setattr(module, "MARGIN", 0.0)
    return module


@pytest.fixture
def piece(training: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Runs a piece in this process; gives the rows so far."""
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "training.py").write_text(TRAINING)
    (tmp_path / "model").write_bytes(model_path("cifar10", (3, 32, 32)).read_bytes())
    monkeypatch.setenv("TRAIN", f"{sys.executable} -S {tmp_path / 'training.py'}")
    rows = importlib.import_module("gpu_rows")

    def piece(*words: str, code: int) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["gpu_train.py", "--data", str(tmp_path), "--seconds", "1", *words])
        with pytest.raises(SystemExit) as stop:
            training.main()
        assert stop.value.code == code
        found: list[dict[str, Any]] = rows.read_rows(tmp_path / "out" / rows.ROWS)
        return found

    return piece


def calls(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


@pytest.mark.process
def test_pieces_go_on_from_each_other_and_a_new_run_from_the_last_model(piece, training, monkeypatch, tmp_path):
    monkeypatch.setattr(training, "rate", lambda *_: (1.0, False))
    out = tmp_path / "out"
    piece("--budget", "900", code=75)
    files = {file.name for file in out.iterdir()}
    pieces = {file for file in files if file.startswith("cifar10.safetensors.")}
    assert len(pieces) == 2
    assert files - pieces == {"cifar10.checkpoint.safetensors", "gpu-rows.jsonl", "gpu-log.txt"}
    for file in (tmp_path / "run").iterdir():  # another machine, which is given the files
        file.unlink()
    earlier = tmp_path / "earlier"
    out.rename(earlier)
    rows = piece("--budget", "900", "--from", str(earlier), code=0)
    assert rows[-2]["bits_per_dim"] == 3.0
    assert {file.name for file in out.iterdir()} == files - {"cifar10.checkpoint.safetensors"}
    piece("--learning-rate", "1e-3", code=75)
    first, second, third = calls(tmp_path)
    assert first[first.index("--start") :][:2] == ["--start", "cifar10"]
    assert first[first.index("--filters") :][:2] == ["--filters", "80"]
    assert first[first.index("--budget") :][:2] == ["--budget", "900s"]
    assert "--resume" not in first
    assert "--resume" in second
    assert "--start" not in second
    assert third[-2:] == ["--learning-rate", "1e-3"]
    assert first[first.index("--batch-size") :][:2] == ["--batch-size", "512"]
    assert float(first[first.index("--muon-learning-rate") + 1]) < 0.02  # a trained model is not thrown back
    assert first[first.index("--checkpoint-interval") :][:2] == ["--checkpoint-interval", "40s"]
    assert third[third.index("--start") + 1] == str(tmp_path / "run" / "start.safetensors")


@pytest.mark.process
def test_a_kill_at_any_time_after_the_first_checkpoint_leaves_the_model(piece, training, tmp_path):
    """The stand-in keeps its model at once, and then goes on for 100 seconds."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(
        '{"filters": 64, "resnets": 2, "budget": 90, "cuda_graphs": false, "over": false}'
    )
    driver = "import sys, pathlib, gpu_train; gpu_train.WORK = pathlib.Path(sys.argv.pop()); gpu_train.main()"
    words = ["--data", str(tmp_path), "--seconds", "100", str(tmp_path / "run")]
    path = os.pathsep.join((str(SOURCE), str(SOURCE / "bench")))
    command = [sys.executable, "-c", driver, *words]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}) as process:
        deadline = time.monotonic() + 60
        rows = tmp_path / "out" / "gpu-rows.jsonl"
        while '"checkpoint"' not in (rows.read_text() if rows.exists() else ""):
            assert process.poll() is None
            assert time.monotonic() < deadline, "no model within a minute"
            time.sleep(0.05)
        process.kill()
        os.kill(int((tmp_path / "process").read_text()), signal.SIGKILL)  # which has outlived it
    whole = b"".join(piece.read_bytes() for piece in training.whole_pieces(tmp_path / "out"))
    assert whole == model_path("cifar10", (3, 32, 32)).read_bytes()


# pxfast itself, on a few images.
SMALL = """
import torch
torch.set_num_threads(1)
from pxfast.data import datasets
from support.helpers import bundled_images
datasets.load_dataset = lambda name, root, train: (bundled_images(3)[:32] if train else bundled_images(3)[32:], None)
from pxfast.cli import main
main.main()
"""


@pytest.mark.process
def test_a_whole_piece_trains_a_network_and_leaves_its_model(piece, training, monkeypatch, tmp_path):
    """The real command, from a small model in the place of the shipped one; none of it is a stand-in but the images."""
    rows = importlib.import_module("gpu_rows")
    (tmp_path / "small.py").write_text(SMALL)
    monkeypatch.setenv("TRAIN", f"{sys.executable} {tmp_path / 'small.py'}")
    monkeypatch.setenv("PYTHONPATH", str(SOURCE / "tests"))
    monkeypatch.setattr(training, "CHECKPOINTS", "0s")
    (tmp_path / "run").mkdir()
    save(random_model((32, 32), 3, 4, 1), tmp_path / "run" / "start.safetensors")
    run = tmp_path / "run" / "run.json"
    run.write_text('{"filters": 6, "resnets": 1, "budget": 0.4, "cuda_graphs": false, "over": false}')
    monkeypatch.setattr(training, "begin", lambda run: str(tmp_path / "run" / "start.safetensors"))
    found = piece("--seconds", "60", "--device", "cpu", "--batch-size", "8", code=0)
    assert {row["part"] for row in found} == {"training", "checkpoint", "training ended", "files"}
    steps = [row["step"] for row in found if row["part"] == "checkpoint"]
    assert steps == sorted(steps)
    assert found[-2]["steps"] >= steps[-1] > 0
    assert found[-2]["test_images"] == 16
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["cifar10.safetensors", rows.LOG, rows.ROWS]
    model = load_model(out / "cifar10.safetensors")
    assert (model.config.filters, model.config.resnets) == (6, 1)
    assert json.loads(run.read_text())["over"]


def test_the_compact_copies_come_in_parts(training, monkeypatch, tmp_path, capsys):
    data, names = tmp_path / "data", [f"cifar10/{name}.webp" for name in training.COMPACT]
    parts = [["unpack.py", "cifar10/index.tsv.xz", "cifar10/batches.meta", *names[:2]], names[2:4], names[4:]]
    (tmp_path / "run").mkdir()
    for n, part in enumerate(parts):
        for name in part:
            file = tmp_path / "part" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("import sys, pathlib; pathlib.Path(sys.argv[1]).mkdir()" if name == "unpack.py" else name)
        training.add(tmp_path / "part", data)
        if n < 2:
            assert training.data_root(data) is None
            assert json.loads(capsys.readouterr().out)["missing"] == [
                name for later in parts[n + 1 :] for name in later
            ]
    assert training.data_root(data) == tmp_path / "run" / "data"
    assert (tmp_path / "run" / "data").is_dir()
    (data / "unpack.py").write_text("raise SystemExit('damaged')")
    with pytest.raises(SystemExit, match="could not be unpacked: damaged"):
        training.data_root(data)
    with pytest.raises(SystemExit, match=r"expected torchvision's root folder, or unpack\.py and cifar10/"):
        training.data_root(tmp_path / "part")


@pytest.mark.parametrize(
    ("rates", "budget", "expected"),
    [
        ({(96, 3): 1200.0}, None, (96, 3)),
        ({(96, 3): 900.0, (80, 4): 1100.0}, None, (80, 4)),
        ({(96, 3): None, (80, 4): 5000.0}, None, (80, 4)),  # such as not enough memory
        ({(96, 3): 10.0, (80, 4): 10.0}, None, (80, 3)),
        ({}, 3600.0, (80, 3)),  # the checkpoints of all others are too large to be taken along
    ],
)
def test_the_largest_network_that_fits_the_time_is_taken(training, monkeypatch, rates, budget, expected):
    """A run of 500 seconds and 10 epochs asks for 1,000 images a second."""
    found = {size: None if found is None else (found, True) for size, found in rates.items()}
    monkeypatch.setattr(training, "rate", lambda options, filters, resnets, variables: found.get((filters, resnets)))
    monkeypatch.setattr(training.time, "monotonic", lambda: 0.0)
    options = argparse.Namespace(budget=budget)
    found = training.pick(options, 500 + training.START + training.END, (80, 3), {})
    assert (found["filters"], found["resnets"]) == expected
    assert found["budget"] == (budget or 500)
    assert found["cuda_graphs"] == (expected != (80, 3))


def test_a_model_that_is_larger_than_the_shipped_one_is_never_made_smaller(training, monkeypatch):
    measured = []
    monkeypatch.setattr(
        training, "rate", lambda options, filters, resnets, variables: measured.append((filters, resnets))
    )
    found = training.pick(argparse.Namespace(budget=None), 1e9, (96, 2), {})
    assert (found["filters"], found["resnets"]) == (96, 2)
    assert measured == [(96, 3), (96, 2)]


def test_every_network_fits_its_files(training):
    for filters, resnets in training.NETWORKS:
        assert training.fits(filters, resnets, True)
    assert training.fits(64, 2, False)
    assert not training.fits(160, 5, True)
    shipped = model_path("cifar10", (3, 32, 32)).stat().st_size
    assert shipped == pytest.approx(training.MODEL_BYTES * training.parameters(*training.NETWORKS[-1]), rel=0.02)


@pytest.mark.parametrize("size", [10, 100, 250])
def test_a_large_model_is_taken_out_in_pieces_and_put_together_again(training, monkeypatch, tmp_path, size):
    monkeypatch.setattr(training, "FILE_BYTES", 100)
    work, out = tmp_path / "run", tmp_path / "out"
    work.mkdir()
    rows = importlib.import_module("gpu_rows")
    told = {"filters": 64, "resnets": 2, "budget": 9, "cuda_graphs": True, "over": False}
    rows.keep({"part": "training", **told})
    for content in (os.urandom(250), os.urandom(10), os.urandom(size)):  # of later checkpoints
        (work / "cifar10.safetensors").write_bytes(content)
        training.take_out(work / "cifar10.safetensors")
    files = [file for file in out.iterdir() if file.name != rows.ROWS]
    assert len(files) == training.pieces_of(size) == -(-size // 100)
    assert sum(file.stat().st_size for file in files) == size
    (work / "cifar10.safetensors").unlink()
    training.restore(out, work / "run.json")
    assert (work / "cifar10.safetensors").read_bytes() == content
    assert json.loads((work / "run.json").read_text()) == told
    if size > 100:
        (out / next(file.name for file in files if "2-of" in file.name)).unlink()
        with pytest.raises(SystemExit, match="has no model of an earlier piece"):
            training.restore(out, work / "run.json")


def test_the_checkpoint_of_the_shipped_network_fits_and_of_a_larger_one_the_model_does(training, tmp_path):
    rows = importlib.import_module("gpu_rows")
    work, out = tmp_path / "run", tmp_path / "out"
    work.mkdir()
    (work / "run.json").write_text('{"over": false}')
    (work / "cifar10.safetensors").touch()
    (work / "cifar10.checkpoint.safetensors").touch()
    out.mkdir()
    (out / "gpu-log.txt").touch()
    rows.keep({"part": "training"})
    for shards, kept in ((4, True), (5, False)):  # of 15 MB: what 64 filters and 2 layers take
        for shard in range(shards):
            (work / f"cifar10.checkpoint.a-{shard}.safetensors").touch()
        training.copy_out()
        row = rows.read_rows(out / rows.ROWS)[-1]
        assert len(row["files"]) == (2 + shards if kept else 1)
        assert len(list(out.iterdir())) == (8 if kept else 3)
    assert row["files"] == ["cifar10.safetensors"]


def test_a_run_without_its_checkpoint_starts_from_its_model(training, tmp_path):
    work = tmp_path / "run"
    work.mkdir()
    run = work / "run.json"
    run.write_text('{"over": false}')
    (work / "cifar10.safetensors").touch()
    (work / "cifar10.checkpoint.safetensors").touch()
    assert training.begin(run) == "cifar10"
    assert run.exists()
    (work / "cifar10.checkpoint.safetensors").unlink()
    assert training.begin(run) == str(work / "start.safetensors")
    assert [file.name for file in work.iterdir()] == ["start.safetensors"]


def test_a_folder_without_an_earlier_piece_is_refused(training, tmp_path):
    (tmp_path / "cifar10.safetensors").touch()
    with pytest.raises(SystemExit, match="has no model of an earlier piece, or no rows of it"):
        training.restore(tmp_path, tmp_path / "run.json")


@pytest.mark.process
def test_the_rate_is_that_of_the_script(training, tmp_path):
    (tmp_path / "run").mkdir()
    fake = tmp_path / "python"
    fake.write_text(
        f'#!/bin/sh\necho \'{{"images_per_second": 7.0, "bits_per_dim": 3}}\' > {tmp_path}/run/rate.jsonl\n'
    )
    fake.chmod(0o755)
    options = argparse.Namespace(python=str(fake), device="cpu", batch_size=2)
    assert training.rate(options, 64, 3, {}) == (7.0, False)
    fake.write_text("#!/bin/sh\nexit 1\n")
    assert training.rate(options, 64, 3, {}) is None


@pytest.mark.parametrize(
    ("replayed", "expected"),
    [
        ({"images_per_second": 9.0, "bits_per_dim": 3.01}, (9.0, True)),
        ({"images_per_second": 5.0, "bits_per_dim": 3.01}, (7.0, False)),
        ({"images_per_second": 9.0, "bits_per_dim": 3.2}, (7.0, False)),  # it learns something else
        ({"images_per_second": 9.0, "bits_per_dim": float("nan")}, (7.0, False)),
        (None, (7.0, False)),
    ],
)
def test_cuda_graphs_are_taken_where_they_learn_the_same_faster(training, monkeypatch, replayed, expected):
    plain = {"images_per_second": 7.0, "bits_per_dim": 3.0}
    monkeypatch.setattr(training, "measured", lambda *given: replayed if given[-1] == "--cuda-graphs" else plain)
    assert training.rate(argparse.Namespace(device="cuda"), 64, 3, {}) == expected
