"""``pxfast purify``: what it reads, writes and refuses."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from support.engines import QUICK
from support.helpers import run_command

import pxfast
from pxfast.adp.files import save_score_network
from pxfast.adp.purifier import ADPPurifier
from pxfast.adp.score_network import ScoreNetwork, ScoreNetworkConfig
from pxfast.defences import FeatureSqueezing
from pxfast.pixelcnn.fingerprint import model_fingerprint


def purified(images, model):
    return pxfast.purify(images, 16, model=model, engine=QUICK, precision="fp32")


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


@pytest.mark.process
def test_purify_folder(run_here, refused, model, images, reference, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name, image in zip(("b.bmp", "a.png", "c.tif"), images, strict=True):
        Image.fromarray(image[0].numpy()).save(source / name)
    (source / "notes.txt").write_text("not an image")
    run_command("purify", source, out, *reference)
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
    (tmp_path / "outer" / "inner").mkdir(parents=True)
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
        ("outer", tmp_path / "out", f"directly in it; it has folders, such as {tmp_path / 'outer' / 'inner'}"),
        ("in.npy", tmp_path / "out.txt", "must have the suffix .npy"),
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


@pytest.fixture
def score_network() -> ScoreNetwork:
    """A small random network over 8x8 images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return ScoreNetwork(ScoreNetworkConfig((8, 8), 1, ngf=4)).eval().requires_grad_(False)


@pytest.fixture
def source(images, tmp_path):
    np.save(tmp_path / "in.npy", images.numpy())
    return tmp_path / "in.npy"


def test_json_says_what_was_done(run_here, model, images, reference, source, tmp_path):
    out, err = run_here("purify", source, tmp_path / "out.npy", *reference, "--batch-size", 2, "--json")
    facts = json.loads(out)
    assert facts["images"] == 3
    assert facts["images_per_second"] == pytest.approx(3 / facts["seconds"])
    assert (facts["engine"], facts["precision"]) == (QUICK, "fp32")
    assert facts["defences"] == ["purifier"]
    assert facts["files"] == [str(tmp_path / "out.npy")]
    assert "3/3 images" in err
    assert "\r" not in err, "there is no bar without a terminal"
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), purified(images, model))


def test_a_note_says_what_was_done_unless_quiet(run_here, reference, source, tmp_path):
    out, err = run_here("purify", source, tmp_path / "out.npy", *reference)
    assert not out
    assert err.splitlines()[-1].startswith(f"{tmp_path / 'out.npy'}: 3 images in ")
    assert err.endswith(f" images/s, {QUICK}, fp32\n")
    assert run_here("purify", source, tmp_path / "out.npy", *reference, "--force", "--quiet") == ("", "")


def test_threads_change_nothing(run_here, model, images, source, tmp_path):
    given = ["--model", model, "--engine", "cpu", "--precision", "fp32", "--quiet"]
    before = torch.get_num_threads()
    try:
        run_here("purify", source, tmp_path / "one.npy", *given, "--threads", 1)
        assert torch.get_num_threads() == 1
        run_here("purify", source, tmp_path / "two.npy", *given, "--threads", 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(np.load(tmp_path / "one.npy"), np.load(tmp_path / "two.npy"))


def test_a_device_and_an_engine_that_do_not_go_together(refused, model, source, tmp_path):
    words = ["purify", source, tmp_path / "out.npy", "--model", model]
    assert "device must be auto, cpu, cuda or cuda:N" in refused(*words, "--device", "tpu")
    assert "torch finds" in refused(*words, "--device", "cuda:99")
    assert "known: auto" in refused(*words, "--device", "cpu", "--engine", "gpu")
    assert "precision must be one of auto, fp32, bf16" in refused(*words, "--precision", "fp8")
    assert not (tmp_path / "out.npy").exists()


def test_defences(run_here, refused, model, images, score_network, source, tmp_path):
    """One after the other, with settings in their text; those of the options are the only defence's."""
    out = tmp_path / "out.npy"
    save_score_network(score_network, tmp_path / "score.safetensors")
    chain = ["feature-squeezing:colours=16", f"purifier:eps=8,model={model},engine={QUICK},precision=fp32"]
    chain += [f"adp:sigma=0.1,steps=2,seed=3,model={tmp_path / 'score.safetensors'}"]
    words = ["purify", source, out, *(word for text in chain for word in ("--defence", text))]
    facts = json.loads(run_here(*words, "--json")[0])
    assert facts["defences"] == chain
    assert (facts["engine"], facts["precision"]) == (QUICK, "fp32")
    adp = ADPPurifier(0.1, steps=2, seed=3, model=tmp_path / "score.safetensors")  # bf16, as stored
    expected = adp(pxfast.purify(FeatureSqueezing(16)(images), 8, model=model, engine=QUICK, precision="fp32"))
    np.testing.assert_array_equal(np.load(out), expected)
    assert "which defence's is --eps?" in refused(*words, "--force", "--eps", 3)

    only = ["purify", source, out, "--force", "--defence", f"adp:steps=2,model={tmp_path / 'score.safetensors'}"]
    facts = json.loads(run_here(*only, "--json")[0])
    assert (facts["engine"], facts["precision"]) == (None, None)
    np.testing.assert_array_equal(np.load(out), ADPPurifier(steps=2, model=tmp_path / "score.safetensors")(images))
    assert "adp has no setting eps=3" in refused(*only, "--eps", 3)
    assert "unknown defence 'lock'" in refused("purify", source, out, "--force", "--defence", "lock")


def test_the_bits_of_a_grid_are_of_the_model_of_the_purifier(
    run_here, model, images, score_network, source, tmp_path, monkeypatch
):
    """A score network is none, and a purifier's own model is the one that it goes by."""
    judged = []
    monkeypatch.setattr("pxfast.cli.grid.write_grid", lambda path, stages, judges: judged.append(judges.density))
    score = tmp_path / "score.safetensors"
    save_score_network(score_network, score)
    given = {
        "adp": ["--defence", "adp:steps=1", "--model", score],
        "whole": ["--model", model, "--engine", QUICK],
        "part": ["--defence", "feature-squeezing", "--defence", f"purifier:model={model},engine={QUICK}"],
    }
    for name, words in given.items():
        run_here("purify", source, tmp_path / f"{name}.npy", "--grid", tmp_path / f"{name}.png", "--quiet", *words)
    own = model_fingerprint(pxfast.load(model))
    assert [each and model_fingerprint(each) for each in judged] == [None, own, own]


def test_a_defence_takes_floats_as_the_grid(run_here, images, tmp_path):
    floats = images.float() / 255
    torch.save(floats, tmp_path / "in.pt")
    run_here("purify", tmp_path / "in.pt", tmp_path / "out.pt", "--defence", "feature-squeezing:colours=3", "--quiet")
    result = torch.load(tmp_path / "out.pt", weights_only=True)
    assert result.dtype == torch.float32
    assert torch.equal((255 * result).round().byte(), FeatureSqueezing(3)(images))


def test_a_classifier_without_a_picture_to_label_is_refused(refused, images, tmp_path):
    torch.save(images, tmp_path / "in.pt")
    words = ["purify", tmp_path / "in.pt", tmp_path / "out.pt", "--classifier", tmp_path / "missing.safetensors"]
    assert "--classifier is for the labels of --grid, which is not given" in refused(*words)
    assert not (tmp_path / "out.pt").exists()
