"""Images go out as the output's suffix says: .npy, .pt, one .png, or a folder of PNG files; and as a picture."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.attack_network import attack_fixture
from support.helpers import bundled_images

import pxfast
from pxfast.attacks import BIM, attack_to_file
from pxfast.base.parts import parts_path
from pxfast.classifiers import load_classifier, predict
from pxfast.cli import grid as grid_module
from pxfast.cli.stage_picture import (
    GAP,
    Row,
    bits_line,
    cell,
    difference_row,
    draw_rows,
    label_line,
    picture_size,
    scale_of,
)
from pxfast.data.image_decoding import read_image
from pxfast.data.image_files import open_collection, write_png
from pxfast.data.images import to_grid

FIXTURE = attack_fixture()
IMAGES = bundled_images(1)[:3]
SQUEEZED = ["--defence", "feature-squeezing", "--quiet"]  # which is quick


def squeezed(images: torch.Tensor) -> torch.Tensor:
    return pxfast.defences.FeatureSqueezing()(images)


def read(path: Path) -> np.ndarray:
    """All images of an output, uint8 (N, C, H, W)."""
    (batch,) = open_collection(path).batches(100)
    return to_grid(batch)[0].numpy()


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    """The same images in every form that can be read."""
    found = {form: tmp_path / f"in{form}" for form in (".npy", ".pt", "-floats.npy", "-bf16.pt", "-folder")}
    np.save(found[".npy"], IMAGES.numpy())
    np.save(found["-floats.npy"], (IMAGES / 255).numpy())
    torch.save(IMAGES, found[".pt"])
    torch.save((IMAGES / 255).bfloat16(), found["-bf16.pt"])
    found["-folder"].mkdir()
    for n, image in enumerate(IMAGES):
        write_png(image, found["-folder"] / f"shoe-{n}.png")
    return found


def test_every_form_goes_into_every_other(sources, run_here, tmp_path) -> None:
    expected = squeezed(IMAGES).numpy()
    for form, source in sources.items():
        for suffix in (".npy", ".pt", ""):
            if form == "-bf16.pt" and suffix == ".npy":
                continue
            out = tmp_path / f"of-{form.replace('.', '-')}-to{suffix}"
            run_here("purify", source, out, *SQUEEZED)
            np.testing.assert_array_equal(read(out), expected, err_msg=f"{form} to {suffix}")
    names = sorted(os.listdir(tmp_path / "of--npy-to"))
    assert names == ["00000.png", "00001.png", "00002.png"]
    names = sorted(os.listdir(tmp_path / "of--folder-to"))
    assert names == ["shoe-0.png", "shoe-1.png", "shoe-2.png"]
    assert np.load(tmp_path / "of--floats-npy-to.npy").dtype == np.float32
    assert torch.load(tmp_path / "of--bf16-pt-to.pt", weights_only=True).dtype == torch.bfloat16


def test_one_image_goes_into_a_png(sources, run_here, refused, tmp_path) -> None:
    np.save(tmp_path / "one.npy", IMAGES[0].numpy())
    run_here("purify", tmp_path / "one.npy", tmp_path / "one.png", *SQUEEZED)
    np.testing.assert_array_equal(read_image(tmp_path / "one.png"), squeezed(IMAGES[:1])[0].numpy())
    run_here("purify", tmp_path / "one.png", tmp_path / "again.npy", *SQUEEZED)
    assert np.load(tmp_path / "again.npy").shape == (1, 1, 28, 28)
    line = refused("purify", sources[".npy"], tmp_path / "all.png", *SQUEEZED)
    assert "all.png: a .png holds one image, and there are 3; write a folder or a .npy file" in line
    assert "can't hold bfloat16" in refused("purify", sources["-bf16.pt"], tmp_path / "a.npy", *SQUEEZED)
    two = np.zeros((1, 2, 8, 8), np.uint8)
    np.save(tmp_path / "two.npy", two)
    assert "1 or 3 channels, and the images have 2" in refused("purify", tmp_path / "two.npy", tmp_path / "two")
    assert not [name for name in os.listdir(tmp_path) if name.startswith((".", "all", "a.", "two/"))]


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".gif", ".txt", ".nyp"])
def test_no_other_suffix_is_taken(suffix, sources, refused, tmp_path) -> None:
    for source in (sources[".npy"], sources["-folder"]):
        line = refused("purify", source, tmp_path / f"out{suffix}", *SQUEEZED)
        assert f"out{suffix}: this output must have the suffix .npy or .pt or .png, never a lossy format" in line


def test_a_folder_is_replaced_only_by_force_and_where_it_has_images_alone(sources, run_here, refused, tmp_path) -> None:
    out = tmp_path / "out"
    run_here("purify", sources[".npy"], out, *SQUEEZED)
    assert "exists already" in refused("purify", sources[".npy"], out, *SQUEEZED)
    (out / "more.png").write_bytes((out / "00000.png").read_bytes())
    run_here("purify", sources[".npy"], out, "--force", *SQUEEZED)
    assert sorted(os.listdir(out)) == ["00000.png", "00001.png", "00002.png"]
    (out / "thesis.txt").write_text("mine")
    assert "thesis.txt" in refused("purify", sources[".npy"], out, "--force", *SQUEEZED)
    line = refused("purify", sources["-folder"], sources["-folder"], "--force", *SQUEEZED)
    assert "is the input folder" in line


def test_attacked_images_go_into_a_folder_with_their_labels(run_here, sources, tmp_path) -> None:
    out = tmp_path / "attacked"
    command = ["attack", sources["-folder"], "--attack", "fgsm", "--out"]
    printed, _ = run_here(*command, out, "--json", "--quiet")
    assert json.loads(printed)["files"] == [str(out), str(out / "labels.npy")]
    assert sorted(os.listdir(out)) == ["00000-shoe-0.png", "00001-shoe-1.png", "00002-shoe-2.png", "labels.npy"]
    run_here(*command, tmp_path / "attacked.npy", "--quiet")
    np.testing.assert_array_equal(read(out), np.load(tmp_path / "attacked.npy"))
    np.testing.assert_array_equal(np.load(out / "labels.npy"), np.load(tmp_path / "attacked.labels.npy"))
    run_here("purify", out, tmp_path / "pure", *SQUEEZED)  # what is beside the images does no harm
    assert len(os.listdir(tmp_path / "pure")) == 3
    run_here(*command, out, "--quiet", "--force", "--images", 2)
    assert len(os.listdir(out)) == 3
    run_here(*command, tmp_path / "one.png", "--images", 1, "--quiet")
    np.testing.assert_array_equal(read_image(tmp_path / "one.png"), np.load(tmp_path / "attacked.npy")[0])
    assert np.load(tmp_path / "one.labels.npy").tolist() == [-1]


def test_names_of_attacked_images(tmp_path) -> None:
    images, labels = FIXTURE.images[:2], FIXTURE.labels[:2]
    attack_to_file(BIM(steps=1), FIXTURE.network, images, labels, tmp_path / "plain", eps=4)
    assert sorted(os.listdir(tmp_path / "plain")) == ["00000.png", "00001.png", "labels.npy"]
    assert np.load(tmp_path / "plain" / "labels.npy").tolist() == labels.tolist()
    names = ["00000", "b"]  # a number that is right already is not said twice
    attack_to_file(BIM(steps=1), FIXTURE.network, images, labels, tmp_path / "named", eps=4, names=names)
    assert sorted(os.listdir(tmp_path / "named")) == ["00000.png", "00001-b.png", "labels.npy"]
    with pytest.raises(ValueError, match="expected 2 names, one an image, got 1"):
        attack_to_file(BIM(steps=1), FIXTURE.network, images, labels, tmp_path / "c", eps=4, names=["a"])


def test_a_run_killed_after_its_folder_was_published_is_finished(tmp_path, monkeypatch) -> None:
    """The folder is there, and the parts, too: it is taken for the run's own, and no other folder is."""
    images, labels, out = FIXTURE.images[:2], FIXTURE.labels[:2], tmp_path / "out"

    def attack() -> None:
        attack_to_file(BIM(steps=1), FIXTURE.network, images, labels, out, eps=4)

    def killed(self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("pxfast.base.parts.Parts.remove", killed)
        with pytest.raises(KeyboardInterrupt):
            attack()
    assert out.is_dir()
    assert parts_path(out).is_dir()
    before = (out / "00000.png").read_bytes()
    (out / "00000.png").write_bytes(before + b"x")
    with pytest.raises(FileExistsError, match="exists already"):
        attack()
    (out / "00000.png").write_bytes(before)
    attack()
    assert not parts_path(out).exists()
    assert (out / "00000.png").read_bytes() == before


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_moving_pictures_are_refused(format, refused, tmp_path) -> None:
    """One in the midst of a folder, before anything is done with the images before it."""
    source = tmp_path / "in"
    source.mkdir()
    for n, image in enumerate(IMAGES):
        write_png(image, source / f"{n}.png")
    first, second = (Image.fromarray(image[0].numpy()) for image in IMAGES[:2])
    moving = source / f"moving.{format.lower()}"
    first.save(moving, format, save_all=True, append_images=[second])
    for command in (["purify", source, tmp_path / "out"], ["bpd", source], ["purify", moving, tmp_path / "out.npy"]):
        line = refused(*command)
        assert f"{moving} has several frames, expected one: save the one that is meant as an image of its own" in line
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff", "deep.pgm", "deep.npy"])
def test_sixteen_bits_are_refused(name, refused, tmp_path) -> None:
    values = np.arange(28 * 28, dtype=np.uint16).reshape(28, 28) * 80
    if name.endswith(".npy"):
        np.save(tmp_path / name, values[None])
    else:
        Image.fromarray(values).save(tmp_path / name)
    line = refused("purify", tmp_path / name, tmp_path / "out.npy")
    assert f"{name}: " in line or f"{name} has 16 bits a channel, expected 8" in line
    assert "uint16" in line or "16 bits" in line
    assert os.listdir(tmp_path) == [name]


# --- pictures ---


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def shown_in(picture: np.ndarray, row: int, column: int, side: int) -> np.ndarray:
    """An image of the picture, (side, side, 3)."""
    left, top = cell(row, column, side, side)
    scale = scale_of(side, side)
    return picture[top : top + scale * side : scale, left : left + scale * side : scale]


def test_a_grid_of_an_attack(run_here, sources, tmp_path, monkeypatch) -> None:
    rows = []
    monkeypatch.setattr(grid_module, "stage_row", lambda *given: rows.append(stage_row(*given)) or rows[-1])
    printed, _ = run_here(
        *("attack", sources["-folder"], "--attack", "fgsm", "--eps", 25, "--quiet", "--json"),
        *("--out", tmp_path / "a.npy", "--grid", tmp_path / "a.png"),
    )
    assert json.loads(printed)["files"][-1] == str(tmp_path / "a.png")
    attacked = torch.from_numpy(np.load(tmp_path / "a.npy"))
    given, after = rows
    assert (given.name, after.name) == ("given", "attacked")
    assert torch.equal(given.images, IMAGES)
    assert torch.equal(after.images, attacked)
    assert list(after.notes[:2]) == ["fgsm", "eps 25"]
    labels = predict(load_classifier("fashion-mnist"), attacked).tolist()
    bits = pxfast.bits_per_dim(attacked)
    classes = grid_module.class_names("fashion-mnist")
    assert [lines[0].text for lines in after.captions] == [classes[label] for label in labels]
    assert [lines[1].text for lines in after.captions] == [f"{float(each):.2f} bits/dim" for each in bits]
    picture = pixels_of(tmp_path / "a.png")
    assert picture.shape[:2] == picture_size(3, 3, 28, 28)[::-1]
    for column in range(3):
        for row, images in enumerate((IMAGES, attacked)):
            assert (shown_in(picture, row, column, 28) == images[column].permute(1, 2, 0).numpy()).all()
    difference = 128 + 5 * (attacked.int() - IMAGES.int())
    assert (shown_in(picture, 2, 0, 28) == difference[0].permute(1, 2, 0).numpy()).all()


stage_row = grid_module.stage_row


def test_a_grid_of_a_purification(run_here, refused, sources, tmp_path) -> None:
    out = run_here("purify", sources[".npy"], tmp_path / "p", "--grid", tmp_path / "p.png", "--json", *SQUEEZED)[0]
    assert json.loads(out)["files"] == [str(tmp_path / "p"), str(tmp_path / "p.png")]
    picture = pixels_of(tmp_path / "p.png")
    expected = squeezed(IMAGES)
    for column in range(3):
        assert (shown_in(picture, 0, column, 28) == IMAGES[column].permute(1, 2, 0).numpy()).all()
        assert (shown_in(picture, 1, column, 28) == expected[column].permute(1, 2, 0).numpy()).all()
    line = refused("purify", sources[".npy"], tmp_path / "q", "--grid", tmp_path / "p.png", *SQUEEZED)
    assert "p.png exists already" in line
    assert not (tmp_path / "q").exists()


def test_images_that_no_network_knows_have_a_grid_without_words(run_here, tmp_path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (13, 3, 9, 21), np.uint8))
    run_here("purify", tmp_path / "a.npy", tmp_path / "b.npy", "--grid", tmp_path / "b.png", *SQUEEZED)
    picture = pixels_of(tmp_path / "b.png")
    assert picture.shape[:2] == picture_size(6, 10, 9, 21)[::-1], "two blocks of three rows"


def test_words_under_images() -> None:
    assert label_line(2, 2, ["a", "b", "c"]).text == "c"
    assert label_line(2, 1, ["a", "b", "c"]).text == "\u2717 c"
    assert label_line(2, None, None) == label_line(2, None, ["a"])
    assert label_line(2, None, None).text == "class 2"
    assert bits_line(1.234).text == "1.23 bits/dim"
    flat = torch.full((1, 1, 4, 4), 100, dtype=torch.uint8)
    row = difference_row("x", flat, flat + 100)
    assert row.name == "difference \u00d71"
    assert int(row.images.max()) == 228
    assert difference_row("x", flat, flat).name == "difference \u00d78"
    wide = draw_rows([Row("a", [], torch.zeros((2, 3, 1, 300), dtype=torch.uint8))])
    left, _ = cell(0, 1, 1, 300)
    assert left - cell(0, 0, 1, 300)[0] == 300 + GAP
    assert wide.get_width_height() == picture_size(1, 2, 1, 300)
