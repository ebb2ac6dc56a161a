"""Drawing an evaluation's figures, and writing them with words and numbers for the report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
from torch import Tensor

from ..preparation import Prepared
from ..results import Figure, figure_path, write_figure
from ..specification import RowSpecification, TableSpecification
from . import attack_pictures, pictures
from .density import summary
from .kinds import Kind
from .series import DensityMeasurements

PAPER = "Song et al., PixelDefend, ICLR 2018"
SHOWN = 48  # images in a grid


def draw(
    specification: TableSpecification,
    prepared: Prepared,
    measured: DensityMeasurements,
    kinds: list[Kind],
    out: str | os.PathLike[str],
) -> list[Path]:
    """Draw what was measured; every figure of the paper that pxfast can make."""
    dataset, labels = Path(specification.dataset).name, prepared.labels
    title, facts = measured.settings["data set"], measured.settings
    cifar = dataset != "fashion-mnist"
    numbers = {each["name"]: each for each in summary(measured)["series"]}
    shown = next((kind for kind in kinds if kind.name == "fgsm"), kinds[-1])
    bound = "" if facts["attack eps"] is None else f" with eps {facts['attack eps']}"
    purification = f"purification with eps {facts['purification eps']}"
    of_images = f"{facts['images']} test images of {title}, attacked{bound}; {purification}."
    words = "; ".join(
        f"{pictures.title_of(name)}: {each['mean bits/dim']:.2f}, {each['mean bits/dim, purified']:.2f} purified"
        for name, each in numbers.items()
    )
    areas = "; ".join(
        f"{pictures.title_of(name)}: {each['AUC']:.3f}, {each['AUC, purified']:.3f} purified"
        for name, each in numbers.items()
    )

    def error(found: Tensor) -> float:
        return float((found != labels).double().mean())

    errors = {kind.name: (error(kind.labels[0]), error(kind.labels[1])) for kind in kinds}
    written = [
        save_figure(
            out,
            f"{dataset}-images",
            attack_pictures.draw_images(shown.given[:SHOWN], shown.purified[:SHOWN], shown.name),
            title=f"{title}: attacked and purified images",
            caption=f"Above: test images attacked by {pictures.title_of(shown.name)}{bound}. Below: the same images "
            f"after {purification}.",
            where="Figure 11" if cifar else "Figure 10",
            alt=f"A grid of attacked images of {title}, noisy, and the same images purified, less so.",
            dataset=dataset,
            facts=facts,
            numbers={},
        ),
        save_figure(
            out,
            f"{dataset}-bits-per-dim",
            pictures.draw_bits_per_dim(measured),
            title=f"{title}: bits/dim by attack",
            caption=f"Histograms of bits/dim: the lower, the likelier under the density model. {of_images}",
            where="Figure 2 (a)",
            alt=f"Histograms of bits/dim, a panel for each attack. Means: {words}.",
            dataset=dataset,
            facts=facts,
            numbers={
                name: {key: value for key, value in each.items() if key != "name"} for name, each in numbers.items()
            },
        ),
        save_figure(
            out,
            f"{dataset}-errors",
            attack_pictures.draw_errors(errors, len(prepared.images)),
            title=f"{title}: test errors by attack",
            caption=f"Errors of the classifier on images as given and purified. {of_images}",
            where="Figure 2 (b)",
            alt="Bars of test errors in %: "
            + "; ".join(
                f"{pictures.title_of(name)} {100 * before:.0f}, purified {100 * after:.0f}"
                for name, (before, after) in errors.items()
            ),
            dataset=dataset,
            facts=facts,
            numbers={name: {"error": before, "error, purified": after} for name, (before, after) in errors.items()},
        ),
        save_figure(
            out,
            f"{dataset}-p-values",
            pictures.draw_p_values(measured),
            title=f"{title}: p-values before and after purification",
            caption=f"P-values against {facts['training images']} training images, uniform for images like these. "
            f"{of_images}",
            where="Figures 3 and 7",
            alt="Histograms of p-values, a panel for each attack. Median p-values: "
            + "; ".join(
                f"{pictures.title_of(each.name)} {np.median(each.p_values):.3f}, purified "
                f"{np.median(each.purified_p_values):.3f}"
                for each in measured.series
            ),
            dataset=dataset,
            facts=facts,
            numbers={
                each.name: {
                    "median p-value": float(np.median(each.p_values)),
                    "median p-value, purified": float(np.median(each.purified_p_values)),
                }
                for each in measured.series
            },
        ),
        save_figure(
            out,
            f"{dataset}-roc",
            pictures.draw_roc(measured),
            title=f"{title}: detection by p-values",
            caption=f"ROC curves of telling images from {facts['training images']} training images, and the areas "
            f"under them. {of_images}",
            where="Figure 6",
            alt=f"ROC curves before and after purification. Areas under them: {areas}.",
            dataset=dataset,
            facts=facts,
            numbers={name: {key: each[key] for key in ("AUC", "AUC, purified")} for name, each in numbers.items()},
        ),
        save_figure(
            out,
            f"{dataset}-samples",
            pictures.draw_samples(measured),
            title=f"{title}: test images and samples",
            caption="Above: test images. Below: images drawn from the density model.",
            where="Figure 9" if cifar else "Figure 8",
            alt=f"A grid of test images of {title} and one of samples from the density model.",
            dataset=dataset,
            facts=facts,
            numbers={},
        ),
    ]
    if (example := draw_example(dataset, kinds, labels)) is not None:
        number, figure = example
        written.append(
            save_figure(
                out,
                f"{dataset}-example",
                figure,
                title=f"{title}: one image under every attack",
                caption=f"The first test image that the classifier knows, number {number}, as attacked{bound} and "
                f"after {purification}; below each what the classifier calls it.",
                where="Figures 1 and 4",
                alt="The same image under every attack, as given above and purified below.",
                dataset=dataset,
                facts={**facts, "image": number},
                numbers={},
            )
        )
    if (baseline := pictures.draw_baseline(measured)) is not None:
        means = {name: float(bits.mean()) for name, bits in measured.baseline.items()}
        starts = facts["L-BFGS-B starts"]
        written.append(
            save_figure(
                out,
                f"{dataset}-lbfgs",
                baseline,
                title=f"{title}: greedy decoding against L-BFGS-B",
                caption=f"Bits/dim of the first {len(measured.baseline['clean'])} test images: clean, attacked{bound}, "
                f"and purified in two ways; L-BFGS-B from {starts} random start{'' if starts == 1 else 's'} an image.",
                where="Figure 5",
                alt="Bits/dim of single images. Means: "
                + "; ".join(f"{name} {mean:.2f}" for name, mean in means.items()),
                dataset=dataset,
                facts=facts,
                numbers={"mean bits/dim": means},
            )
        )
    return written


def draw_example(dataset: str, kinds: list[Kind], labels: Tensor) -> tuple[int, matplotlib.figure.Figure] | None:
    """The number of the first image whose clean version is classified rightly, and its figure; None where none is."""
    known = (kinds[0].labels[0] == labels).nonzero()[:, 0]
    if not len(known):
        return None
    n = int(known[0])

    def called(found: Tensor) -> str:
        return attack_pictures.class_name(dataset, int(found[n]))

    names = {kind.name: (called(kind.labels[0]), called(kind.labels[1])) for kind in kinds}
    return n, attack_pictures.draw_example({kind.name: (kind.given[n], kind.purified[n]) for kind in kinds}, names)


def draw_violins(
    specification: TableSpecification,
    prepared: Prepared,
    kinds: list[Kind],
    row: RowSpecification,
    out: str | os.PathLike[str],
) -> Path:
    """Violins of bits/dim by attack, before purification."""
    bits = {kind.name: kind.bits()[0] for kind in kinds}
    medians = {name: float(np.median(values)) for name, values in bits.items()}
    return save_figure(
        out,
        f"{specification.name}-violins",
        attack_pictures.draw_violins(bits),
        title="Bits/dim by attack",
        caption=f"{len(prepared.images)} test images, clean and under the reproduction's ten attacks, which have no "
        "bound; the dotted line is the median of the clean ones.",
        where="Figure 2",
        alt="Violins of bits/dim. Medians: "
        + "; ".join(f"{pictures.title_of(name)} {median:.2f}" for name, median in medians.items()),
        dataset=Path(specification.dataset).name,
        facts={
            "data set": specification.dataset,
            "images": len(prepared.images),
            "density model": prepared.pipeline.context.density,
            "classifier": prepared.classifiers[row.name].key,
        },
        numbers={"median bits/dim": medians},
        source=specification.source["title"],
    )


def save_figure(
    out: str | os.PathLike[str],
    name: str,
    figure: matplotlib.figure.Figure,
    *,
    title: str,
    caption: str,
    where: str,
    alt: str,
    dataset: str,
    facts: dict[str, Any],
    numbers: dict[str, Any],
    source: str = PAPER,
) -> Path:
    """Write a figure's picture and then its description. Returns the latter's path."""
    description = figure_path(out, name)
    description.parent.mkdir(parents=True, exist_ok=True)
    picture = description.with_suffix(".png")
    pictures.save_picture(figure, picture)
    return write_figure(
        out,
        Figure(
            name=name,
            title=title,
            caption=caption,
            dataset=dataset,
            source={"title": source, "where": where},
            file=picture.name,
            alt=alt,
            settings=facts,
            numbers=numbers,
        ),
    )
