"""``pxfast attack``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import ForceOption, JsonOption, RootOption

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..attacks import AttackResult


def attack(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="fashion-mnist, cifar10 (their test images) or a folder of images.")
    ],
    out: Annotated[Path, typer.Option(help="The attacked images, .npy; their labels go to OUT.labels.npy.")],
    name: Annotated[
        str, typer.Option("--attack", help="fgsm, bim, pgd, bpda, spsa, ...: an unknown name lists all of them.")
    ] = "bim",
    defence: Annotated[
        list[str] | None,
        typer.Option(
            help="In front of the classifier, such as purifier:eps=16 or adp:sigma=0.25; may be repeated. The attack "
            "knows of it."
        ),
    ] = None,
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
        list[str] | None,
        typer.Option(
            help="One of the attack's own options, such as steps=100 or max_queries=1000 an image; may be repeated."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="The same as --option steps=N.")] = None,
    seed: Annotated[int, typer.Option(help="Of random attacks.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Attack a classifier's images, and count what it gets wrong before and after rounding; a killed run goes on."""
    import torch

    from ..attacks import attack_to_file, find_attack
    from ..classifiers import load_classifier
    from ..data.datasets import UNLABELLED, load_dataset
    from ..defences import Defended
    from ..defences.named import parse_defence

    settings = [*(option or []), *([] if steps is None else [f"steps={steps}"])]
    chosen = find_attack(name, **parse_options(name, settings))
    defences = [parse_defence(text) for text in defence or []]
    given, labels = load_dataset(dataset, root, train=None)
    given, labels = given[:images], labels[:images]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_classifier(classifier or default_classifier(dataset, tuple(given.shape[1:]))).to(device)
    labels = None if bool((labels == UNLABELLED).all()) else labels.to(device)
    result = attack_to_file(
        chosen,
        Defended(model, defences) if defences else model,
        given.to(device),
        labels,
        out,
        eps=8 if eps is None and chosen.bounded else eps,
        seed=seed,
        force=force,
        progress=True,
    )
    facts = summary(result, model, given.to(device), labels, defended=bool(defences))
    print(json.dumps(facts) if as_json else "\n".join([str(result), *describe(facts)]))


def summary(
    result: AttackResult, classifier: nn.Module, images: Tensor, labels: Tensor | None, *, defended: bool
) -> dict[str, Any]:
    """What an attack came to, JSON-able. images: before the attack. labels: None where nobody knows them.

    ``misclassified``: rates in [0, 1] by stage. ``accuracy``, where there are labels: in [0, 1] of the clean and
    of the attacked images, ``undefended`` and, if there are defences, ``defended``. ``images_per_second``: of the
    attack itself.
    ``queries`` and ``gradients``: the means per image, where the attack counts them.
    """
    from ..attacks.result import COSTS
    from ..classifiers import accuracy

    facts: dict[str, Any] = {"images": len(images), "misclassified": result.rates()}
    if labels is not None:
        facts["accuracy"] = {
            "undefended": {
                "clean": accuracy(classifier, images, labels),
                "attacked": accuracy(classifier, result.images.to(images.device), labels),
            }
        }
        if defended:
            wrong = result.rates()
            facts["accuracy"]["defended"] = {"clean": 1.0 - wrong["clean"], "attacked": 1.0 - wrong["rounded"]}
    facts["images_per_second"] = len(images) / result.seconds
    for cost in COSTS:
        counted = getattr(result, cost)
        if counted is not None:
            facts[cost] = float(counted.double().mean())
    return facts


def describe(facts: dict[str, Any]) -> list[str]:
    """What :func:`summary` gives, in lines for people."""
    from ..attacks.result import COSTS

    names = {"undefended": "without the defence", "defended": "through the defence"}
    if "defended" not in facts.get("accuracy", {}):
        names["undefended"] = "accuracy"
    lines = [
        f"{names[kind]}: {100 * rates['clean']:.1f} % of the clean images, {100 * rates['attacked']:.1f} % attacked"
        for kind, rates in facts.get("accuracy", {}).items()
    ]
    costs = "".join(f", {facts[cost]:.1f} {cost} an image" for cost in COSTS if cost in facts)
    return [*lines, f"{facts['images_per_second']:.3g} images/s{costs}"]


def default_classifier(dataset: str, shape: tuple[int, ...]) -> str:
    """The name of the shipped classifier of a data set, or of images (C, H, W). ValueError where there is none."""
    from ..classifiers.weights import SHIPPED
    from ..data.datasets import DATASETS

    for name in SHIPPED:
        if dataset == name or (dataset not in DATASETS and DATASETS.get(name) == shape):
            return name
    raise ValueError(f"no classifier is shipped for {dataset}, images (C, H, W) = {shape}; pass --classifier")


def parse_options(name: str, given: list[str]) -> dict[str, Any]:
    """'steps=100' and the like as options of the attack of this name: numbers where they are some, or else text.

    ValueError for text without '=', and for a name that is no attack or no option of it.
    """
    from ..attacks import find_attack
    from ..defences.named import parse_setting

    return dict(parse_setting(text, list(find_attack(name).options)) for text in given)
