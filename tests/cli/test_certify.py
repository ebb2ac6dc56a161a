"""``pxfast certify``: its files, its table, and a run that goes on."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.engines import QUICK
from support.helpers import bundled_images

import pxfast
from pxfast.base.parts import parts_path
from pxfast.certification import votes
from pxfast.classifiers import load_classifier, predict
from pxfast.cli.main import main
from pxfast.data.datasets import image_names, load_dataset
from pxfast.defences.weights import classifier_key
from pxfast.evaluation.figures import certified
from pxfast.pixelcnn.fingerprint import model_fingerprint


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three Fashion-MNIST images by the classes that the classifier says, in a folder of all ten."""
    place = tmp_path_factory.mktemp("certify") / "data"
    images = bundled_images(1)[:3]
    for k in range(10):
        (place / str(k)).mkdir(parents=True)
    for i, (image, label) in enumerate(
        zip(images, predict(load_classifier("fashion-mnist").eval(), images), strict=True)
    ):
        Image.fromarray(image[0].numpy()).save(place / str(int(label)) / f"{i}.png")
    return place


def call(monkeypatch, capfd, *arguments: object, code: int = 0) -> tuple[str, str]:
    monkeypatch.setattr(sys, "argv", ["pxfast", "certify", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capfd.readouterr()
    assert (stop.value.code or 0) == code, err
    assert "Traceback" not in err
    return out, err


def given(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    files = sorted(folder.rglob("*.png"))
    images = np.stack([np.asarray(Image.open(file))[None] for file in files])
    return torch.from_numpy(images), torch.tensor([int(file.parent.name) for file in files])


def test_files_table_picture_and_page(monkeypatch, capfd, folder, tmp_path):
    out, curve, page = tmp_path / "c.json", tmp_path / "c.png", tmp_path / "c.html"
    options = ["--width", 6, "--out", out, "--engine", QUICK, "--precision", "fp32", "--threads", 1]
    printed, _ = call(monkeypatch, capfd, folder, *options, "--curve", curve, "--page", page)
    classifier, (images, labels) = load_classifier("fashion-mnist").eval(), given(folder)
    expected = pxfast.certify(classifier, images, labels, width=6, engine=QUICK, precision="fp32")
    document = json.loads(out.read_text())
    assert document["settings"] == expected.settings
    assert document["accuracy"] == expected.accuracy
    assert document["classifier"] == {"name": "fashion-mnist", "sha256": classifier_key(classifier, (1, 28, 28))}
    assert document["model"] == model_fingerprint(pxfast.load("fashion-mnist"))
    assert [each["votes"] for each in document["images"]] == expected.counts.tolist()
    assert [each["radius"] for each in document["images"]] == expected.radii.tolist()
    assert [each["label"] for each in document["images"]] == labels.tolist()
    assert [each["image"] for each in document["images"]] == image_names(folder)
    for row in document["certified"]:
        assert row["certified_accuracy"] == expected.certified_accuracy(row["radius"])
        assert row["radius_of_unit_range"] == row["radius"] / 255
    lines = printed.splitlines()
    assert lines[0] == "L1 radius, grey levels\tin units of [0, 1]\tcertified accuracy"
    assert lines[1] == f"0\t0\t{100 * expected.accuracy:.1f} %"
    assert lines[-1].startswith("3 images. Where a radius is certified, no change")
    with Image.open(curve) as picture:
        assert min(picture.size) > 300
    text = page.read_text()
    assert "data:image/png;base64," in text
    assert f"<td>0</td><td>0</td><td>{100 * expected.accuracy:.1f} %</td>" in text
    assert "http" not in text
    assert "<dt>classifier</dt><dd>fashion-mnist</dd>" in text
    assert not parts_path(out).exists()
    _, error = call(monkeypatch, capfd, folder, *options, code=2)
    assert "exists already" in error


def test_a_folder_whose_name_is_no_text_has_a_picture_and_a_page(monkeypatch, capfd, folder, tmp_path):
    """They were drawn at the end, and failed by the name."""
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/odd\xff")
    shutil.copytree(folder, odd)
    files = [tmp_path / name for name in ("c.json", "c.html", "c.png")]
    words = [odd, "--guess", "midpoints", "--width", 4, "--classifier", "fashion-mnist"]
    call(monkeypatch, capfd, *words, "--out", files[0], "--page", files[1], "--curve", files[2])
    assert all(path.stat().st_size for path in files)
    assert "Certified accuracy: odd\ufffd, midpoints" in files[1].read_text(encoding="utf-8")


def test_a_killed_run_goes_on_where_it_was(monkeypatch, capfd, folder, tmp_path):
    """Two rows are there already: of these nothing is computed again, and other settings refuse them."""
    from pxfast.cli import rows

    out = tmp_path / "c.tsv"
    words = [folder, "--guess", "midpoints", "--width", 130, "--out", out, "--quiet"]
    monkeypatch.setattr(rows, "PART_SECONDS", 0.0)
    calls: list[int] = []
    certify = pxfast.certification.certify

    def failing(network, grid, *arguments, **options):
        calls.append(len(grid))
        if calls == [0, 1, 1, 1]:
            raise ValueError("spoiled")
        return certify(network, grid, *arguments, **options)

    monkeypatch.setattr("pxfast.certification.certify", failing)
    call(monkeypatch, capfd, *words, code=2)
    assert not out.exists()
    assert len(list(parts_path(out).glob("*.rows"))) == 2
    _, error = call(monkeypatch, capfd, *words[:4], 131, *words[5:], code=2)
    assert calls == [0, 1, 1, 1, 0]
    assert "parts of a run with other settings (width)" in error
    calls.clear()
    call(monkeypatch, capfd, *words)
    assert calls == [0, 1], "a check of the options, and the image that was missing"
    images, labels = given(folder)
    expected = certify(load_classifier("fashion-mnist").eval(), images, labels, width=130, purifier="midpoints")
    columns = [expected.labels, expected.predictions, expected.radii.int()]
    values = torch.stack([c.int() for c in columns], 1).tolist()
    rows_of = [[name, *map(str, row)] for name, row in zip(image_names(folder), values, strict=True)]
    assert [line.split("\t") for line in out.read_text().splitlines()] == rows_of


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        (["--width", 132, "--guess", "midpoints"], 3 * 5),  # 132 votes of each image, 32 at a time
        (["--norm", "l2", "--samples", 40, "--first-samples", 8], 3 * (2 + 1)),
    ],
)
def test_the_classifier_is_tried_once(monkeypatch, capfd, folder, tmp_path, options, batches):
    """And not for every image, which took as many evaluations as the votes did."""
    real, evaluated = votes.checked_logits, []
    monkeypatch.setattr(votes, "checked_logits", lambda found, count: evaluated.append(count) or real(found, count))
    call(monkeypatch, capfd, folder, *options, "--threads", 1, "--out", tmp_path / "c.json")
    assert evaluated == [32] * (4 + batches)
    evaluated.clear()
    classifier, (images, labels) = load_classifier("fashion-mnist").eval(), given(folder)
    for image, label in zip(images, labels, strict=True):
        pxfast.certify(classifier, image[None], label[None], width=32, purifier="midpoints")
    assert evaluated == [32] * 3 * (4 + 1), "calls on their own each try it"


def test_l2_in_the_same_command(monkeypatch, capfd, folder, tmp_path):
    out = tmp_path / "c.json"
    words = ["--norm", "l2", "--sigma", 0.1, "--samples", 30, "--first-samples", 5, "--out", out, "--json"]
    words = [*words, "--views", "flip"]
    printed, _ = call(monkeypatch, capfd, folder, *words, "--curve", tmp_path / "c.svg")
    facts = json.loads(printed)
    assert facts["settings"]["norm"] == "l2"
    assert facts["settings"]["purifier"] == "none"
    assert facts["files"] == [str(out), str(tmp_path / "c.svg")]
    images, labels = given(folder)
    expected = pxfast.certify_l2(
        load_classifier("fashion-mnist").eval(), images, labels, sigma=0.1, samples=30, first_samples=5, views="flip"
    )
    assert facts["settings"]["views"] == "flip"
    assert [each["votes"] for each in json.loads(out.read_text())["images"]] == expected.counts.tolist()
    assert "0.001" in certified.claim(expected)


def test_lines_have_whole_radii(monkeypatch, capfd, folder, tmp_path):
    """Rounded to six digits some would be more than what was certified."""
    out, settings = tmp_path / "c.tsv", {"sigma": 0.03, "samples": 30, "first_samples": 5}
    words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
    call(monkeypatch, capfd, folder, "--norm", "l2", "--out", out, *words)
    expected = pxfast.certify_l2(load_classifier("fashion-mnist").eval(), *given(folder), **settings)
    assert expected.radii.max() > 0
    assert [float(line.split("\t")[3]) for line in out.read_text().splitlines()] == expected.radii.tolist()


def test_an_estimate_is_fitted_to_training_images_alone(monkeypatch, capfd, folder, tmp_path):
    """And PixelDefend chooses near it: what the function does with the same images."""
    data, options = tmp_path / "data", {"width": 6, "dither": "random", "seed": 3}
    shutil.copytree(folder, data / "test")
    for number, image in enumerate(bundled_images(1)[3:40]):
        place = data / "train" / str(number % 10)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(place / f"{number}.png")
    training, _ = load_dataset(data, train=True)
    estimate = pxfast.certification.Estimate.fit(training, **options)
    classifier, (images, labels) = load_classifier("fashion-mnist").eval(), given(data / "test")
    words = [data, "--width", 6, "--dither", "random", "--seed", 3, "--precision", "fp32", "--engine", QUICK]
    quick = {"engine": QUICK, "precision": "fp32"}
    for name, own, same in (
        ("guess", ["--guess", "estimate"], {"purifier": estimate}),
        ("near", ["--near-estimate"], {"near": estimate}),
    ):
        call(monkeypatch, capfd, *words, *own, "--out", tmp_path / f"{name}.json", "--page", tmp_path / f"{name}.html")
        document = json.loads((tmp_path / f"{name}.json").read_text())
        expected = pxfast.certify(classifier, images, labels, **options, **quick, **same)
        assert document["settings"] == expected.settings
        assert [each["votes"] for each in document["images"]] == expected.counts.tolist()
        assert (document["model"] is None) == (name == "guess")
        assert f"<dt>error</dt><dd>{round(estimate.error, 3)}</dd>" in (tmp_path / f"{name}.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--norm", "l3"], "norm must be one of l1, l2, got 'l3'"),
        (["--dither", "blue"], "dither must be one of lattice, random, got 'blue'"),
        (["--norm", "l2", "--views", "two"], "views must be one of one, flip, got 'two'"),
        (["--guess", "adp"], "guess must be one of pixeldefend, estimate, midpoints, sample, got 'adp'"),
        (["--norm", "l2", "--guess", "sample"], "guess must be one of none, adp, pixeldefend, got 'sample'"),
        (["--guess", "estimate", "--near-estimate"], "--near-estimate is for --guess pixeldefend and sample, got"),
        (["--guess", "estimate", "--model", "fashion-mnist"], "a model means nothing to purifier='estimate'"),
        (["--norm", "l2", "--near-estimate"], "--near-estimate is for --norm l1, got --norm l2"),
        (["--width", "0"], "width must be an integer in 1..1024, got 0"),
        (["--sigma", "0.5"], "--sigma is for --norm l2, got --norm l1"),
        (["--failure", "0.1"], "--failure is for --norm l2, got --norm l1"),
        (["--norm", "l2", "--width", "6"], "--width is for --norm l1, got --norm l2"),
        (["--norm", "l2", "--failure", "2"], "alpha must be a number in (0, 1), got 2.0"),
        (["--curve", "a.gif"], "a.gif: this output must have the suffix .png or .svg"),
        (["--page", "a.txt"], "a.txt: this output must have the suffix .html"),
        (["--images", "0"], "--images"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(monkeypatch, capfd, folder, tmp_path, words, message):
    _, error = call(monkeypatch, capfd, folder, "--out", tmp_path / "c.json", *words, code=2)
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_images_without_labels_and_certificates_of_two_norms_are_refused(monkeypatch, capfd, folder, tmp_path):
    Image.fromarray(bundled_images(1)[0, 0].numpy()).save(tmp_path / "a.png")
    _, error = call(monkeypatch, capfd, tmp_path, "--out", tmp_path / "c.json", code=2)
    assert "has images without labels" in error
    images, labels = given(folder)
    classifier = load_classifier("fashion-mnist").eval()
    one = pxfast.certify(classifier, images, labels, width=2, purifier="midpoints")
    other = pxfast.certify_l2(classifier, images, labels, samples=2, first_samples=2)
    with pytest.raises(ValueError, match="certificates of one norm, got l1, l2"):
        certified.draw_certified({"a": one, "b": other})
    with pytest.raises(ValueError, match="certificates of one norm, got none"):
        certified.draw_certified({})
