"""``pxfast certify``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    ClassifierOption,
    DatasetArgument,
    DeviceOption,
    DownloadOption,
    EngineOption,
    ForceOption,
    JsonOption,
    KeepOption,
    ModelOption,
    OptionalImagesOption,
    OutOption,
    PrecisionOption,
    QuietOption,
    RootOption,
    SeedOption,
    ThreadsOption,
    ViewsOption,
    among,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..certification import Certificates
    from .rows import Row

PICTURES = (".png", ".svg")


def estimate(lower: Tensor, upper: Tensor) -> Tensor:
    """A guess in place of the estimate, until it is fitted."""
    from ..pixeldefend.cells import midpoints

    return midpoints(lower, upper)


class Named:
    """Images (N, C, H, W) as a collection; their names are their files', or their numbers in a data set."""

    def __init__(self, images: Tensor, names: list[str]) -> None:
        self.images = images
        self.names: list[str] = names

    def batches(self, size: int) -> Iterator[Tensor]:
        yield from self.images.split(size)


def certify(
    dataset: DatasetArgument,
    out: OutOption,
    norm: Annotated[
        str, typer.Option(help="l1: deterministic; l2: by random noise.", autocompletion=among("l1", "l2"))
    ] = "l1",
    purifier: Annotated[
        str | None,
        typer.Option(
            "--guess",
            help="l1: pixeldefend (default), estimate, midpoints or sample; l2: none (default), adp or pixeldefend.",
            autocompletion=among("pixeldefend", "estimate", "midpoints", "sample", "none", "adp"),
        ),
    ] = None,
    near_estimate: Annotated[
        bool, typer.Option(help="l1: pixeldefend and sample choose near the estimate from the cells on all sides.")
    ] = False,
    width: Annotated[
        int | None, typer.Option(help="l1: of a cell in grey levels; so many votes an image; 32 by default.")
    ] = None,
    dither: Annotated[
        str | None,
        typer.Option(
            help="l1: where cells begin: lattice (by default) or random (by --seed).",
            autocompletion=among("lattice", "random"),
        ),
    ] = None,
    sigma: Annotated[
        float | None, typer.Option(help="l2: the noise's deviation on images in [0, 1]; 0.25 by default.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="l2: noisy copies that are counted; 1000 by default, 100000 in the paper.")
    ] = None,
    first_samples: Annotated[
        int | None, typer.Option(help="l2: noisy copies that choose the label; 100 by default.")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option("--failure", help="l2: alpha, the probability that a radius is too large; 0.001 by default."),
    ] = None,
    root: RootOption = None,
    download: DownloadOption = False,
    images: OptionalImagesOption = None,
    classifier: ClassifierOption = None,
    views: ViewsOption = "one",
    model: ModelOption = None,
    curve: Annotated[Path | None, typer.Option(help="A picture of accuracy against radius, .png or .svg.")] = None,
    page: Annotated[Path | None, typer.Option(help="An HTML page with the table and the picture.")] = None,
    keep: KeepOption = None,
    seed: SeedOption = 0,
    engine: EngineOption = "auto",
    precision: PrecisionOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    force: ForceOption = False,
) -> None:
    """Certify test images: radii within which no attack whatever alters a smoothed classifier's label.

    Of a folder that has no images in train/ and test/ all are certified, whatever a classifier was trained on.
    An estimate is fitted to training images first; of such a folder to nine tenths of all.
    OUT is a .json file of all that was found, or a .tsv file with a line per image. A killed run goes on. The table of
    certified accuracies is printed.
    """
    from ..adp.files import SHIPPED as SCORE_NETWORKS
    from ..base.checks import check_choice, check_precision
    from ..base.files import check_apart
    from ..base.machine import parse_device, torch_instructions
    from ..base.records import shown
    from ..base.streams import shown_name
    from ..certification import Estimate, certify_l2
    from ..certification import certify as certify_l1
    from ..certification.guesses import DENSITY
    from ..certification.votes import each_tried_once
    from ..classifiers import load_classifier
    from ..data.datasets import UNLABELLED, check_classes, fetch_dataset, load_dataset, named_images
    from ..defences.weights import classifier_key
    from ..pixelcnn.shipped import model_for
    from ..tensors.store import digest
    from .attack import default_classifier
    from .machine import engine_on, use_threads
    from .output import print_json
    from .rows import check_rows_output, rows_to

    guesses = {"l1": ("pixeldefend", "estimate", "midpoints", "sample"), "l2": ("none", "adp", "pixeldefend")}
    check_choice("norm", norm, tuple(guesses))
    if purifier is not None:
        check_choice("guess", purifier, guesses[norm])
    check_precision(precision)
    if curve is not None and curve.suffix.lower() not in PICTURES:
        raise ValueError(f"{curve}: this output must have the suffix {' or '.join(PICTURES)}")
    if page is not None and page.suffix.lower() != ".html":
        raise ValueError(f"{page}: this output must have the suffix .html")
    own: dict[str, dict[str, Any]] = {
        "l1": {"width": width, "dither": dither, "keep": keep, "near_estimate": near_estimate or None},
        "l2": {"sigma": sigma, "samples": samples, "first_samples": first_samples, "alpha": alpha},
    }
    for of, values in own.items():
        for name, value in values.items():
            if of != norm and value is not None:
                option = "failure" if name == "alpha" else name.replace("_", "-")
                raise ValueError(f"--{option} is for --norm {of}, got --norm {norm}")
    if near_estimate and purifier not in (None, *DENSITY):
        raise ValueError(f"--near-estimate is for --guess {' and '.join(DENSITY)}, got {shown(purifier)}")
    beside = [path for path in (curve, page) if path is not None]
    check_apart([path for path in (out, *beside, keep) if path is not None])
    check_rows_output(out, *beside, force=force)
    use_threads(threads)
    place, chosen = parse_device(device), engine_on(device, engine)
    if download:
        fetch_dataset(dataset, root, progress=not quiet)
    given, labels, known = named_images(dataset, root, images)
    names = list(map(str, range(len(given)))) if known is None else known
    if bool((labels == UNLABELLED).any()):
        raise ValueError(f"{dataset} has images without labels, and certified accuracy needs them")
    name = classifier or default_classifier(dataset, tuple(given.shape[1:]))
    network = load_classifier(name).to(place).eval()
    network.check_image_shape(tuple(given.shape[1:]), name)
    check_classes(dataset, network.config.classes)
    options: dict[str, Any] = {
        "model": model,
        "views": views,
        "seed": seed,
        "engine": chosen,
        "precision": precision,
        "threads": threads,
    }
    given_options = {"purifier": purifier, **own[norm], "near_estimate": None}
    if purifier == "estimate":
        given_options["purifier"] = estimate
    options |= {name: value for name, value in given_options.items() if value is not None}
    method = certify_l1 if norm == "l1" else certify_l2
    settings = method(network, given[:0], [], **options).settings  # a wrong option is named before any work
    if near_estimate or purifier == "estimate":
        training, _ = load_dataset(dataset, root, train=True)
        fitted = Estimate.fit(training, width=settings["width"], dither=settings["dither"], seed=seed)
        options["near" if near_estimate else "purifier"] = fitted
        settings = method(network, given[:0], [], **options).settings

    # read once, since a training may replace the file meanwhile
    if settings["purifier"] in DENSITY:
        options["model"] = model_for(model, tuple(given.shape[1:]))
    elif settings["purifier"] == "adp":
        options["model"] = SCORE_NETWORKS.for_images(model, tuple(given.shape[1:]))

    def measure(grid: Tensor) -> list[Row]:
        nobody = [0] * len(grid)  # the rows do not depend on the labels
        found = method(network, grid.to(place), nobody, **options)
        columns = (found.predictions.tolist(), found.radii.tolist(), found.counts.tolist())
        return [[label, radius, *counts] for label, radius, counts in zip(*columns, strict=True)]

    shape = tuple(given.shape[1:])
    networks = {
        "classifier": classifier_key(network, shape),
        "model": _density(settings["purifier"], options["model"], shape),
    }

    def depends_on() -> dict[str, Any]:
        return {
            "command": "certify",
            "images": digest(given),
            **networks,
            "device": place.type,
            "processor": torch_instructions(place.type),
            "libraries": _libraries(),
            **settings,
        }

    together = max(1, 128 // settings["width"]) if norm == "l1" else 1
    with each_tried_once(), rows_to(out, depends_on, force=force, beside=beside) as rows:
        found = rows.of([Named(given, names)], measure, batch_size=together, progress=not quiet)
        certificates = _joined(found, labels, norm, settings)
        document = _document(dataset, shown_name(name), networks, names, certificates)
        for path, temporary in zip(beside, rows.beside, strict=True):
            _write_beside(temporary, certificates, dataset, shown_name(name), picture=path is curve)
        rows.write(_lines(names, certificates), document)
    if as_json:
        print_json({**document, "images": len(labels), "files": [out, *beside]})
        return
    from ..evaluation.figures.certified import claim, table_lines

    count = f"{len(labels)} image{'' if len(labels) == 1 else 's'}"
    print("\n".join([*table_lines(certificates), f"{count}. {claim(certificates)}"]))


def _joined(rows: list[Row], labels: Tensor, norm: str, settings: dict[str, Any]) -> Certificates:
    import torch

    from ..certification import Certificates

    return Certificates(
        labels,
        torch.tensor([int(row[0]) for row in rows]),
        torch.tensor([float(row[1]) for row in rows], dtype=torch.float64),
        torch.tensor([[int(each) for each in row[2:]] for row in rows]),
        norm,
        settings,
    )


def _document(
    dataset: str, classifier: str, networks: dict[str, str | None], names: list[str], certificates: Certificates
) -> dict[str, Any]:
    """All that was found, JSON-able. networks: what tells the classifier and the purifier's model from others."""
    from ..base.machine import processor_name
    from ..base.version import __version__
    from ..evaluation.figures.certified import table_rows

    columns = (certificates.labels, certificates.predictions, certificates.radii, certificates.counts)
    each = zip(names, *(column.tolist() for column in columns), strict=True)
    return {
        "dataset": dataset,
        "classifier": {"name": classifier, "sha256": networks["classifier"]},
        "model": networks["model"],
        "settings": certificates.settings,
        "version": __version__,
        "machine": processor_name(),
        "accuracy": certificates.accuracy,
        "certified": table_rows(certificates),
        "images": [
            {"image": image, "label": label, "prediction": prediction, "radius": radius, "votes": votes}
            for image, label, prediction, radius, votes in each
        ],
    }


def _lines(names: list[str], certificates: Certificates) -> list[str]:
    from .rows import in_line

    columns = (certificates.labels, certificates.predictions, certificates.radii)
    rows = zip(names, *(column.tolist() for column in columns), strict=True)
    # in full: a rounded radius might be larger than the certified one
    each = ((name, label, prediction, repr(radius).removesuffix(".0")) for name, label, prediction, radius in rows)
    return [f"{in_line(name)}\t{label}\t{prediction}\t{radius}" for name, label, prediction, radius in each]


def _write_beside(path: Path, certificates: Certificates, dataset: str, classifier: str, *, picture: bool) -> None:
    from ..base.streams import shown_name
    from ..evaluation.figures import certified, pictures

    settings, known = certificates.settings, shown_name(dataset)
    name = f"{known}, {settings['purifier']}"
    if picture:
        pictures.save_picture(certified.draw_certified({name: certificates}), path)
        return
    facts = [
        ("data set", known),
        ("images", len(certificates.labels)),
        ("classifier", classifier),
        *settings.items(),
    ]
    path.write_text(certified.page_of(certificates, name, facts), encoding="utf-8")


def _density(purifier: str, model: Any, shape: tuple[int, ...]) -> str | None:
    """What tells a purifier's network from another; None where it has none."""
    if purifier in ("midpoints", "estimate", "none"):
        return None
    if purifier == "adp":
        from ..adp.files import SHIPPED
        from ..tensors.store import digest

        return digest(*SHIPPED.for_images(model, shape).state_dict().values())
    from ..pixelcnn.fingerprint import model_fingerprint
    from ..pixelcnn.shipped import model_for

    return model_fingerprint(model_for(model, shape))


def _libraries() -> dict[str, str]:
    import torch

    from ..base.version import __version__

    return {"pxfast": __version__, "torch": torch.__version__}
