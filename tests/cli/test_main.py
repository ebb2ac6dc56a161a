"""The real command line, as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.helpers import error_line

import pxfast
from pxfast.cli.options import parse_budget
from pxfast.pixelcnn.files import save


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "pxfast.cli", *map(str, arguments)]


def run(*arguments, code=0, **keywords) -> subprocess.CompletedProcess:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=240, **keywords)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save(tiny_model, path)
    return path


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def reference(model):
    """Options that make a purification small and reproducible everywhere."""
    return ["--model", model, "--engine", "reference", "--eps", 16]


def purified(images, model):
    return pxfast.purify(images, 16, model=model, engine="reference")


def test_version_and_help(run_here):
    assert run("--version").stdout.strip() == f"pxfast {pxfast.__version__}"
    listing, _ = run_here("--help")
    assert run_here()[0] == listing
    for name in ("purify", "bpd", "info", "train", "demo"):
        assert name in listing


def test_errors_are_one_line_and_code_2(refused, tmp_path):
    assert "no such file or folder" in error_line(run("bpd", tmp_path / "missing.npy", code=2).stderr)
    assert "OUT" in refused("purify", tmp_path)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_purify_array_file(run_here, model, images, reference, tmp_path, dtype):
    array = images.numpy() if dtype == "uint8" else (images.numpy() / 255).astype(dtype)
    np.save(tmp_path / "in.npy", array)
    _, err = run_here("purify", tmp_path / "in.npy", tmp_path / "out.npy", *reference)
    assert "3/3" in err
    result = np.load(tmp_path / "out.npy")
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result, purified(array, model))


def test_purify_tensor_file_and_single_image(run_here, model, images, reference, tmp_path):
    torch.save(images[0], tmp_path / "in.pt")
    run_here("purify", tmp_path / "in.pt", tmp_path / "out.pt", *reference)
    result = torch.load(tmp_path / "out.pt", weights_only=True)
    assert torch.equal(result, purified(images[0], model))


def test_purify_folder(run_here, refused, model, images, reference, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name, image in zip(("b.bmp", "a.png", "c.tif"), images, strict=True):
        Image.fromarray(image[0].numpy()).save(source / name)
    (source / "notes.txt").write_text("not an image")
    run("purify", source, out, *reference)
    expected = purified(images, model)
    assert sorted(os.listdir(out)) == ["a.png", "b.png", "c.png"]
    for name, image in zip(("b", "a", "c"), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"{name}.png")), image[0].numpy())

    assert "exists already; pass --force" in refused("purify", source, out, *reference)
    os.remove(source / "a.png")
    run_here("purify", source, out, "--force", *reference)
    assert sorted(os.listdir(out)) == ["b.png", "c.png"]
    (out / "precious.txt").touch()
    assert "precious.txt" in refused("purify", source, out, "--force", *reference)
    assert "is the input folder" in refused("purify", out, out, "--force", *reference)
    assert sorted(os.listdir(tmp_path)) == ["in", "out"], "temporary files were left"


def test_purify_image_file_refuses_lossy_output(run_here, refused, model, images, reference, tmp_path):
    Image.fromarray(images[0, 0].numpy()).save(tmp_path / "in.png")
    message = refused("purify", tmp_path / "in.png", tmp_path / "out.jpg", *reference)
    assert "never a lossy format" in message
    assert ".png" in message
    run_here("purify", tmp_path / "in.png", tmp_path / "out.png", *reference)
    result = np.asarray(Image.open(tmp_path / "out.png"))
    np.testing.assert_array_equal(result, purified(images[:1], model)[0, 0].numpy())


def test_purify_refuses_bad_input_in_one_line(refused, model, images, reference, tmp_path):
    np.save(tmp_path / "in.npy", images.numpy())
    np.save(tmp_path / "wide.npy", np.zeros((2, 3, 8, 8), dtype=np.uint8))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "nan.npy", np.full((2, 1, 8, 8), np.nan, dtype=np.float32))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "in.npy").read_bytes()[:-1])
    (tmp_path / "cut.pt").write_bytes(b"PK\3\4 not a tensor")
    torch.save({"images": images}, tmp_path / "dictionary.pt")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out.npy"
    for source, target, said in (
        ("missing.npy", out, "no such file or folder"),
        ("wide.npy", out, "the model takes images of shape (C, H, W) = (1, 8, 8), got (3, 8, 8)"),
        ("objects.npy", out, "not a .npy file of numbers"),
        ("nan.npy", out, "NaN"),
        ("cut.npy", out, "cut.npy is truncated"),
        ("cut.pt", tmp_path / "out.pt", "cut.pt is truncated"),
        ("dictionary.pt", tmp_path / "out.pt", "expected a tensor of images, found dict"),
        ("empty", tmp_path / "out", "has no image files"),
        ("in.npy", tmp_path / "out.pt", "must have the suffix .npy"),
        ("in.npy", tmp_path / "nowhere" / "out.npy", "no such folder"),
    ):
        assert said in refused("purify", tmp_path / source, target, *reference)
        assert not target.exists()
    assert "eps must be an integer in 0..255, got 256" in refused(
        "purify", tmp_path / "in.npy", out, "--eps", 256, "--model", model
    )
    assert "known: auto" in refused("purify", tmp_path / "in.npy", out, "--engine", "gpu", "--model", model)
    assert "no shipped model takes" in refused("purify", tmp_path / "in.npy", out)
    assert not out.exists()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")], "temporary files were left"


def test_folder_of_unequal_images_is_refused_by_name(refused, model, reference, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    Image.new("L", (8, 8)).save(source / "a.png")
    Image.new("RGB", (8, 8)).save(source / "b.png")
    assert "b.png has shape" in refused("purify", source, tmp_path / "out", *reference)
    Image.new("RGBA", (8, 8)).save(source / "a.png")
    assert "a.png has pixels of mode RGBA" in refused("purify", source, tmp_path / "out", *reference)
    (source / "a.png").write_bytes(b"not an image")
    assert "a.png can't be read as an image" in refused("purify", source, tmp_path / "out", *reference)
    Image.new("L", (8, 8)).save(source / "a.png")
    Image.new("L", (8, 8)).save(source / "a.bmp")
    assert "several images that would be written as a.png" in refused("purify", source, tmp_path / "out", *reference)
    assert os.listdir(tmp_path) == ["in"]


def test_bpd(run_here, model, images, tmp_path):
    np.save(tmp_path / "in.npy", images.numpy())
    expected = pxfast.bits_per_dim(images, model=model)
    lines = run("bpd", tmp_path / "in.npy", "--model", model).stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["0", "1", "2", "mean"]
    found = torch.tensor([float(line.split("\t")[1]) for line in lines])
    torch.testing.assert_close(found, torch.cat((expected, expected.mean()[None])), rtol=0, atol=1e-4)
    facts = json.loads(run_here("bpd", tmp_path / "in.npy", "--model", model, "--json")[0])
    assert [image["name"] for image in facts["images"]] == ["0", "1", "2"]
    assert facts["mean"] == pytest.approx(float(expected.mean()), abs=1e-5)


def test_info(run_here):
    facts = json.loads(run("info", "--json").stdout)
    assert facts["pxfast"] == pxfast.__version__
    assert facts["packages"]["numpy"] == np.__version__
    engines = {engine["name"]: engine for engine in facts["engines"]}
    assert engines["reference"]["usable"]
    assert all(engine["usable"] == (engine["reason"] is None) for engine in engines.values())
    assert engines[facts["default_engine"]]["usable"]
    assert [name for name, engine in engines.items() if engine["auto"]] == [facts["default_engine"]]
    assert facts["cpu"]["threads"] >= 1
    assert isinstance(facts["cuda"]["compiled"], bool)
    text, _ = run_here("info")
    for word in (*engines, "fashion-mnist", np.__version__):
        assert word in text


def test_ctrl_c_is_clean(model, tmp_path):
    """The interrupted run ends quickly with 130, one line, and neither output nor temporary files."""
    np.save(tmp_path / "in.npy", np.zeros((4096, 1, 8, 8), dtype=np.uint8))
    arguments = command("purify", tmp_path / "in.npy", tmp_path / "out.npy", "--engine", "reference", "--model", model)
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    while not [name for name in os.listdir(tmp_path) if name.startswith(".out")]:
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted" in errors
    assert os.listdir(tmp_path) == ["in.npy"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("2h", 7200), ("1h30m", 5400), ("0.5h", 1800)]
)
def test_budget(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "2 h", "h", "-1h", "30m1h", "forever"])
def test_bad_budget(text):
    with pytest.raises(ValueError, match="budget must be a duration such as 45m"):
        parse_budget(text)


def test_train(run_here, refused, data_root, tmp_path):
    out = tmp_path / "model.safetensors"
    options = ["--root", data_root, "--out", out, "--filters", 2, "--resnets", 1, "--threads", 1, "--batch-size", 8]
    run("train", "fashion-mnist", *options, "--epochs", "0.0005", "--dropout", 0.1)
    model = pxfast.load(out)
    assert model.config == pxfast.PixelCNNConfig((28, 28), 1, 2, 1, dropout=0.1)
    assert "exists already; pass --force" in refused("train", "fashion-mnist", *options)
    bits = json.loads(run_here("bpd", _first_test_images(data_root, tmp_path), "--model", out, "--json")[0])
    assert 0 < bits["mean"] < 100


def _first_test_images(data_root, tmp_path) -> Path:
    from pxfast.data.datasets import load_dataset

    path = tmp_path / "first.npy"
    np.save(path, load_dataset("fashion-mnist", data_root, train=False)[0][:4].numpy())
    return path


def test_train_refuses_bad_settings(refused, tmp_path):
    options = ["--root", tmp_path, "--out", tmp_path / "model.safetensors"]
    assert "known: cifar10, fashion-mnist" in refused("train", "mnist", *options)
    assert "budget must be a duration" in refused("train", "cifar10", *options, "--budget", "long")
    assert "filters must be a positive integer" in refused("train", "cifar10", *options, "--filters", 0)
    assert "fashion-mnist was not found under" in refused("train", "fashion-mnist", *options)
    assert os.listdir(tmp_path) == []
