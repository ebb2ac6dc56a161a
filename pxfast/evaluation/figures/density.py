"""What a model's p(X) tells of clean, attacked and purified images: measured here, drawn by ``pictures.py``."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ...attacks import find_attack
from ...base.checks import check_count, check_eps, check_seed
from ...base.extras import require
from ...base.files import check_output_folder, made_folder, output_files
from ...base.machine import parse_device
from ...base.progress import progress_of
from ...base.streams import shown_name
from ...classifiers import Classifier, load_classifier
from ...classifiers.weights import SHIPPED as SHIPPED_CLASSIFIERS
from ...data.datasets import UNLABELLED, check_classes, first_images, load_dataset
from ...pixelcnn.likelihood import log_prob
from ...pixelcnn.network import PixelCNN
from ...pixelcnn.shipped import SHIPPED, Model, model_for
from ...pixeldefend.detection import Detector, roc_auc_score, shipped_log_likelihoods
from ...pixeldefend.lbfgs import lbfgs_purify
from ...pixeldefend.purify import purify
from ...pixeldefend.sampling import sample
from ...pixeldefend.statistics import permutation_p_values
from . import pictures
from .series import DensityMeasurements, Series, nats_to_bits_per_dim

ATTACKS = ("rand", "fgsm", "bim", "deepfool")  # the paper also has cw_linf, which takes long
EPS = {
    "fashion-mnist": (25, 32),
    "mnist": (25, 32),
    "cifar10": (8, 16),
}  # of attack and purification: the paper's Figures 10 and 11
LBFGS_IMAGES = 10  # the paper's Figure 5


def known_log_likelihoods(model: PixelCNN, dataset: str, root: str | os.PathLike[str] | None, count: int) -> Tensor:
    """A detector's log-likelihoods: the shipped ones of the model, or else those of ``count`` training images."""
    try:
        return shipped_log_likelihoods(model)
    except RuntimeError:
        images, _ = load_dataset(dataset, root, train=True)
        detector = Detector(model).fit(first_images(dataset, images, count))
        assert detector.log_likelihoods is not None  # fitted
        return detector.log_likelihoods


class Indifferent(nn.Module):
    """A stand-in for attacks that go by no classifier: images (N, C, H, W) to logits (N, 2) that are all 0."""

    def forward(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), 2)


def check_indifferent(name: str) -> None:
    """ValueError where the attack of this name goes by a classifier."""
    attack = find_attack(name)
    if attack.needs_gradient or not attack.on_grid:
        raise ValueError(f"the attack {name!r} needs a classifier: pass one, or attack by 'rand' alone")


def attacked_images(
    name: str, classifier: nn.Module | None, images: Tensor, labels: Tensor | None, eps: int, seed: int
) -> Tensor:
    """The attack of this name on uint8 images (N, C, H, W). labels: None for the classifier's own.

    ValueError when it needs a classifier and there is none.
    """
    attack = find_attack(name)
    if classifier is None:
        check_indifferent(name)
        return attack(Indifferent().eval(), images, None, eps if attack.bounded else None, seed=seed)
    return attack(classifier, images, labels, eps if attack.bounded else None, seed=seed)


