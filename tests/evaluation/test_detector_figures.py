"""Detectors judged by attacks: numbers from what is kept, and a run that goes on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from support.helpers import random_model, real_images

import pxfast
from pxfast.data.image_files import write_png
from pxfast.evaluation.figures import detectors
from pxfast.evaluation.figures.detectors import p_values_of, summary
from pxfast.pixeldefend.statistics import STATISTICS


def measured() -> dict[str, dict[str, np.ndarray]]:
    values = {
        "train": np.arange(19.0),
        "clean": np.array([3.0, 9.0, 15.0, 5.0]),
        "bim": np.array([-1.0, -1.0, 30.0, 9.0]),
    }
    wrong = {"clean": [False] * 4, "bim": [True, True, True, False]}
    return {
        kind: {
            **dict.fromkeys(STATISTICS, found),
            **({} if kind == "train" else {"misclassified": np.array(wrong[kind])}),
        }
        for kind, found in values.items()
    }


def test_numbers_of_a_case_by_hand() -> None:
    found = p_values_of(measured())
    assert found["bim"]["log-likelihood", "lower"].tolist() == [0.05, 0.05, 1.0, 0.55]
    assert found["bim"]["log-likelihood", "both"].tolist() == [0.1, 0.1, 0.1, 1.0]
    clean, bim = summary(measured(), 0.1)["series"]
    assert (clean["misclassified"], bim["misclassified"]) == (0.0, 0.75)
    lower, both = bim["detectors"][:2]
    assert (lower["statistic"], lower["tail"]) == ("log-likelihood", "lower")
    assert (lower["detected"], lower["detected, of the misclassified"]) == (0.5, 0.6667)
    assert (both["detected"], both["detected, of the misclassified"]) == (0.75, 1.0)
    assert clean["detectors"][0]["AUC"] == 0.5
    assert clean["detectors"][0]["detected, of the misclassified"] is None


def test_files_appear_and_a_killed_run_goes_on(tmp_path, few_root, monkeypatch) -> None:
    given = {"images": 2, "train_images": 40, "attacks": ["rand"]}
    real, seen = detectors.scores, []

    def killed(*arguments):
        seen.append(len(arguments[0]))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(detectors, "scores", killed)
    with pytest.raises(KeyboardInterrupt):
        detectors.detector_figures("fashion-mnist", few_root, tmp_path, **given)
    assert not list(tmp_path.glob("*.json"))
    files = detectors.detector_figures("fashion-mnist", few_root, tmp_path, **given)
    assert seen == [32, 8, 2, 2, 2], "the training images were not measured again"
    numbers = json.loads(files[0].read_text())
    assert [each["name"] for each in numbers["series"]] == ["clean", "rand"]
    assert (numbers["machine"]["pxfast"], len(numbers["model"])) == (pxfast.__version__, 64)
    assert Image.open(files[1]).size[0] > 300
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files)
    with pytest.raises(FileExistsError):
        detectors.detector_figures("fashion-mnist", few_root, tmp_path, **given)


def test_the_attack_that_knows_the_detector_knows_its_model(tmp_path, few_root, monkeypatch) -> None:
    """Unless its options name another."""
    path, asked = tmp_path / "mine.safetensors", []
    pxfast.save(random_model((28, 28)), path)

    class Stopped(Exception):
        pass

    def stopped(numbers, depends):
        asked.append(depends["attacks"]["likelihood-aware"]["model"])
        raise Stopped

    monkeypatch.setattr(detectors, "Parts", stopped)
    other = {"likelihood-aware": {"model": "fashion-mnist"}}
    for options in (None, other):
        with pytest.raises(Stopped):
            detectors.detector_figures(
                "fashion-mnist",
                few_root,
                tmp_path / "out",
                images=1,
                train_images=2,
                alpha=0.9,
                model=path,
                attacks=["likelihood-aware"],
                options=options,
            )
    assert asked == [str(path), "fashion-mnist"]


def test_a_level_that_no_p_value_meets_is_refused(tmp_path, few_root) -> None:
    """All detectors would detect nothing."""
    with pytest.raises(ValueError, match=r"no p-value is at most alpha = 0\.05 with 38 training images"):
        detectors.detector_figures("fashion-mnist", few_root, tmp_path / "out", images=2, train_images=38)
    assert not (tmp_path / "out").exists()


def test_what_does_not_go_with_the_classifier_is_refused_before_any_work(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(detectors, "scores", None)
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(real_images(1, (28, 28), 20)):
        write_png(image, folder / f"{i:02}.png")
    words = {"root": None, "out": tmp_path / "out", "images": 1, "train_images": 1, "classifier": "fashion-mnist"}
    with pytest.raises(ValueError, match="images without labels, and what is misclassified needs them"):
        detectors.detector_figures(str(folder), **words)
    for i, path in enumerate(sorted(folder.iterdir())):
        (folder / str(i % 2)).mkdir(exist_ok=True)
        path.rename(folder / str(i % 2) / path.name)
    with pytest.raises(ValueError, match="images has 2 classes, but the classifier has 10"):
        detectors.detector_figures(str(folder), **words)
    with pytest.raises(ValueError, match=r"cifar10 is a classifier of images of shape .* not \(1, 28, 28\)"):
        detectors.detector_figures(str(folder), **{**words, "classifier": "cifar10"})
    assert not (tmp_path / "out").exists()
