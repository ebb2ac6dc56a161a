"""Wrong networks, shapes, names and paths, over the whole public surface: each with its exception and words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.wrong_values import IMAGES, UNIT, Wrong, assert_refused, classifier, scorer, tiny
from torch import nn

import pxfast
from pxfast import attacks, classifiers, defences, evaluation
from pxfast.adp.score_network import ScoreNetwork
from pxfast.adp.training import train_score_network
from pxfast.data.datasets import image_shape, load_dataset
from pxfast.pixelcnn.network import PixelCNN, PixelCNNConfig
from pxfast.pixelcnn.training import train
from pxfast.pixeldefend.detection import roc_auc_score, roc_curve
from pxfast.pixeldefend.relaxed import RelaxedPurifier

Call = Callable[..., Any]
UNTRAINED = PixelCNNConfig((8, 8), 1, 4, 1)
OTHERS: dict[str, tuple[Call, type[Exception], str]] = {
    # networks
    "attack of a function": (lambda: attacks.BIM()(len, IMAGES, None, 8), TypeError, "classifier must be of Module"),
    "attack in training mode": (
        lambda: attacks.BIM()(nn.Flatten(), IMAGES, None, 8),
        ValueError,
        "must be in eval mode",
    ),
    "predict of a function": (lambda: classifiers.predict(len, IMAGES), TypeError, "classifier must be of Module"),
    "Defended of a name": (
        lambda: pxfast.Defended("resnet"),
        TypeError,
        "expected a classifier and a list of defences",
    ),
    "Defended by one": (
        lambda: pxfast.Defended(classifier(), pxfast.Purifier()),
        TypeError,
        "expected a classifier and a list",
    ),
    "Defended by a name": (lambda: pxfast.Defended(classifier(), ["purifier"]), TypeError, "all nn.Module, got 'pu"),
    "Defended, seeds": (
        lambda: pxfast.Defended(classifier(), [pxfast.ADPPurifier(model=scorer())]).defend(UNIT, [1]),
        ValueError,
        "expected 2 seeds, one an image, got 1",
    ),
    "draw, no seeds": (lambda: pxfast.ADPPurifier(model=scorer()).draw(UNIT, 3), TypeError, "seeds must be 2 integers"),
    "draw, negative seeds": (
        lambda: pxfast.ADPPurifier(model=scorer()).draw(UNIT, [0, -1]),
        ValueError,
        "each of the seeds must be",
    ),
    "draw, no integers": (
        lambda: pxfast.ADPPurifier(model=scorer()).draw(UNIT, [0, "a"]),
        TypeError,
        "each of the seeds must be",
    ),
    "RandomAboveThreshold of a name": (
        lambda: classifiers.RandomAboveThreshold("resnet"),
        TypeError,
        "classifier must be of Module",
    ),
    "OnColumn of no function": (lambda: defences.OnColumn(3), TypeError, "expected a function of images, got int"),
    "OnColumn, column": (lambda: defences.OnColumn(len, 3), TypeError, "expected the name of a column, got 3"),
    "OnColumn of a list": (lambda: defences.OnColumn(len)([1]), TypeError, "expected a mapping"),
    "OnColumn without it": (lambda: defences.OnColumn(len)({"x": 1}), ValueError, "there is no column 'image'"),
    "a PixelCNN of a dict": (lambda: PixelCNN({}), TypeError, "config must be of PixelCNNConfig, got dict"),
    "a ScoreNetwork of a dict": (lambda: ScoreNetwork({}), TypeError, "config must be of ScoreNetworkConfig"),
    "a ResNet of a VGG's": (
        lambda: classifiers.ResNet(classifiers.VGGConfig((8, 8), 1, ((4, 1),), 4)),
        TypeError,
        "must be of ResNetConfig",
    ),
    "a VGG of a dict": (lambda: classifiers.VGG({}), TypeError, "config must be of VGGConfig"),
    "a ResNet-18 of a dict": (lambda: classifiers.ResNet18({}), TypeError, "config must be of ResNet18Config"),
    "a WRN of a dict": (lambda: classifiers.WideResNet({}), TypeError, "config must be of WideResNetConfig"),
    "build of a dict": (lambda: classifiers.build({}), TypeError, "expected the configuration of a classifier"),
    "widths": (lambda: classifiers.ResNetConfig((8, 8), 1, (4, 8)), ValueError, "widths must be three"),
    "widths that shrink": (lambda: classifiers.ResNetConfig((8, 8), 1, (8, 4, 2)), ValueError, "widths must grow"),
    "widths as text": (lambda: classifiers.ResNetConfig((8, 8), 1, "abc"), ValueError, "widths must be"),
    "blocks": (lambda: classifiers.VGGConfig((8, 8), 1, (), 4), ValueError, "blocks must be"),
    "blocks of single numbers": (lambda: classifiers.VGGConfig((8, 8), 1, (4, 1), 4), ValueError, "blocks must be"),
    "depth": (lambda: classifiers.WideResNetConfig((8, 8), 1, depth=11), ValueError, "depth must be 6 n"),
    "architecture's shape": (lambda: classifiers.architecture("vgg16", (1, 8)), TypeError, r"image_shape must be \(C"),
    "architecture's shape as text": (lambda: classifiers.architecture("vgg16", "1x8"), TypeError, "image_shape must"),
    "sigmas": (lambda: pxfast.ADPPurifier(sigma=16), ValueError, "on images in"),
    "find_attack, option": (
        lambda: attacks.find_attack("bim", speed=1),
        TypeError,
        "bim has no option 'speed'; it takes steps, label_rule",
    ),
    "find_attack, none": (lambda: attacks.find_attack("rand", steps=1), TypeError, "rand has no option 'steps'"),
    "bim_steps": (lambda: attacks.bim_steps(-1), ValueError, "eps must be"),
    "bim_steps of a fraction": (lambda: attacks.bim_steps(0.5), TypeError, "eps must be"),
    "an unbounded attack's eps": (
        lambda: attacks.SaliencyMap()(classifier(), IMAGES, None, 8),
        ValueError,
        "is not bounded: it takes no eps",
    ),
    "a bounded attack's eps": (lambda: attacks.BIM()(classifier(), IMAGES, None), ValueError, "bim needs eps"),
    "targets of another attack": (
        lambda: attacks.BIM()(classifier(), IMAGES, None, 8, targets=[0, 1]),
        ValueError,
        "it takes no targets",
    ),
    "BPDA on a bare classifier": (
        lambda: attacks.BPDA()(classifier(), IMAGES, [0, 1], 8),
        ValueError,
        "expected a pxfast.defences.Defended",
    ),
    "clip of another shape": (
        lambda: attacks.DeepFool().clip(classifier(), IMAGES, [0, 1], UNIT[:1], 8),
        ValueError,
        "floating images",
    ),
    "clip of a list": (
        lambda: attacks.DeepFool().clip(classifier(), IMAGES, [0, 1], [1], 8),
        TypeError,
        "found must be of Tensor",
    ),
    "relaxation of a name": (
        lambda: RelaxedPurifier.of("purifier", (1, 8, 8)),
        TypeError,
        "purifier must be of Purifier",
    ),
    "a defence's setting": (
        lambda: defences.parse_defence("purifier:strength=3"),
        ValueError,
        "of the names eps",
    ),
    "a defence's setting alone": (
        lambda: defences.parse_defence("purifier:eps"),
        ValueError,
        "of the names eps",
    ),
    "a defence's value": (lambda: defences.parse_defence("purifier:eps=many"), TypeError, "eps must be"),
    "a defence's number": (lambda: defences.parse_defence("adp:sigma=16"), ValueError, "sigma must be"),
    "purified of another shape": (
        lambda: pxfast.verify(IMAGES, IMAGES[:1], model=tiny()),
        ValueError,
        "differ in shape",
    ),
    "no shipped model": (lambda: pxfast.purify(IMAGES), ValueError, "no shipped model takes images of shape"),
    "no shipped score network": (lambda: pxfast.ADPPurifier()(IMAGES), ValueError, "no shipped score network"),
    "a threshold alone": (lambda: pxfast.Purifier(threshold=1.0), ValueError, "means nothing without adaptive"),
    "not fitted": (lambda: pxfast.Detector(tiny()).p_value(IMAGES), RuntimeError, "is not fitted"),
    "fit to none": (lambda: pxfast.Detector(tiny()).fit(IMAGES[:0]), ValueError, "at least one training image"),
    "scores of texts": (lambda: roc_curve(["a"], ["b"]), TypeError, "expected scores"),
    "no scores": (lambda: roc_auc_score([], [1.0]), ValueError, "expected scores"),
    "scores with NaN": (lambda: roc_auc_score([np.nan], [1.0]), ValueError, "without NaN"),
    "scores of two dimensions": (lambda: roc_curve(np.ones((2, 2)), [1.0]), ValueError, "expected scores"),
    # training
    "train of a dict": (lambda: train({}, IMAGES, "out"), TypeError, "config must be of PixelCNNConfig"),
    "train from a name": (
        lambda: train(UNTRAINED, IMAGES, "out", start="cifar10"),
        TypeError,
        "start must be of PixelCNN",
    ),
    "train a score network of a dict": (
        lambda: train_score_network({}, IMAGES, "out"),
        TypeError,
        "config must be of ScoreNetworkConfig",
    ),
    "train into no folder": (lambda: train(UNTRAINED, IMAGES, "no/a.safetensors"), FileNotFoundError, "no such folder"),
    # evaluation
    "a table's values": (lambda: evaluation.parse_table([]), TypeError, "values must be of dict"),
    "text of a name": (lambda: evaluation.table_text("table1"), TypeError, "table must be of Table"),
    "a table of a name": (
        lambda: evaluation.evaluate_table("table1", None, "out"),
        TypeError,
        "specification must be of TableSpec",
    ),
    "no data": (
        lambda: evaluation.evaluate_table(evaluation.load_table("table1"), None, "out"),
        ValueError,
        "needs a root",
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_wrong_calls_are_refused(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, error, words = OTHERS[what]
    assert_refused(call, Wrong(what, error, words), "call")
    assert not list(tmp_path.iterdir()), "something was written"


# who takes a path, whatever else, and what they say of a file that is none of theirs
READERS: dict[str, Call] = {
    "load": pxfast.load,
    "load_classifier": classifiers.load_classifier,
    "model=": lambda path: pxfast.Purifier(model=path),
    "ADPPurifier": lambda path: pxfast.ADPPurifier(model=path),
    "Detector.load": pxfast.Detector.load,
    "load_table": evaluation.load_table,
    "read_table": evaluation.read_table,
    "read_figure": evaluation.read_figure,
}
WRITERS: dict[str, Call] = {
    "save": lambda path: pxfast.save(tiny(), path),
    "save_classifier": lambda path: classifiers.save_classifier(classifier(), path),
    "train": lambda path: train(UNTRAINED, IMAGES.repeat(16, 1, 1, 1), path),
    "attack_to_file": lambda path: attacks.attack_to_file(attacks.BIM(), classifier(), IMAGES, None, path, eps=8),
    "write_report": lambda path: evaluation.write_report("here", path),
    "evaluate_table": lambda path: evaluation.evaluate_table(evaluation.load_table("table1"), "here", path),
}
FOLDERS: dict[str, Call] = {
    "render_report": evaluation.render_report,
    "write_report of": evaluation.write_report,
    "read_tables": evaluation.read_tables,
    "read_figures": evaluation.read_figures,
    "load_dataset": lambda path: load_dataset(path, train=True),
    "image_shape": image_shape,
}


@pytest.mark.parametrize("what", [*READERS, *WRITERS, *FOLDERS])
def test_paths_are_texts_or_paths(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = {**READERS, **WRITERS, **FOLDERS}[what]
    for value in (3, b"file", ["file"], 1.5, True):
        words = "path|name"
        assert_refused(lambda: call(value), Wrong(value, TypeError, words), what)  # noqa: B023 - called at once
    assert not list(tmp_path.iterdir()), "something was written"


@pytest.mark.parametrize("what", READERS)
def test_what_is_no_file_of_theirs_is_refused_by_name(what, tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00garbage")
    assert_refused(lambda: READERS[what](foreign), Wrong(foreign, ValueError, "foreign.safetensors"), what)
    missing = tmp_path / "missing.safetensors"
    assert_refused(lambda: READERS[what](missing), Wrong(missing, FileNotFoundError, "missing.safetensors"), what)
    if what != "load_table":
        assert_refused(lambda: READERS[what](tmp_path), Wrong(tmp_path, ValueError, str(tmp_path)), what)


def test_what_is_written_must_be_what_it_is_called(tmp_path):
    out = tmp_path / "out.safetensors"
    wrong: dict[str, tuple[Call, str]] = {
        "save": (lambda: pxfast.save("cifar10", out), "model must be of PixelCNN"),
        "save, dtype": (lambda: pxfast.save(tiny(), out, dtype=torch.float16), "dtype must be torch.bfloat16"),
        "save, notes": (lambda: pxfast.save(tiny(), out, notes=["good"]), "notes must be a dictionary"),
        "save, values of notes": (
            lambda: pxfast.save(tiny(), out, notes={"x": object()}),
            "notes must be a dictionary",
        ),
        "save_classifier": (lambda: classifiers.save_classifier(tiny(), out), "model must be of Classifier"),
        "save_classifier, notes": (lambda: classifiers.save_classifier(classifier(), out, notes=3), "notes must be"),
        "attack_to_file": (
            lambda: attacks.attack_to_file("bim", classifier(), IMAGES, None, tmp_path / "a.npy", eps=8),
            "attack must be of Attack",
        ),
    }
    for what, (call, words) in wrong.items():
        assert_refused(call, Wrong(what, TypeError, words), what)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("meant", [1, 8, 16, 254])
def test_eps_of_the_range_0_to_1_is_refused_with_the_integer_meant(meant):
    images = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()
    message = (
        rf"eps must be an integer in 0..255, got .*; it counts steps of 0..255: for {meant}/255 write eps={meant}$"
    )
    for eps in (meant / 255, np.float32(meant / 255)):
        with pytest.raises(TypeError, match=message):
            pxfast.purify(images, eps=eps)
        with pytest.raises(TypeError, match=message):
            attacks.BIM()(flat, images, torch.tensor([3]), eps)
    with pytest.raises(TypeError, match=r"got 1\.5$"):
        pxfast.purify(images, eps=1.5)
