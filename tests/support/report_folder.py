"""An output folder as `pxfast evaluate` leaves it, for tests of the report: its counts are random, and mean nothing."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
from support.helpers import bundled_images

from pxfast.data.image_files import write_png
from pxfast.data.image_grid import image_grid
from pxfast.evaluation.figures.pictures import new_figure
from pxfast.evaluation.results import Cell, Column, Figure, Row, Table, write_figure, write_table

SOURCE = {"title": "A publication that the tests made up", "where": "Table 1"}
ATTACKS = (("rand", "RAND"), ("fgsm", "FGSM"), ("bim", "BIM"), ("deepfool", "DeepFool"), ("cw_linf", "CW"))
TEN = ("gradient_sign", "gradient", "deepfool_l2", "gaussian_blur", "saliency_map", "uniform_noise")
TEN += ("salt_and_pepper", "lbfgs", "contrast_reduction", "iterative_gradient_sign")
DEFENCES = (
    ("ResNet", "Normal"),
    ("VGG", "Normal"),
    ("ResNet", "Adversarial FGSM"),
    ("ResNet", "Adversarial BIM"),
    ("ResNet", "Label smoothing"),
    ("ResNet", "Feature squeezing"),
    ("ResNet", "Adversarial FGSM + feature squeezing"),
    ("ResNet", "Normal + PixelDefend"),
    ("VGG", "Normal + PixelDefend"),
    ("ResNet", "Adversarial FGSM + PixelDefend"),
    ("ResNet", "Adversarial FGSM + adaptive PixelDefend"),
)


def random_cell(source: random.Random, row: Row, column: str, eps: int | None, images: int, published: bool) -> Cell:
    """A cell near its published value, which is random as well; purified rows are higher."""
    middle = source.uniform(0.5, 0.95) if "PixelDefend" in row.technique or column == "clean" else source.random() ** 2
    correct = min(images, max(0, round(images * (middle + source.gauss(0, 0.08)))))
    return Cell.counted(
        row.name,
        column,
        eps,
        correct,
        images,
        seconds=source.uniform(0.5, 90),
        published=float(round(100 * middle)) if published else None,
    )


def random_table(
    name: str,
    title: str,
    dataset: str,
    eps: tuple[int, ...],
    *,
    rows: tuple[tuple[str, str], ...] = DEFENCES,
    attacks: tuple[tuple[str, str], ...] = ATTACKS,
    images: int = 500,
    published: bool = True,
) -> Table:
    """A finished table of every attack at every eps (none: the attacks have none)."""
    source = random.Random(f"{name} {dataset}")
    listed = [Row(f"row-{i}", network, technique) for i, (network, technique) in enumerate(rows)]
    columns = [Column("clean", "Clean"), *(Column(key, label) for key, label in attacks)]
    cells = []
    for row in listed:
        cells.append(random_cell(source, row, "clean", None, images, published))
        for each in eps or (None,):
            found = [random_cell(source, row, key, each, images, published) for key, _ in attacks]
            cells += found
            if eps:
                worst = min(found, key=lambda cell: cell.correct)
                low = min((cell.published for cell in found if cell.published is not None), default=None)
                labels = dict(attacks)
                strongest = dataclasses.replace(
                    worst, column="strongest", published=low, seconds=None, notes=labels[worst.column]
                )
                cells.append(strongest)
    if eps:
        columns.append(Column("strongest", "Strongest attack"))
    models = [
        {
            "role": "density model",
            "name": dataset,
            "sha256": f"{source.getrandbits(256):064x}",
            "notes": {
                "test_bits_per_dim": 3.25,
                "test_images": 1000,
                "parts": [
                    {"steps": 120, "images_seen": 1920, "seconds": 95.0, "machine": "a processor"},
                    {"steps": 100, "images_seen": 1600, "seconds": 300.0, "machine": "a processor"},
                ],
            },
        },
        *(
            {
                "role": "classifier",
                "name": kind,
                "rows": [row.name for row in listed if row.name == f"row-{number}" or row.name == f"row-{number + 7}"],
                "sha256": f"{source.getrandbits(256):064x}",
                "notes": {
                    "test_accuracy": 0.875,
                    "test_images": 1000,
                    "steps": 400,
                    "seconds": 4000.0,
                    "training": {"optimiser": "muon", "learning_rate": 0.1, "horizontal_flips": True},
                },
            }
            for number, kind in enumerate(("ResNet normal", "VGG normal", "ResNet FGSM"))
        ),
    ]
    return Table(
        name,
        title,
        f"The fixture {name}: random counts, as a table of {dataset} might have them.",
        dataset,
        images,
        SOURCE,
        columns,
        listed,
        cells,
        models,
        {"attack eps": list(eps), "seed": 0, "attacks": {key: {"steps": 9} for key, _ in attacks},
         "defences": {row.name: [{"kind": "purifier"}] for row in listed if "+" in row.technique}},
        {"cpu": "a processor of the tests", "cores": 2, "gpu": None, "python": "3", "torch": "2", "pxfast": "0"},
        [{"what": "purify, eps 16", "images_per_second": 123.4, "images": 3 * images},
         {"what": "attack, cw_linf", "images_per_second": 0.567, "images": images}],
        True,
    )  # fmt: skip


def unfinished(table: Table, keep: int) -> Table:
    """The table after its first ``keep`` cells, with a row left out, a footnote and a disagreement in print."""
    rows = [
        dataclasses.replace(row, missing="no classifier trained with BIM examples: --no-train")
        if "BIM" in row.technique
        else row
        for row in table.rows
    ]
    out = {row.name for row in rows if row.missing}
    cells = [cell for cell in table.cells[:keep] if cell.row not in out]
    cells[1] = dataclasses.replace(
        cells[1], published_note="67 in the paper, 07 on its poster", notes="rounded before it was measured"
    )
    columns = [
        dataclasses.replace(c, note="at one confidence only") if c.name == "cw_linf" else c for c in table.columns
    ]
    return dataclasses.replace(table, rows=rows, cells=cells, columns=columns, finished=False)


def write_pictures(out: Path) -> None:
    """Two figures: a grid of real images as PNG, a histogram as SVG."""
    folder = out / "figures"
    folder.mkdir(parents=True)
    images = bundled_images(3)[:40]
    write_png(image_grid(images, 10, enlarge=2), folder / "grid.png")
    common = {"dataset": "cifar10", "source": SOURCE, "settings": {"images": 40, "attack_eps": 8}}
    write_figure(
        out,
        Figure(
            "grid",
            "Test images",
            "Forty real ones, without any change.",
            file="grid.png",
            alt="A grid of 40 small photographs",
            numbers={},
            **common,
        ),
    )
    figure = new_figure(6.4, 3.2)
    axes = figure.subplots()
    means = images.float().mean(dim=(1, 2, 3)).numpy()
    axes.hist(means, np.linspace(0, 255, 21), color="0.7", edgecolor="0.2")
    axes.set_xlabel("mean value")
    axes.set_ylabel("images")
    figure.savefig(folder / "means.svg")
    write_figure(
        out,
        Figure(
            "means",
            "Mean values of images",
            "The mean over all sub-pixels of each of forty images.",
            file="means.svg",
            alt="A histogram with one peak",
            numbers={"mean": float(means.mean()), "quartiles": np.quantile(means, (0.25, 0.5, 0.75)).tolist()},
            **common,
        ),
    )


def make_folder(out: Path) -> Path:
    """Two tables of the paper's form, one of them unfinished, the ten attacks', the adaptive one, and two figures."""
    table2 = random_table("table2", "CIFAR-10, PixelDefend and other defences", "cifar10", (2, 8, 16))
    write_table(out, unfinished(table2, len(table2.cells) - 24))
    write_table(out, random_table("table1", "Fashion-MNIST, PixelDefend and other defences", "fashion-mnist", (8, 25)))
    ten = tuple((name, name.replace("_", " ")) for name in TEN)
    rows = (("ResNet", "Normal"), ("ResNet", "Normal + PixelDefend"), ("VGG", "Normal"))
    reproduction = random_table(
        "reproduction", "The ten attacks of the reproduction", "cifar10", (), rows=rows, attacks=ten
    )
    left_out = [
        dataclasses.replace(row, missing="no such classifier") if row.network == "VGG" else row
        for row in reproduction.rows
    ]
    cells = [cell for cell in reproduction.cells if cell.row != "row-2"]
    write_table(out, dataclasses.replace(reproduction, rows=left_out, cells=cells))
    adaptive = random_table(
        "adaptive",
        "Attackers who know the purifier",
        "cifar10",
        (8,),
        rows=(("ResNet", "Normal + PixelDefend"),),
        attacks=(("bpda", "BPDA"), ("bpda_eot", "BPDA + EOT"), ("spsa", "SPSA")),
        images=100,
        published=False,
    )
    write_table(out, adaptive)
    write_pictures(out)
    return out
