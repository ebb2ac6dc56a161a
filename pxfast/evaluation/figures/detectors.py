"""How well detectors tell attacked images from clean ones, and what is left of that under an attack that knows them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...attacks import Attack, find_attack
from ...attacks.resumable import describe
from ...base.checks import check_count, check_eps, check_flag, check_number, check_seed
from ...base.extras import require
from ...base.files import check_output_folder, made_folder, output_files, whole_file
from ...base.machine import parse_device
from ...base.parts import Parts
from ...base.progress import progress_of
from ...base.reading import parse_json, read_text
from ...base.streams import shown_name
from ...classifiers import load_classifier, predict
from ...classifiers.weights import SHIPPED as SHIPPED_CLASSIFIERS
from ...data.datasets import UNLABELLED, check_classes, first_images, load_dataset
from ...pixelcnn.fingerprint import model_fingerprint
from ...pixelcnn.likelihood import of_log_probs
from ...pixelcnn.network import PixelCNN
from ...pixelcnn.shipped import SHIPPED, model_for
from ...pixeldefend.detection import roc_auc_score
from ...pixeldefend.statistics import STATISTICS, TAILS, measure_all, permutation_p_values
from ...tensors.store import digest
from ..table_run import machine
from .density import EPS
from .detector_pictures import draw_detectors
from .pictures import save_picture

PUBLISHED = ("rand", "fgsm", "bim", "deepfool", "cw-linf")
AWARE = "likelihood-aware"
PART = 32  # images whose results are kept together
TRAIN = "train"


def detector_figures(
    dataset: str,
    root: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    images: int = 64,
    train_images: int = 256,
    model: str | os.PathLike[str] | None = None,
    classifier: str | None = None,
    attacks: Sequence[str] | None = None,
    options: dict[str, dict[str, Any]] | None = None,
    eps: int | None = None,
    alpha: float = 0.05,
    seed: int = 0,
    device: str = "cpu",
    force: bool = False,
    progress: bool = False,
) -> list[Path]:
    """Judge detectors by attacks, and write the numbers as JSON and the p-values' histograms as PNG into ``out``.

    The detectors are those of all ``STATISTICS`` and ``TAILS``, fitted on the first ``train_images`` training images.
    The attacks are made on the first ``images`` test images: by default the paper's and the one that knows the
    log-likelihood. options: of attacks, by their names. eps: in steps of the grid; None: the paper's. alpha: the false
    positives at which detection is counted, in (0, 1). dataset, model, classifier, device, seed: as
    :func:`measure_density` takes them, with a classifier's name or file alone.

    What is finished is kept in a folder beside the JSON file; a killed run goes on from there. Gives the files. Raises
    FileExistsError when one exists, before anything is measured, unless ``force``; TypeError or ValueError for bad
    input, and for so few training images that no p-value is as small as alpha, FileNotFoundError without the data.
    """
    for name, count in (("images", images), ("train_images", train_images)):
        check_count(name, count, 1)
    force, progress, seed = check_flag("force", force), check_flag("progress", progress), check_seed(seed)
    alpha = check_number("alpha", alpha, 0.0, 1.0, ends="()")
    name = Path(dataset).name
    eps = EPS.get(name, (8, 16))[0] if eps is None else check_eps(eps)
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is not a folder")
    check_output_folder(folder)
    own: dict[str, dict[str, Any]] = {AWARE: {} if model is None else {"model": model}}  # that of the detectors
    chosen = [
        find_attack(each, **{**own.get(each, {}), **(options or {}).get(each, {})})
        for each in attacks or (*PUBLISHED, AWARE)
    ]
    for each in chosen:
        each.check_installed()
    require("sklearn.metrics", "evaluate")  # of the areas, which are computed last
    if classifier is None and dataset not in SHIPPED_CLASSIFIERS:
        raise ValueError(f"no classifier of {shown_name(dataset)} is shipped: pass one")
    place = parse_device(device)
    called = dataset if classifier is None else classifier
    network = load_classifier(called).to(place)
    test, labels = load_dataset(dataset, root, train=False)
    if bool((labels == UNLABELLED).any()):
        raise ValueError(f"{shown_name(dataset)} has images without labels, and what is misclassified needs them")
    network.check_image_shape(tuple(test.shape[1:]), called)
    check_classes(dataset, network.config.classes)
    train, _ = load_dataset(dataset, root, train=True)
    train = first_images(dataset, train, train_images).to(place)
    if alpha < 2.0 / (len(train) + 1):  # as the p-values of both tails are computed
        raise ValueError(f"no p-value is at most alpha = {alpha:g} with {len(train)} training images: use more of them")
    test, labels = (first_images(dataset, each, images).to(place) for each in (test, labels))
    density = model_for(SHIPPED.resolve(model), tuple(test.shape[1:]))
    bounds = {each.name: eps if each.bounded else None for each in chosen}
    settings = {
        "data set": shown_name(dataset),
        "images": len(test),
        "training images": len(train),
        "eps": eps,
        "alpha": alpha,
        "seed": seed,
        "attacks": {each.name: each.options for each in chosen},
    }
    depends = {
        **settings,
        "model": model_fingerprint(density),
        "training data": digest(train.cpu()),
        "runs": [describe(each, network, test, labels, bounds[each.name], seed) for each in chosen],
    }
    numbers, picture = (folder / f"detectors-{name}{suffix}" for suffix in (".json", ".png"))
    parts = Parts(numbers, depends)
    with (
        made_folder(folder),
        output_files(numbers, picture, force=force or parts.published([numbers, picture])) as temporaries,
    ):
        parts.open(force=force)
        measured: dict[str, dict[str, np.ndarray]] = {}
        kinds: dict[str, Attack | None] = {TRAIN: None, "clean": None, **{each.name: each for each in chosen}}
        with progress_of(len(kinds), "step", shown=progress) as steps:
            for kind, attack in kinds.items():
                steps.entitle(kind)
                given = train if kind == TRAIN else test
                found = []
                for start in range(0, len(given), PART):
                    path = parts.folder / f"{kind}-{start:06d}.json"
                    batch, known = given[start : start + PART], None if kind == TRAIN else labels[start : start + PART]
                    if not path.exists():
                        if attack is not None:
                            batch = attack(network, batch, known, bounds[kind], seed=seed)
                        values = scores(batch, known, density, network)
                        with whole_file(path) as temporary:
                            temporary.write_text(json.dumps(values), encoding="utf-8")
                    found.append(parse_json(read_text(path), str(path)))
                measured[kind] = {key: np.concatenate([part[key] for part in found]) for key in found[0]}
                steps.advance()
        made = {"model": depends["model"], "machine": machine()}
        result = {**settings, **made, **summary(measured, alpha)}
        temporaries[0].write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        save_picture(draw_detectors(p_values_of(measured), settings), temporaries[1])
        parts.promise(temporaries)
    parts.remove()
    return [numbers, picture]


def scores(images: Tensor, labels: Tensor | None, density: PixelCNN, classifier: nn.Module) -> dict[str, list[Any]]:
    """All statistics of uint8 images (N, C, H, W), and with labels which of them are misclassified; by name."""
    values = of_log_probs(images, density, PART, False, measure_all)
    found: dict[str, list[Any]] = {name: values[:, i].tolist() for i, name in enumerate(STATISTICS)}
    if labels is not None:
        found["misclassified"] = (predict(classifier, images.float() / 255.0) != labels).tolist()
    return found


def p_values_of(measured: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[tuple[str, str], np.ndarray]]:
    """The p-values (N,) of every kind of images, by statistic and tail."""
    return {
        kind: {
            (name, tail): permutation_p_values(
                torch.from_numpy(measured[TRAIN][name]), torch.from_numpy(values[name]), tail
            ).numpy()
            for name in STATISTICS
            for tail in TAILS
        }
        for kind, values in measured.items()
        if kind != TRAIN
    }


def summary(measured: dict[str, dict[str, np.ndarray]], alpha: float) -> dict[str, Any]:
    """Of every kind of images the share that is misclassified and, by detector, two numbers.

    AUC: the area under the ROC curve against the clean test images, by the negated p-value. detected: the share whose
    p-value is at most ``alpha``, of all and of the misclassified ones alone (None without any).
    """
    found = p_values_of(measured)
    series = []
    for kind, detectors in found.items():
        wrong = measured[kind]["misclassified"].astype(bool)
        rows = [
            {
                "statistic": name,
                "tail": tail,
                "AUC": round(roc_auc_score(-found["clean"][name, tail], -p_values), 4),
                "detected": round(float((p_values <= alpha).mean()), 4),
                "detected, of the misclassified": round(float((p_values[wrong] <= alpha).mean()), 4)
                if wrong.any()
                else None,
            }
            for (name, tail), p_values in detectors.items()
        ]
        series.append({"name": kind, "misclassified": round(float(wrong.mean()), 4), "detectors": rows})
    return {"series": series}