def measure_density(
    dataset: str,
    root: str | os.PathLike[str] | None = None,
    *,
    images: int = 200,
    train_images: int = 1000,
    model: Model | None = None,
    classifier: nn.Module | str | None = None,
    attacks: Sequence[str] | None = None,
    attack_eps: int | None = None,
    purify_eps: int | None = None,
    shown: int = 48,
    lbfgs_images: int = LBFGS_IMAGES,
    lbfgs_starts: int = 1,
    seed: int = 0,
    device: str = "cpu",
    engine: str = "auto",
    threads: int | None = None,
    progress: bool = False,
) -> DensityMeasurements:
    """Measure what the figures show, on the first ``images`` test images of a data set.

    dataset, root: as :func:`pxfast.data.datasets.load_dataset` takes them. train_images: how many the p-values compare
    with, where none are shipped for the model. model: as :func:`pxfast.purify` takes it. classifier: the one attacked,
    its file, or None for the data set's shipped one; without any the only attack is 'rand'. attacks: names; by default
    ``ATTACKS``. attack_eps, purify_eps: in steps of the grid; by default the paper's for the data set, or else 8 and
    16. shown: samples drawn, and real images beside them. Images without labels are led away from what the classifier
    calls them. lbfgs_images, lbfgs_starts: of the comparison with L-BFGS-B, which takes a second to some minutes for
    each (0 images: none). seed: of samples, attacks and starts. device: where likelihoods and the classifier are
    computed, as :func:`pxfast.base.machine.parse_device` takes it; a classifier that is given as a module is there
    already. engine, threads: of purification and samples. Raises TypeError or ValueError for bad input,
    FileNotFoundError without the data.
    """
    for name, value, least in (
        ("images", images, 1),
        ("train_images", train_images, 1),
        ("shown", shown, 1),
        ("lbfgs_images", lbfgs_images, 0),
        ("lbfgs_starts", lbfgs_starts, 1),
    ):
        check_count(name, value, least)
    for name, eps in (("attack_eps", attack_eps), ("purify_eps", purify_eps)):
        if eps is not None:
            check_eps(eps, name)
    seed = check_seed(seed)
    for attack in attacks or ():
        find_attack(attack).check_installed()
    name = Path(dataset).name
    usual = EPS.get(name, (8, 16))
    attack_eps, purify_eps = (
        usual[0] if attack_eps is None else attack_eps,
        usual[1] if purify_eps is None else purify_eps,
    )
    place = parse_device(device)
    if classifier is None and dataset in SHIPPED_CLASSIFIERS:
        classifier = dataset
    if attacks is None:
        attacks = ATTACKS if classifier is not None else ("rand",)
    if classifier is None:
        for attack in attacks:
            check_indifferent(attack)
    if lbfgs_images and attacks:
        require("scipy.optimize", "evaluate")
    model = SHIPPED.resolve(model)
    called = classifier if isinstance(classifier, str) else type(classifier).__name__
    if isinstance(classifier, str):
        classifier = load_classifier(classifier).to(place)
    test, labels = load_dataset(dataset, root, train=False)
    clean, chosen = (first_images(dataset, each, images).to(place) for each in (test, labels))
    known = None if bool((chosen == UNLABELLED).any()) else chosen
    if isinstance(classifier, Classifier):
        classifier.check_image_shape(tuple(clean.shape[1:]), called)
        if known is not None:
            check_classes(dataset, classifier.config.classes)
    network = model_for(model, clean.shape[1:])
    log_likelihoods = known_log_likelihoods(network, dataset, root, train_images)

    with (
        progress_of(len(attacks) + 2, "step", shown=progress) as steps,
        progress_of(None, shown=progress, leave=False) as within,
    ):
        steps.entitle("samples")
        samples = sample(shown, model=network, seed=seed, engine=engine, threads=threads)
        steps.advance()
        series: list[Series] = []
        by_name: dict[str, tuple[Tensor, Tensor]] = {}
        for kind in ("clean", *attacks):
            steps.entitle(kind)
            given = clean if kind == "clean" else attacked_images(kind, classifier, clean, known, attack_eps, seed)
            finished = functools.partial(within.turn_to, f"  purify {kind}", total=len(given))
            purified = purify(given, purify_eps, model=network, engine=engine, threads=threads, progress=finished)
            by_name[kind] = given, purified
            found = []
            for each in (given, purified):
                nats = log_prob(each, model=network).cpu()
                found += [nats_to_bits_per_dim(nats, each), permutation_p_values(log_likelihoods, nats).numpy()]
            series.append(Series(kind, *found))
            steps.advance()
    baseline = measure_baseline(by_name, series, network, purify_eps, lbfgs_images, lbfgs_starts, seed, progress)
    settings = {
        "data set": shown_name(dataset),
        "images": len(clean),
        "training images": len(log_likelihoods),
        "attack eps": attack_eps,
        "purification eps": purify_eps,
        "L-BFGS-B starts": lbfgs_starts,
        "seed": seed,
    }
    return DensityMeasurements(
        first_images(dataset, test, shown),
        samples,
        nats_to_bits_per_dim(log_likelihoods, clean),
        series,
        baseline,
        settings,
    )


def measure_baseline(
    images: dict[str, tuple[Tensor, Tensor]],
    series: Sequence[Series],
    model: PixelCNN,
    eps: int,
    count: int,
    starts: int,
    seed: int,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """The paper's Figure 5 on the first ``count`` images: bits/dim of clean, attacked and twice purified ones.

    The attack is FGSM, as the paper's, or else the first one there is; without one there is no comparison.
    """
    bits = {each.name: each for each in series}
    attack = "fgsm" if "fgsm" in bits else next((each.name for each in series[1:]), None)
    if attack is None or count < 1:
        return {}
    found = lbfgs_purify(images[attack][0][:count], eps, model=model, starts=starts, seed=seed, progress=progress)
    return {
        "clean": bits["clean"].bits[:count],
        attack: bits[attack].bits[:count],
        "L-BFGS-B": found.bits_per_dim.double().cpu().numpy(),
        "greedy decoding": bits[attack].purified_bits[:count],
    }


def summary(measured: DensityMeasurements) -> dict[str, Any]:
    """Settings, and the figures' figures: mean bits/dim and areas under the ROC curves against the training images."""
    return {
        **measured.settings,
        "series": [
            {
                "name": each.name,
                "mean bits/dim": float(each.bits.mean()),
                "mean bits/dim, purified": float(each.purified_bits.mean()),
                "AUC": roc_auc_score(measured.train_bits, each.bits),
                "AUC, purified": roc_auc_score(measured.train_bits, each.purified_bits),
            }
            for each in measured.series
        ],
        "L-BFGS-B against greedy decoding, mean bits/dim": {
            name: float(bits.mean()) for name, bits in measured.baseline.items()
        },
    }


def density_figures(
    dataset: str,
    root: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    **settings: Any,
) -> list[Path]:
    """Measure, draw, and write the figures as PNG and SVG and their numbers as JSON into the folder ``out``.

    settings: those of :func:`measure_density`. The folder is made when it isn't there. Gives the files. Raises
    FileExistsError when one of them exists, before anything is measured, unless ``force``.
    """
    folder = Path(out)
    prefix = f"density-{Path(dataset).name}"
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is not a folder")
    check_output_folder(folder)
    require("sklearn.metrics", "evaluate")  # of the ROC curves, which are drawn last
    paths = [folder / f"{prefix}-{name}{suffix}" for name, suffix in pictures.FILES]
    numbers = folder / f"{prefix}.json"
    with made_folder(folder), output_files(*paths, numbers, force=force) as temporaries:
        measured = measure_density(dataset, root, **settings)
        pictures.draw_all(measured, temporaries[:-1])
        temporaries[-1].write_text(json.dumps(summary(measured), indent=2) + "\n")
        return [path for path, temporary in zip((*paths, numbers), temporaries, strict=True) if temporary.exists()]
