"""The defences that a table's rows may name, and what their results depend on.

A row lists its defences in their order, each a table with ``kind`` and the kind's own options. :func:`describe` turns
one into a *description*, a part of recipes that names everything its result depends on and from which :func:`build`
makes the module, in this process or another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import nn

from ..adp.files import SHIPPED as SCORE_NETWORKS
from ..adp.purifier import RUNS, STEPS, ADPPurifier
from ..base.checks import check_eps, check_number
from ..base.code import code_hash
from ..base.files import file_digest
from ..base.machine import torch_instructions
from ..base.records import shown
from ..defences import FeatureSqueezing
from ..engines.arithmetic import arithmetic_of
from ..engines.registry import select
from ..pixeldefend.purify import Purifier
from ..pixeldefend.rules import IMAGE_THRESHOLD, SUB_PIXEL_THRESHOLD, check_adaptive
from .networks import ELSEWHERE, Models

Description = dict[str, Any]

PURIFIER_OPTIONS = ("eps", "adaptive", "threshold")
SQUEEZING_OPTIONS = ("colours", "padding")
ADP_OPTIONS = ("sigma", "steps", "runs", "model")
SHIPPED_SCORES = {1: "fashion-mnist", 3: "cifar10"}  # by channels


@dataclasses.dataclass(frozen=True)
class Context:
    """What defences share in an evaluation. density: the fingerprint of the density model, None where there is none.
    channels: of the images.

    engine, precision: as :func:`pxfast.purify` takes them. device: 'cpu' or 'cuda', where networks run.
    """

    density: str | None
    channels: int
    engine: str = "auto"
    precision: str = "auto"
    device: str = "cpu"


@dataclasses.dataclass(frozen=True)
class DefenceKind:
    """How a kind of defence is made. check: raises TypeError or ValueError for wrong options. describe: of its options,
    which are right, and the context, a description without ``kind``. build: the module. kept: whether defended images
    are costly enough to be kept; others are made again for each prediction. options: their names. example: such a
    module, of no particular settings.
    """

    check: Callable[[dict[str, Any]], object]
    describe: Callable[[dict[str, Any], Context], Description]
    build: Callable[[Description, Models], nn.Module]
    kept: bool
    options: tuple[str, ...]
    example: Callable[[], nn.Module]


def check_purifier(options: dict[str, Any]) -> None:
    """Options: eps, adaptive and threshold, as :func:`pxfast.purify` takes them."""
    unknown = set(options) - set(PURIFIER_OPTIONS)
    if unknown or "eps" not in options:
        raise ValueError(f"a purifier takes eps, adaptive and threshold, got {', '.join(sorted(options)) or 'nothing'}")
    check_eps(options["eps"])
    check_adaptive(options.get("adaptive"), options.get("threshold"))


def purifier_description(options: dict[str, Any], context: Context) -> Description:
    """FileNotFoundError where there is no density model."""
    if context.density is None:
        raise FileNotFoundError("there is no density model of images of this shape")
    eps, adaptive, threshold = options["eps"], options.get("adaptive"), options.get("threshold")
    if threshold is None and adaptive is not None:
        threshold = IMAGE_THRESHOLD[context.channels] if adaptive == "image" else SUB_PIXEL_THRESHOLD
    arithmetic = arithmetic_of(context.engine, context.precision)
    return {
        "eps": eps,
        "adaptive": adaptive,
        "threshold": None if threshold is None else float(threshold),
        "model": context.density,
        **arithmetic,
        "code": code_hash(build_purifier, select(arithmetic["engine"]).decode.__module__, without=ELSEWHERE),
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


def check_squeezing(options: dict[str, Any]) -> None:
    """Options: colours and padding, as :class:`pxfast.defences.FeatureSqueezing` takes them."""
    if unknown := set(options) - set(SQUEEZING_OPTIONS):
        raise ValueError(f"feature-squeezing takes colours and padding, got {', '.join(sorted(unknown))}")
    check_text("padding", options.get("padding"))
    FeatureSqueezing(**options)


def squeezing_description(options: dict[str, Any], context: Context) -> Description:
    return {**options, "code": code_hash(build_squeezing, without=ELSEWHERE)}


def build_squeezing(description: Description, models: Models) -> FeatureSqueezing:
    return FeatureSqueezing(**{name: value for name, value in description.items() if name not in ("kind", "code")})


def check_adp(options: dict[str, Any]) -> None:
    """Options: sigma, steps and runs, as :class:`pxfast.ADPPurifier` takes them, and model, a score network's file;
    without it the shipped one of so many channels.
    """
    unknown = set(options) - set(ADP_OPTIONS)
    if unknown or "sigma" not in options:
        raise ValueError(f"adp takes sigma, steps, runs and model, got {', '.join(sorted(options)) or 'nothing'}")
    check_text("model", options.get("model"))
    check_number("sigma", options["sigma"], 0.0)
    ADPPurifier(**{name: value for name, value in options.items() if name != "model"})


def adp_description(options: dict[str, Any], context: Context) -> Description:
    """FileNotFoundError where there is no score network of that name or path."""
    path = SCORE_NETWORKS.path(options.get("model", SHIPPED_SCORES[context.channels]))
    if not path.is_file():
        raise FileNotFoundError(f"there is no score network {path.name}")
    settings = {
        "sigma": float(options["sigma"]),
        "steps": options.get("steps", STEPS),
        "runs": options.get("runs", RUNS),
    }
    return {
        **settings,
        "model": str(path),
        "weights": file_digest(path),
        "processor": torch_instructions(context.device),
        "code": code_hash(build_adp, without=ELSEWHERE),
    }


def build_adp(description: Description, models: Models) -> ADPPurifier:
    if file_digest(description["model"]) != description["weights"]:
        raise ValueError(f"{description['model']} has changed since the evaluation began; run it again")
    settings = {name: description[name] for name in ("sigma", "steps", "runs", "model")}
    return ADPPurifier(**settings)


DEFENCES: dict[str, DefenceKind] = {
    "purifier": DefenceKind(
        check_purifier, purifier_description, build_purifier, True, PURIFIER_OPTIONS, lambda: Purifier(0)
    ),
    "feature-squeezing": DefenceKind(
        check_squeezing, squeezing_description, build_squeezing, False, SQUEEZING_OPTIONS, FeatureSqueezing
    ),
    # random: its runs are averaged in the logits
    "adp": DefenceKind(check_adp, adp_description, build_adp, False, ADP_OPTIONS, ADPPurifier),
}


def find_kind(name: str) -> DefenceKind:
    """The kind of defence of this name. ValueError lists the known ones."""
    if name not in DEFENCES:
        raise ValueError(f"unknown kind of defence {shown(name)}; known: {', '.join(DEFENCES)}")
    return DEFENCES[name]


def check_text(name: str, value: Any) -> None:
    """TypeError unless a text, or None."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be a text, got {shown(value)}")


def check_defence(defence: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The kind and the options of a row's defence. Raises TypeError or ValueError for one that is wrong."""
    kind = defence.get("kind")
    if not isinstance(kind, str):
        raise TypeError(f"defence {shown(defence)}: its kind must be a text, got {shown(kind)}")
    options = {name: value for name, value in defence.items() if name != "kind"}
    try:
        find_kind(kind).check(options)
    except (TypeError, ValueError) as error:
        raise type(error)(f"defence {kind!r}: {error}") from None
    return kind, options


def describe(defence: dict[str, Any], context: Context) -> Description:
    """The description of a row's defence. Raises what :func:`check_defence` does, and FileNotFoundError where a network
    that it needs is not there.
    """
    kind, options = check_defence(defence)
    return {"kind": kind, **find_kind(kind).describe(options, context)}


def build(description: Description, models: Models) -> nn.Module:
    """The defence of this description: floating or uint8 images (N, C, H, W) to such images; in eval mode."""
    return find_kind(description["kind"]).build(description, models).eval()
