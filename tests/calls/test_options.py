"""Wrong options of the whole public surface: each is refused before any work, by an error that names it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.attack_network import attack_fixture
from support.own_classifiers import SmallCNN
from support.wrong_values import (
    ENGINE,
    EPS,
    FLAG,
    IMAGES,
    MODEL,
    PATH,
    PRECISION,
    PROGRESS,
    SEED,
    THREADS,
    Kind,
    Wrong,
    assert_refused,
    choice,
    classifier,
    count,
    named,
    number,
    scorer,
    tiny,
)

import pxfast
from pxfast import attacks, classifiers, defences, evaluation
from pxfast.adp.score_network import ScoreNetworkConfig
from pxfast.adp.training import ScoreSettings, denoising_quality, train_score_network
from pxfast.base.machine import parse_device
from pxfast.data.datasets import fetch_dataset, load_dataset
from pxfast.data.image_grid import image_grid
from pxfast.engines.settings import DecodeSettings
from pxfast.evaluation.figures import density_figures, detector_figures
from pxfast.pixelcnn.network import PixelCNNConfig
from pxfast.pixelcnn.training import TrainingSettings, preset, train
from pxfast.pixeldefend.lbfgs import lbfgs_purify
from pxfast.pixeldefend.relaxed import RelaxedPurifier

Call = Callable[..., Any]


@functools.cache
def trained_on() -> torch.Tensor:
    return IMAGES.repeat(8, 1, 1, 1)


def with_tiny(call: Call, *given: Any) -> Call:
    """The call with a small model, unless the option is another."""
    return lambda place, **options: call(*given, **{"model": tiny(), **options})


def of(call: Call, *given: Any, **more: Any) -> Call:
    """The call with arguments that are right, unless the option is one of them."""
    return lambda place, **options: call(*given, **{**more, **options})


def attacked(name: str) -> Call:
    def call(place: Path, **options: Any) -> None:
        fixture = attack_fixture()
        attacks.find_attack(name)(fixture.network, fixture.images, fixture.labels, **{"eps": 8, **options})

    return call


def trained(place: Path, **options: Any) -> None:
    train(PixelCNNConfig((8, 8), 1, 4, 1), trained_on(), **{"out": place / "a.safetensors", **options})


def trained_scores(place: Path, **options: Any) -> None:
    train_score_network(ScoreNetworkConfig((8, 8), 1, 2), trained_on(), **{"out": place / "a.safetensors", **options})


def trained_classifier(place: Path, **options: Any) -> None:
    given = {"dataset": "cifar10", "arch": "resnet62", "root": place, "out": place / "a.safetensors", **options}
    classifiers.train_classifier(**given)


def evaluated(place: Path, **options: Any) -> None:
    evaluation.evaluate_table(evaluation.load_table("table1"), place, **{"out": place / "out", **options})


def benchmarked(place: Path, **options: Any) -> None:
    given = {"defences": ["none"], "attacks": ["rand"], "out": place / "out", "progress": False, **options}
    pxfast.benchmark(SmallCNN().eval(), (IMAGES, [0, 1]), **given)


def drawn(place: Path, **options: Any) -> None:
    density_figures("fashion-mnist", place, **{"out": place / "figures", **options})


BACKWARD = choice()
ADAPTIVE = choice(optional=True)
THRESHOLD = Kind(number(optional=True).wrong)
THRESHOLD_OF_SUB_PIXELS = Kind(number(high=99.0, optional=True).wrong)
POSITIVE = number(ends="()")
FRACTION = number(high=1.0, ends="[)")
SETTINGS = Kind(tuple(Wrong(value, TypeError) for value in ({}, {"seed": 1}, 3, "small", RuntimeError)))
PROCESSES = Kind(tuple(Wrong(value, TypeError) for value in ({}, 2, "cpu")))
WANTED = named("must be", "unknown")
NAMES = Kind(
    (
        *(Wrong(value, TypeError) for value in ("bim", 3, [3], [None])),
        Wrong([], ValueError),
        Wrong(["other"], ValueError, "has no (row|column) 'other'"),
    )
)
LIMITS = {"max_queries": count(optional=True), "max_gradients": count(optional=True)}
ASCENT = {"steps": count(), "step": count(1), **LIMITS}
JOINT = {**ASCENT, "weight": number(high=1.0), "at": choice(), "draws": count(1)}
PURIFIER = {
    "eps": EPS,
    "adaptive": ADAPTIVE,
    "engine": ENGINE,
    "precision": PRECISION,
    "threads": THREADS,
    "model": MODEL,
    "clip": FLAG,
    "progress": PROGRESS,
}
LIKELIHOOD = {"model": MODEL, "batch_size": count(1), "clip": FLAG, "progress": PROGRESS}
OPTIONAL_FLAG = Kind(tuple(wrong for wrong in FLAG.wrong if wrong.value is not None))
RUN = {
    "batch_size": count(1),
    "epochs": POSITIVE,
    "budget": number(ends="()", optional=True),
    "learning_rate": POSITIVE,
    "horizontal_flips": FLAG,
    "precision": PRECISION,
    "compile": OPTIONAL_FLAG,
    "seed": count(most=2**40 - 1),
}
TRAINING = {
    "settings": SETTINGS,
    "resume": FLAG,
    "force": FLAG,
    "progress": FLAG,
    "checkpoint_interval": number(),
    "processes": PROCESSES,
}
SIZE = Kind(
    (
        *(Wrong(value, TypeError) for value in (8, "8x8", (8.0, 8), (8, True), ("8", 8), None)),
        *(Wrong(value, ValueError) for value in ((8,), (8, 8, 8), (0, 8), (-4, 8), (8, 2**20))),
    )
)
CHANNELS = Kind(
    tuple(Wrong(value, TypeError) for value in (1.0, True, "1", None)) + tuple(Wrong(v, ValueError) for v in (0, 2, 4))
)

# what is called, and its options
ATTACKS: dict[str, dict[str, Kind]] = {
    "fgsm": {"label_rule": choice()},
    "bim": {"steps": count(optional=True), "label_rule": choice()},
    "pgd": {"steps": count(), "step": number(ends="()", optional=True)},
    "deepfool": {
        "steps": count(),
        "overshoot": number(),
        "candidates": count(1, optional=True),
        "label_rule": choice(),
    },
    "cw-l2": {
        "steps": count(),
        "binary_search_steps": count(1),
        "learning_rate": POSITIVE,
        "initial_const": POSITIVE,
        "confidence": number(),
    },
    "cw-linf": {
        "steps": count(1),
        "learning_rate": POSITIVE,
        "const": POSITIVE,
        "shrinkage": number(high=1.0, ends="()"),
        "smallest": number(high=1.0, ends="(]"),
    },
    "iterative-gradient-sign": {"steps": count(1), "relative_step": number(high=1.0, ends="(]")},
    "deepfool-l2": {"steps": count(1), "overshoot": number(), "candidates": count(2, optional=True)},
    "gaussian-blur": {"steps": count(1)},
    "contrast-reduction": {"steps": count(1)},
    "salt-and-pepper": {"steps": count(1)},
    "saliency-map": {"theta": number(-1.0, 1.0), "max_steps": count(optional=True)},
    "lbfgs": {"first_const": POSITIVE, "doublings": count(), "bisections": count(), "iterations": count(1)},
    "autoattack": {"version": choice()},
    "blind-pgd": {**ASCENT, "random_start": FLAG},
    "bpda": {**ASCENT, "draws": count(1)},
    "bpda-eot": {**ASCENT, "draws": count(1)},
    "joint-score": JOINT,
    "joint-full": JOINT,
    "apgd-bpda": {**LIMITS, "steps": count(), "restarts": count(1), "loss": choice(), "draws": count(1)},
    "random-search": {**LIMITS, "steps": count()},
    "spsa": {**ASCENT, "pairs": count(1), "delta": count(1)},
    "full-gradient": {**ASCENT, "draws": count(1)},
    "unrolled-bim": {**ASCENT, "steps": count(optional=True), "temperature": POSITIVE},
    "likelihood-aware": {
        "steps": count(),
        "searches": count(1),
        "step": count(1),
        "share": number(high=1.0, ends="(]"),
        "start": choice(),
        "model": MODEL,
    },
}
CALLS: dict[str, tuple[Call, dict[str, Kind]]] = {
    **{name: (of(attacks.find_attack, name), options) for name, options in ATTACKS.items()},
    "find_attack": (of(attacks.find_attack), {"name": named("an attack must be", "unknown attack 'other'")}),
    "an attack": (attacked("bim"), {"eps": Kind(EPS.wrong[:-1]), "seed": SEED, "clip": FLAG, "progress": PROGRESS}),
    "purify": (with_tiny(pxfast.purify, IMAGES), PURIFIER),
    "Purifier": (with_tiny(pxfast.Purifier), {**PURIFIER, "backward": BACKWARD}),
    "Purifier, by image": (of(pxfast.Purifier, adaptive="image"), {"threshold": THRESHOLD}),
    "purify, by sub-pixel": (of(pxfast.purify, IMAGES, adaptive="sub-pixel"), {"threshold": THRESHOLD_OF_SUB_PIXELS}),
    "verify": (
        with_tiny(pxfast.verify, IMAGES, IMAGES),
        {"eps": EPS, "adaptive": ADAPTIVE, "model": MODEL, "precision": choice(unknown="auto"), "clip": FLAG},
    ),
    "sample": (
        with_tiny(pxfast.sample, 1),
        {
            "seed": count(most=2**64 - 1),
            "temperature": number(1e-3, 4.0),
            "first": count(most=2**64 - 2),
            "engine": ENGINE,
            "precision": PRECISION,
            "threads": THREADS,
            "model": Kind((*MODEL.wrong, Wrong(None, TypeError))),
            "progress": PROGRESS,
        },
    ),
    "samples": (of(pxfast.sample, model="cifar10"), {"n": count(most=2**31 - 1)}),
    "certify": (
        lambda place, **options: pxfast.certify(
            classifier(), IMAGES, [0, 0], **{"model": tiny(), "width": 2, **options}
        ),
        {
            "width": count(1, most=1024),
            "purifier": choice(),
            "model": MODEL,
            "seed": SEED,
            "engine": ENGINE,
            "precision": PRECISION,
            "threads": THREADS,
            "progress": PROGRESS,
        },
    ),
    "Estimate.fit": (
        lambda place, **options: pxfast.certification.Estimate.fit(IMAGES, **options),
        {"width": count(1, most=1024), "seed": SEED},
    ),
    "certify_l2": (
        lambda place, **options: pxfast.certify_l2(classifier(), IMAGES, [0, 0], **{"samples": 2, **options}),
        {
            "sigma": POSITIVE,
            "samples": count(1),
            "first_samples": count(1),
            "alpha": number(high=1.0, ends="()"),
            "purifier": choice(),
            "eps": count(optional=True, most=255),
            "seed": SEED,
            "engine": ENGINE,
            "precision": PRECISION,
            "threads": THREADS,
            "progress": PROGRESS,
        },
    ),
    "certify_l2, PixelDefend": (
        lambda place, **options: pxfast.certify_l2(
            classifier(), IMAGES, [0, 0], **{"samples": 2, "purifier": "pixeldefend", **options}
        ),
        {"model": MODEL},
    ),
    "certified_accuracy": (
        lambda place, **options: pxfast.certify(
            classifier(), IMAGES, [0, 0], purifier="midpoints", width=2
        ).certified_accuracy(**{"radius": 0.0, **options}),
        {"radius": number()},
    ),
    "log_prob": (with_tiny(pxfast.log_prob, IMAGES), LIKELIHOOD),
    "bits_per_dim": (with_tiny(pxfast.bits_per_dim, IMAGES), LIKELIHOOD),
    "surprise": (with_tiny(pxfast.surprise, IMAGES), LIKELIHOOD),
    "lbfgs_purify": (
        with_tiny(lbfgs_purify, IMAGES),
        {
            "eps": EPS,
            "starts": count(1),
            "max_iterations": count(1),
            "seed": SEED,
            "clip": FLAG,
            "progress": PROGRESS,
            "model": MODEL,
        },
    ),
    "RelaxedPurifier": (
        lambda place, **options: RelaxedPurifier(**{"eps": 4, "model": tiny(), **options}),
        {"eps": EPS, "model": Kind((*MODEL.wrong, Wrong(None, TypeError))), "temperature": POSITIVE, "clip": FLAG},
    ),
    "ADPPurifier": (
        of(pxfast.ADPPurifier),
        {
            "sigma": number(high=1.0),
            "steps": count(most=10_000),
            "runs": count(1, most=10_000),
            "model": MODEL,
            "backward": BACKWARD,
            "seed": SEED,
            "clip": FLAG,
            "progress": PROGRESS,
        },
    ),
    "FeatureSqueezing": (
        of(defences.FeatureSqueezing),
        {"colours": count(2, optional=True, most=65536), "padding": choice(), "backward": BACKWARD, "clip": FLAG},
    ),
    "Defended": (
        lambda place, **options: pxfast.Defended(attack_fixture().network, **options),
        {"seed": SEED, "clip": FLAG},
    ),
    "RandomAboveThreshold": (
        lambda place, **options: classifiers.RandomAboveThreshold(attack_fixture().network, **options),
        {"threshold": number(), "model": MODEL, "seed": SEED, "clip": FLAG},
    ),
    "Detector": (of(pxfast.Detector), {"model": MODEL, "clip": FLAG, "statistic": choice(), "tail": choice()}),
    "Detector.fit": (
        lambda place, **options: pxfast.Detector(tiny()).fit(IMAGES, **options),
        {"batch_size": count(1), "progress": PROGRESS},
    ),
    "Detector.is_adversarial": (
        lambda place, **options: pxfast.Detector(tiny()).is_adversarial(IMAGES, **options),
        {"alpha": number(high=1.0, ends="()")},
    ),
    "parse_defence": (of(defences.parse_defence), {"text": named("a defence must be", "unknown defence 'other'")}),
    "PixelCNNConfig": (
        of(PixelCNNConfig, image_size=(8, 8), channels=1, filters=4, resnets=1),
        {
            "image_size": SIZE,
            "channels": CHANNELS,
            "filters": count(1, most=4096),
            "resnets": count(1, most=100),
            "mixtures": count(1, most=1000),
            "head": choice(),
            "dropout": FRACTION,
        },
    ),
    "save_pretrained": (
        lambda place, **options: tiny().save_pretrained(**{"folder": place / "model", **options}),
        {"folder": PATH, "push_to_hub": FLAG, "notes": Kind(tuple(Wrong(each, TypeError) for each in (3, "a", [1])))},
    ),
    "from_pretrained": (
        of(pxfast.PixelCNN.from_pretrained, name_or_folder="a/b"),
        {
            "name_or_folder": Kind((*PATH.wrong[:2], Wrong("other", ValueError), Wrong("", ValueError))),
            "force_download": FLAG,
            "local_files_only": FLAG,
        },
    ),
    "push_to_hub": (
        lambda place, **options: tiny().push_to_hub(**options),
        {"repo_id": Kind(tuple(Wrong(each, TypeError) for each in (3, None, ["a/b"])))},
    ),
    "ScoreNetworkConfig": (
        of(ScoreNetworkConfig, image_size=(8, 8), channels=1, ngf=4),
        {"image_size": SIZE, "channels": CHANNELS, "ngf": count(2, most=4096)},
    ),
    "ResNetConfig": (
        of(classifiers.ResNetConfig, image_size=(8, 8), channels=1, widths=(4, 8, 16)),
        {"image_size": SIZE, "channels": CHANNELS, "units": count(1, most=1000), "leakiness": FRACTION},
    ),
    "VGGConfig": (
        of(classifiers.VGGConfig, image_size=(8, 8), channels=1, blocks=((4, 1),), hidden=4),
        {"image_size": SIZE, "channels": CHANNELS, "hidden": count(1), "dropout": FRACTION},
    ),
    "WideResNetConfig": (
        of(classifiers.WideResNetConfig, image_size=(8, 8), channels=1),
        {"image_size": SIZE, "channels": CHANNELS, "classes": count(2), "dropout": FRACTION},
    ),
    "architecture": (
        of(classifiers.architecture, name="resnet62", image_shape=(1, 8, 8)),
        {"name": named("an architecture must be", "unknown architecture 'other'"), "classes": count(2)},
    ),
    "preset": (of(preset, dataset="cifar10"), {"name": WANTED}),
    "TrainingSettings": (
        of(TrainingSettings),
        {
            **RUN,
            "warmup": count(),
            "ema_decay": FRACTION,
            "gradient_clip": number(),
            "optimiser": choice(),
            "muon_learning_rate": POSITIVE,
            "schedule": choice(),
            "decay": FRACTION,
        },
    ),
    "ScoreSettings": (
        of(ScoreSettings),
        {
            **RUN,
            "levels": count(1),
            "sigma_max": POSITIVE,
            "sigma_min": POSITIVE,
            "warmup": count(),
            "ema_decay": FRACTION,
            "gradient_clip": number(),
            "clamped": number(high=1.0),
        },
    ),
    "ClassifierSettings": (
        of(classifiers.ClassifierSettings),
        {
            **RUN,
            "horizontal_flips": OPTIONAL_FLAG,
            "batch_size": count(2),
            "momentum": FRACTION,
            "weight_decay": number(),
            "max_shift": count(),
            "defence": choice(),
            "delta": POSITIVE,
            "smoothing": FRACTION,
            "start": Kind(tuple(Wrong(value, TypeError) for value in (3, ["cifar10"], True))),
        },
    ),
    "train": (trained, TRAINING),
    "train_score_network": (trained_scores, TRAINING),
    "train_classifier": (trained_classifier, TRAINING),
    "denoising_quality": (
        lambda place, **options: denoising_quality(scorer(), IMAGES, **{"sigma": 0.1, **options}),
        {"sigma": POSITIVE, "seed": SEED},
    ),
    "evaluate_table": (
        evaluated,
        {"settings": SETTINGS, "rows": NAMES, "columns": NAMES, "progress": FLAG, "out": PATH},
    ),
    "evaluation.Settings": (
        of(evaluation.Settings),
        {
            "images": count(1, optional=True),
            "train": FLAG,
            "train_budget": POSITIVE,
            "device": choice(),
            "engine": Kind(tuple(Wrong(value, TypeError) for value in (3, None, ["cpu"]))),
            "precision": PRECISION,
            "threads": THREADS,
            "runner": named("must be", "unknown runner 'other'"),
            "shard": count(1),
        },
    ),
    "benchmark": (
        benchmarked,
        {
            "out": PATH,
            "defences": Kind(NAMES.wrong[:5]),
            "attacks": Kind(NAMES.wrong[:5]),
            "eps": Kind(tuple(wrong for wrong in EPS.wrong if wrong.value not in ([1], None))),
            "images": count(1),
            "name": Kind((Wrong(3, TypeError), Wrong("a/b", ValueError), Wrong("", ValueError))),
            "density": MODEL,
            "device": choice(),
            "engine": ENGINE,
            "precision": PRECISION,
            "threads": THREADS,
            "batch_size": count(1),
            "seed": SEED,
            "report": FLAG,
            "progress": FLAG,
        },
    ),
    "check_classifier": (
        of(classifiers.check_classifier, SmallCNN().eval(), IMAGES),
        {"classes": count(2, optional=True), "gradients": FLAG},
    ),
    "detector_figures": (
        lambda place, **options: detector_figures("fashion-mnist", place, **{"out": place / "figures", **options}),
        {
            "images": count(1),
            "train_images": count(1),
            "eps": count(optional=True, most=255),
            "alpha": number(high=1.0, ends="()"),
            "seed": SEED,
            "force": FLAG,
            "progress": FLAG,
        },
    ),
    "density_figures": (
        drawn,
        {
            "images": count(1),
            "train_images": count(1),
            "attack_eps": count(optional=True, most=255),
            "purify_eps": count(optional=True, most=255),
            "lbfgs_images": count(),
            "lbfgs_starts": count(1),
            "seed": SEED,
        },
    ),
    "DecodeSettings": (
        of(DecodeSettings),
        {
            "threads": THREADS,
            "team": THREADS,
            "order": choice(optional=True),
            "isa": Kind(tuple(Wrong(value, TypeError) for value in (3, ["avx2"], True))),
            "clusters": Kind(FLAG.wrong[:3]),
            "wgmma": Kind(FLAG.wrong[:3]),
        },
    ),
    "load_dataset": (
        of(load_dataset, "other", train=True),
        {
            "train": Kind((*OPTIONAL_FLAG.wrong, Wrong("test", TypeError, "train must be True or False"))),
            "download": FLAG,
            "progress": FLAG,
        },
    ),
    "fetch_dataset": (of(fetch_dataset, "other", None), {"progress": FLAG}),
    "image_grid": (of(image_grid, IMAGES), {"columns": count(1, optional=True), "enlarge": count(1)}),
    "parse_device": (of(parse_device), {"name": Kind(tuple(Wrong(v, TypeError, "device must be") for v in (3, None)))}),
}
TABLE = [
    pytest.param(call, name, kind, id=f"{what}-{name}")
    for what, (call, options) in CALLS.items()
    for name, kind in options.items()
]


def test_the_table_is_long_enough():
    assert sum(len(kind.wrong) for _, options in CALLS.values() for kind in options.values()) >= 300
    assert set(ATTACKS) == {name for name, attack in attacks.ATTACKS.items() if inspect.signature(attack).parameters}
    for name, options in ATTACKS.items():
        assert set(options) == set(inspect.signature(attacks.ATTACKS[name]).parameters), name


@pytest.mark.parametrize(("call", "name", "kind"), TABLE)
def test_wrong_options_are_refused(call, name, kind, tmp_path):
    assert kind.wrong
    for wrong in kind.wrong:
        assert_refused(lambda: call(tmp_path, **{name: wrong.value}), wrong, name)  # noqa: B023 - called at once
    assert not list(tmp_path.iterdir()), "something was written"


KEPT = [
    pytest.param(call, name, kind, id=f"{what}-{name}")
    for what, (call, options) in CALLS.items()
    if what in ATTACKS or (what[0].isupper() and not what.startswith("Detector"))
    for name, kind in options.items()
    if kind.right
]


@pytest.mark.parametrize(("call", "name", "kind"), KEPT)
def test_numbers_of_numpy_and_torch_are_kept_as_pythons(call, name, kind, tmp_path):
    for given, kept in kind.right:
        found = getattr(call(tmp_path, **{name: given}), name)
        assert (found, type(found)) == (kept, type(kept)), type(given)


def test_sigma_is_not_of_the_grid():
    with pytest.raises(ValueError, match=r"sigma must be a number in \[0, 1\], got 16; .* images in \[0, 1\]"):
        pxfast.ADPPurifier(sigma=16)
