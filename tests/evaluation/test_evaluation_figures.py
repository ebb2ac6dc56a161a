"""Figures of an evaluation: measured through the store, drawn, and described for the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from support.evaluation_folder import World, entries, make_world

import pxfast
from pxfast.attacks import Rand, SaliencyMap
from pxfast.classifiers import load_classifier
from pxfast.data.datasets import first_images, load_dataset
from pxfast.evaluation.figures import attack_pictures, pictures
from pxfast.evaluation.figures.evaluate import evaluate_figures, evaluate_violins
from pxfast.evaluation.preparation import Settings
from pxfast.evaluation.results import read_figures
from pxfast.evaluation.specification import load_table
from pxfast.pixeldefend.detection import roc_auc_score

NAMES = ["bits-per-dim", "errors", "example", "images", "lbfgs", "p-values", "roc", "samples"]
TRAIN_IMAGES = 30


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def settings(world: World) -> Settings:
    return Settings(images=12, classifiers=world.classifiers, model=world.model, train=False, shard=4)


def draw(world: World, out: Path) -> list[Path]:
    return evaluate_figures(
        load_table(world.table),
        None,
        out,
        settings(world),
        columns=["rand"],
        train_images=TRAIN_IMAGES,
        lbfgs_images=1,
    )


def not_blank(path: Path) -> bool:
    """Of a picture of at least 40 dots an inch."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return min(pixels.shape[:2]) > 37 and pixels.std() > 5


@pytest.mark.whole  # tests/evaluation/test_density_figures.py has the drawing and the measurements in small
def test_figures_show_what_the_parts_of_pxfast_give(world: World, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(pictures.STYLE, "savefig.dpi", 40)
    pytest.importorskip("sklearn", reason="ROC curves need scikit-learn (pip install 'pxfast[evaluate]')")
    pytest.importorskip("scipy", reason="L-BFGS-B needs scipy (pip install 'pxfast[evaluate]')")
    written = draw(world, tmp_path)
    figures = {figure.name: figure for figure in read_figures(tmp_path)}
    assert sorted(figures) == [f"data-{name}" for name in NAMES]
    assert {path.stem for path in written} == set(figures)
    for figure in figures.values():
        assert not_blank(tmp_path / "figures" / figure.file)
        assert figure.source["where"].startswith("Figure")
        assert len(figure.alt) > 30

    images, labels = (first_images(world.data, part, 12) for part in load_dataset(world.data, train=False))
    classifier = load_classifier(world.classifiers / "data-resnet62-normal.safetensors")
    attacked = Rand()(classifier, images, labels, 12)
    purified = pxfast.purify(attacked, 16, model=world.model)
    train = pxfast.bits_per_dim(
        first_images(world.data, load_dataset(world.data, train=True)[0], TRAIN_IMAGES), model=world.model
    )
    bits, after = (pxfast.bits_per_dim(each, model=world.model) for each in (attacked, purified))
    numbers = figures["data-bits-per-dim"].numbers["rand"]
    assert numbers["mean bits/dim"] == pytest.approx(float(bits.mean()), rel=1e-5)
    assert numbers["mean bits/dim, purified"] == pytest.approx(float(after.mean()), rel=1e-5)
    assert figures["data-roc"].numbers["rand"]["AUC"] == pytest.approx(roc_auc_score(train, bits), abs=1e-3)
    detector = pxfast.Detector(world.model).fit(
        first_images(world.data, load_dataset(world.data, train=True)[0], TRAIN_IMAGES)
    )
    median = float(np.median(detector.p_value(attacked)))
    assert figures["data-p-values"].numbers["rand"]["median p-value"] == pytest.approx(median, abs=1 / TRAIN_IMAGES)
    with torch.no_grad():
        wrong = float((classifier(attacked).argmax(1) != labels).double().mean())
    assert figures["data-errors"].numbers["rand"]["error"] == wrong

    before = entries(tmp_path)
    pictures_now = {path: path.read_bytes() for path in (tmp_path / "figures").glob("*.png")}
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: Path(path).write_bytes(b"drawn again"))
    assert draw(world, tmp_path) == written
    assert {path.read_bytes() for path in pictures_now} == {b"drawn again"}
    assert entries(tmp_path) == before


def test_violins_of_a_table_of_attacks_without_a_bound(world: World, tmp_path) -> None:
    text = world.table.read_text()
    start, end = text.index("[[columns]]"), text.index("[[rows]]")
    column = (
        '[[columns]]\nname = "map"\nlabel = "Saliency map"\nattack = "saliency-map"\noptions = { max_steps = 3 }\n\n'
    )
    table = tmp_path / "table.toml"
    rows = text[end:].replace("published = { clean = [80, 70], fgsm = [50, 40] }", "")
    table.write_text(text[:start] + column + rows)
    path = evaluate_violins(load_table(table), None, tmp_path / "out", settings(world))
    assert path.name == "small-violins.json"
    assert not_blank(path.with_suffix(".png"))
    medians = json.loads(path.read_text())["numbers"]["median bits/dim"]
    images, labels = (first_images(world.data, part, 12) for part in load_dataset(world.data, train=False))
    classifier = load_classifier(world.classifiers / "data-resnet62-normal.safetensors")
    attacked = SaliencyMap(max_steps=3)(classifier, images, labels)
    assert not torch.equal(attacked, images)
    assert set(medians) == {"clean", "saliency-map"}
    for name, given in (("clean", images), ("saliency-map", attacked)):
        expected = float(np.median(pxfast.bits_per_dim(given, model=world.model)))
        assert medians[name] == pytest.approx(expected, rel=1e-5)


def test_violins_of_equal_values_are_drawn(tmp_path) -> None:
    figure = attack_pictures.draw_violins({"clean": np.full(5, 2.0), "fgsm": np.arange(5.0)})
    figure.savefig(tmp_path / "violins.png")
    assert not_blank(tmp_path / "violins.png")


def test_classes_have_the_names_of_their_data_sets() -> None:
    assert attack_pictures.class_name("cifar10", 6) == "frog"
    assert attack_pictures.class_name("fashion-mnist", 9) == "ankle boot"
    assert attack_pictures.class_name("folder", 3) == "class 3"
    assert {len(names) for names in attack_pictures.CLASSES.values()} == {10}


def test_a_missing_classifier_and_an_unknown_data_set_are_errors(world: World, tmp_path, refused) -> None:
    with pytest.raises(ValueError, match=r"there is no data-resnet62-normal\.safetensors"):
        evaluate_figures(load_table(world.table), None, tmp_path, Settings(images=4, model=world.model, train=False))
    message = refused("evaluate", "figures", "--out", tmp_path, "--dataset", "mnist")
    assert "unknown data set 'mnist'; known: cifar10, fashion-mnist" in message


def test_figures_without_an_attack_are_refused(world: World, tmp_path) -> None:
    """They would call clean images attacked."""
    for columns in (["clean"], ["clean", "strongest"]):
        with pytest.raises(ValueError, match=f"need an attack, got the columns {', '.join(columns)} alone"):
            evaluate_figures(load_table(world.table), None, tmp_path / "out", settings(world), columns=columns)
    assert not (tmp_path / "out").exists()
