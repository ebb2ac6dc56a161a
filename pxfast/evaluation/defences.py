"""The defences that a table's rows may name, and what their results depend on.

A row lists its defences in their order, each a table with ``kind`` and the kind's own options. :func:`describe` turns
one into a *description*, a part of recipes that names everything its result depends on and from which :func:`build`
makes the module, in this process or another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..adp.files import SHIPPED as SCORE_NETWORKS
from ..adp.purifier import RUNS, STEPS, ADPPurifier
from ..base.checks import check_eps, check_precision
from ..base.files import file_digest
from ..defences import FeatureSqueezing
from ..engines import cpu
from ..engines.registry import select
from ..pixeldefend.purify import Purifier
from ..pixeldefend.rules import IMAGE_THRESHOLD, SUB_PIXEL_THRESHOLD, check_adaptive
from .code import ELSEWHERE, code_hash
from .networks import Models

Description = dict[str, Any]

SHIPPED_SCORES = {1: "fashion-mnist", 3: "cifar10"}  # by channels


@dataclasses.dataclass(frozen=True)
class Context:
    """What defences share in an evaluation. density: the fingerprint of the density model. channels: of the images.

    engine, precision: as :func:`pxfast.purify` takes them. device: 'cpu' or 'cuda', where networks run.
    """

    density: str
    channels: int
    engine: str = "auto"
    precision: str = "auto"
    device: str = "cpu"


@dataclasses.dataclass(frozen=True)
class DefenceKind:
    """How a kind of defence is made. describe: of its options and the context, a description without ``kind``; it
    raises TypeError or ValueError for wrong options. build: the module. kept: whether defended images are costly
    enough to be kept; others are made again for each prediction.
    """

    describe: Callable[[dict[str, Any], Context], Description]
    build: Callable[[Description, Models], nn.Module]
    kept: bool


def purifier_description(options: dict[str, Any], context: Context) -> Description:
    """Options: eps, adaptive and threshold, as :func:`pxfast.purify` takes them."""
    unknown = set(options) - {"eps", "adaptive", "threshold"}
    if unknown or "eps" not in options:
        raise ValueError(f"a purifier takes eps, adaptive and threshold, got {', '.join(sorted(options)) or 'nothing'}")
    eps, adaptive, threshold = check_eps(options["eps"]), options.get("adaptive"), options.get("threshold")
    check_adaptive(adaptive, threshold)
    if threshold is None and adaptive is not None:
        threshold = IMAGE_THRESHOLD[context.channels] if adaptive == "image" else SUB_PIXEL_THRESHOLD
    engine = select(context.engine)
    precision = check_precision(context.precision)
    return {
        "eps": eps,
        "adaptive": adaptive,
        "threshold": None if threshold is None else float(threshold),
        "model": context.density,
        "engine": engine.name,
        "precision": engine.best_precision() if precision == "auto" else precision,
        "instructions": cpu.isa_of() if engine.name == "cpu" else processor(context.device),
        "code": code_hash(build_purifier, engine.decode.__module__, without=ELSEWHERE),
    }


def build_purifier(description: Description, models: Models) -> Purifier:
    return Purifier(
        description["eps"],
        adaptive=description["adaptive"],
        threshold=description["threshold"],
        model=models.density(description["model"]),
        engine=description["engine"],
        precision=description["precision"],
        threads=models.threads,
    )


def squeezing_description(options: dict[str, Any], context: Context) -> Description:
    """Options: colours and padding, as :class:`pxfast.defences.FeatureSqueezing` takes them."""
    FeatureSqueezing(**options)
    return {**options, "code": code_hash(build_squeezing, without=ELSEWHERE)}


def build_squeezing(description: Description, models: Models) -> FeatureSqueezing:
    return FeatureSqueezing(**{name: value for name, value in description.items() if name not in ("kind", "code")})


def adp_description(options: dict[str, Any], context: Context) -> Description:
    """Options: sigma, steps and runs, as :class:`pxfast.ADPPurifier` takes them, and model, a score network's file;
    without it the shipped one of so many channels. FileNotFoundError where there is none.
    """
    unknown = set(options) - {"sigma", "steps", "runs", "model"}
    if unknown or "sigma" not in options:
        raise ValueError(f"adp takes sigma, steps, runs and model, got {', '.join(sorted(options)) or 'nothing'}")
    path = SCORE_NETWORKS.path(options.get("model", SHIPPED_SCORES[context.channels]))
    if not path.is_file():
        raise FileNotFoundError(f"there is no score network {path.name}")
    settings = {
        "sigma": float(options["sigma"]),
        "steps": options.get("steps", STEPS),
        "runs": options.get("runs", RUNS),
    }
    ADPPurifier(**settings)  # its checks
    return {
        **settings,
        "model": str(path),
        "weights": file_digest(path),
        "processor": processor(context.device),
        "code": code_hash(build_adp, without=ELSEWHERE),
    }


def build_adp(description: Description, models: Models) -> ADPPurifier:
    if file_digest(description["model"]) != description["weights"]:
        raise ValueError(f"{description['model']} has changed since the evaluation began; run it again")
    settings = {name: description[name] for name in ("sigma", "steps", "runs", "model")}
    return ADPPurifier(**settings)


DEFENCES: dict[str, DefenceKind] = {
    "purifier": DefenceKind(purifier_description, build_purifier, kept=True),
    "feature-squeezing": DefenceKind(squeezing_description, build_squeezing, kept=False),
    "adp": DefenceKind(adp_description, build_adp, kept=False),  # random: it is the logits that are averaged
}


def find_kind(name: str) -> DefenceKind:
    """The kind of defence of this name. ValueError lists the known ones."""
    if name not in DEFENCES:
        raise ValueError(f"unknown kind of defence {name!r}; known: {', '.join(DEFENCES)}")
    return DEFENCES[name]


def describe(defence: dict[str, Any], context: Context) -> Description:
    """The description of a row's defence. Raises TypeError or ValueError for one that is wrong."""
    options = {name: value for name, value in defence.items() if name != "kind"}
    kind = str(defence.get("kind"))
    try:
        return {"kind": kind, **find_kind(kind).describe(options, context)}
    except TypeError as error:
        raise TypeError(f"defence {defence}: {error}") from None


def build(description: Description, models: Models) -> nn.Module:
    """The defence of this description: floating or uint8 images (N, C, H, W) to such images; in eval mode."""
    return find_kind(description["kind"]).build(description, models).eval()


def processor(device: str) -> str:
    """What rounding depends on: the GPU's name, or the instructions that torch uses on this processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"
