"""``pxfast attack``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    ClassifierOption,
    DatasetArgument,
    DefenceOption,
    DeviceOption,
    DownloadOption,
    EpsOption,
    ForceOption,
    GridOption,
    JsonOption,
    OptionalImagesOption,
    OutOption,
    QuietOption,
    RootOption,
    SeedOption,
    ThreadsOption,
    ViewsOption,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..attacks import AttackResult


def attack(
    dataset: DatasetArgument,
    out: OutOption,
    name: Annotated[
        str, typer.Option("--attack", help="fgsm, bim, pgd, bpda, spsa, ...: an unknown name lists all of them.")
    ] = "bim",
    defence: DefenceOption = None,
    views: ViewsOption = "one",
    eps: EpsOption = None,
    root: RootOption = None,
    download: DownloadOption = False,
    classifier: ClassifierOption = None,
    images: OptionalImagesOption = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="One of the attack's own options, such as steps=100 or max_queries=1000 an image; may be repeated."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="The same as --option steps=N.")] = None,
    grid: GridOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Attack a classifier's images, and count what it gets wrong before and after rounding; a killed run goes on.

    The images of a data set called by name are its test images. OUT is a .npy file of the attacked ones, a .png of a
    single one or, without a suffix, a folder of PNG files. The labels of out.npy go to out.labels.npy, those of a
    folder to labels.npy in it. Defences stand in front of the classifier, and the attack knows of them. An attack
    without a bound takes no --eps.
    """
    from ..attacks import attack_to_file, find_attack
    from ..attacks.resumable import check_attack_output, is_folder, labels_path
    from ..base.checks import check_choice, check_seed
    from ..base.machine import parse_device
    from ..classifiers import load_classifier
    from ..data.datasets import (
        DATASETS,
        UNLABELLED,
        check_classes,
        fetch_dataset,
        named_images,
    )
    from ..data.image_writers import check_output, refuse_input_folder
    from ..defences.defended import VIEWS, Defended
    from .grid import SHOWN, Judges, class_names, density_of, write_grid
    from .machine import engine_on, parse_defences, use_threads
    from .output import print_json

    use_threads(threads)
    check_choice("--views", views, VIEWS)
    settings = [*(option or []), *([] if steps is None else [f"steps={steps}"])]
    chosen = find_attack(name, **parse_options(name, settings))
    bound = chosen.check_eps(8 if eps is None and chosen.bounded else eps)
    check_seed(seed)
    place, engine = parse_device(device), engine_on(device, "auto")
    if defence is None:
        chosen.check_defences([])
    chosen.check_installed()
    grids = [] if grid is None else [grid]
    for path in grids:
        check_output(path, ".png")
    if dataset not in DATASETS and is_folder(out):
        refuse_input_folder(out, Path(dataset), parts=True)
    check_attack_output(out, *grids, force=force)
    defences = parse_defences(defence or [], engine=engine, threads=threads)
    chosen.check_defences(defences)
    if download:
        fetch_dataset(dataset, root, progress=not quiet)
    given, stored, names = named_images(dataset, root, images)
    network = classifier or default_classifier(dataset, tuple(given.shape[1:]))
    model = load_classifier(network).to(place)
    model.check_image_shape(tuple(given.shape[1:]), network)
    labels = None if bool((stored == UNLABELLED).all()) else stored.to(place)
    if labels is not None:
        check_classes(dataset, model.config.classes)
    target = Defended(model, defences, views=views) if defences or views != "one" else model
    judges = Judges(target, density_of(None, tuple(given.shape[1:])), class_names(network)) if grids else Judges()

    def draw(result: AttackResult, temporary: Path) -> None:
        words = [name, *([] if bound is None else [f"eps {bound}"])]
        stages = [("given", [], given[:SHOWN].to(place)), ("attacked", words, result.images[:SHOWN].to(place))]
        write_grid(temporary, stages, judges, None if labels is None else labels[:SHOWN])

    result = attack_to_file(
        chosen,
        target,
        given.to(place),
        labels,
        out,
        eps=bound,
        seed=seed,
        names=None if names is None else [Path(each).name for each in names],
        beside=dict.fromkeys(grids, draw),
        force=force,
        progress=not quiet,
    )
    facts = summary(result, model, given.to(place), labels, defended=target is not model)
    if as_json:
        print_json({**facts, "files": [out, labels_path(out), *grids]})
    else:
        print("\n".join([str(result), *describe(facts)]))


def summary(
    result: AttackResult, classifier: nn.Module, images: Tensor, labels: Tensor | None, *, defended: bool
) -> dict[str, Any]:
    """What an attack came to, JSON-able. images: before the attack. labels: None where nobody knows them.

    ``misclassified``: rates in [0, 1] by stage. ``accuracy``, where there are labels: in [0, 1] of the clean and
    of the attacked images, ``undefended`` and, if there are defences or views, ``defended``. ``images_per_second``: of
    the attack itself. ``queries`` and ``gradients``: the means per image, where the attack counts them.
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

    ValueError for text without '=', for a name that is no attack or no option of it, and for one that is there twice.
    """
    from ..attacks import find_attack
    from ..defences.named import parse_settings

    return dict(parse_settings(given, list(find_attack(name).options)))
