"""``pxfast attack``."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_options import ForceOption, JsonOption, RootOption


def attack(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="fashion-mnist, cifar10 (their test images) or a folder of images.")
    ],
    out: Annotated[Path, typer.Option(help="The attacked images, .npy; their labels go to OUT.labels.npy.")],
    name: Annotated[
        str, typer.Option("--attack", help="rand, fgsm, bim, pgd, ...: an unknown name lists all of them.")
    ] = "bim",
    eps: Annotated[
        int | None,
        typer.Option(help="Largest change of a value, in steps of 0..255; 8 unless given, and none if unbounded."),
    ] = None,
    root: RootOption = None,
    classifier: Annotated[
        str | None, typer.Option(help="A shipped classifier's name or a file; by default the data set's shipped one.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="One of the attack's own options, such as steps=100; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random attacks.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Attack a classifier's images, and count what it gets wrong before and after rounding; a killed run goes on."""
    import torch

    from .attacks import find_attack
    from .attacks.resumable import attack_to_file
    from .classifiers import load_classifier
    from .data import UNLABELLED, load_dataset

    chosen = find_attack(name)
    options = parse_options(chosen.perturb, option or [])
    given, labels = load_dataset(dataset, root, train=None)
    given, labels = given[:images], labels[:images]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_classifier(classifier or default_classifier(dataset, tuple(given.shape[1:]))).to(device)
    result = attack_to_file(
        chosen,
        model,
        given.to(device),
        None if bool((labels == UNLABELLED).all()) else labels.to(device),
        out,
        eps=8 if eps is None and chosen.bounded else eps,
        seed=seed,
        options=options,
        force=force,
        progress=True,
    )
    print(json.dumps({"images": len(given), "misclassified": result.rates()}) if as_json else result)


def default_classifier(dataset: str, shape: tuple[int, ...]) -> str:
    """The name of the shipped classifier of a data set, or of images (C, H, W). ValueError where there is none."""
    from .classifiers.weights import SHIPPED
    from .data import DATASETS

    for name in SHIPPED:
        if dataset == name or (dataset not in DATASETS and DATASETS.get(name) == shape):
            return name
    raise ValueError(f"no classifier is shipped for {dataset}, images (C, H, W) = {shape}; pass --classifier")


def parse_options(perturb: Any, given: list[str]) -> dict[str, Any]:
    """'steps=100' and the like as an attack's options: numbers where they are some, or else text.

    ValueError for text without '=', and for a name that is no option of the attack.
    """
    own = ("classifier", "x", "labels", "eps", "generators", "seed", "targets", "foolbox_name", "euclidean", "options")
    known = [name for name in inspect.signature(perturb).parameters if name not in own]
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise ValueError(f"expected NAME=VALUE with one of the names {', '.join(known) or '(none)'}, got {text!r}")
        options[name] = _number(value)
    return options


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
