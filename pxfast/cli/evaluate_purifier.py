"""``pxfast evaluate adaptive --purifier``: any purifier before the referee."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import nn

    from ..evaluation.preparation import Settings

PurifierOption = Annotated[
    str | None,
    typer.Option(
        help="Judge this purifier instead: package.module:name, a function that gives it, a class or the module; or "
        "pixeldefend:eps=16, adp ..."
    ),
]
SurrogateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--surrogate",
        help="With --purifier: another classifier to transfer from, a file or module:name. May be repeated.",
    ),
]
RunsOption = Annotated[int, typer.Option(min=1, help="With --purifier: evaluations of a random defence.")]
IMAGES = 64


def judge(
    purifier: str,
    dataset: str,
    root: Path | None,
    out: Path,
    settings: Settings,
    *,
    classifier: str | None,
    surrogates: list[str],
    attacks: list[str] | None,
    eps: int,
    runs: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Judge a purifier, and print the verdict."""
    from ..base.machine import parse_device
    from ..data.datasets import image_shape
    from ..evaluation.referee import referee
    from .attack import default_classifier
    from .own_module import load_model

    place = parse_device(settings.device)
    module = load_model(purifier).to(place) if named_module(purifier) else purifier
    count = IMAGES if settings.images is None else settings.images
    if classifier is None:
        classifier = default_classifier(dataset, image_shape(dataset))
    names = [each if named_module(each) else Path(each).stem for each in surrogates]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"expected surrogates of different names, got {twice[0]!r} twice")
    others = {name: network(each).to(place) for name, each in zip(names, surrogates, strict=True)}
    result = referee(
        network(classifier).to(place),
        module,
        dataset,
        out=out,
        root=root,
        attacks=attacks,
        surrogates=others,
        eps=eps,
        images=count,
        runs=runs,
        engine=settings.engine,
        precision=settings.precision,
        threads=settings.threads,
        batch_size=settings.shard,
        progress=not quiet,
    )
    print(result.to_json() if as_json else f"{result}\n\n{result.report}")


def named_module(text: str) -> bool:
    """Whether a text names something in a Python module, not a defence with settings nor a file."""
    from ..evaluation.request import NAMED_DEFENCES

    return ":" in text and "=" not in text and text.partition(":")[0] not in NAMED_DEFENCES


def network(text: str) -> nn.Module:
    """A classifier in eval mode: of a Python module, or shipped, or of a file."""
    from ..classifiers import load_classifier
    from .own_module import load_model

    return load_model(text) if named_module(text) else load_classifier(text)
