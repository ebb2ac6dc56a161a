"""Write the tables of accuracies in a document from the files of bench/results and the classifiers in the package.

    python bench/scripts/result_tables.py [--document docs/results.md]

A table stands between the lines `<!-- table: bench/results/NAME.json -->` and `<!-- end of table -->`, and is made anew
from that file, which `pxfast evaluate` has written as OUT/tables/NAME.json: our accuracies in % and the published ones
below, for each eps of the attack. A table of more columns than a screen is wide has the attacks as rows. A file
detectors-NAME.json is one of `pxfast figures detectors`. With `<!-- table: classifiers -->` the table is what the
classifiers' files record.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import detector_tables

from pxfast.base.files import whole_file
from pxfast.classifiers.vgg import VGG
from pxfast.classifiers.weights import SHIPPED, load_classifier, read_notes, runs_in
from pxfast.evaluation.results import Cell, Table, read_table
from pxfast.evaluation.specification import load_table

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"(<!-- table: (classifiers|bench/results/[\w.-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
BATCH = 128  # images of a step, of every classifier
WIDEST = 8  # columns; a table with more is turned
PAPER = {"cifar10": "table2", "fashion-mnist": "table1"}  # where the paper has the classifiers of a data set


def shown(cells: Sequence[Cell], value: Callable[[Cell], float | None]) -> str:
    """A column's numbers in a row, by eps."""
    numbers = [value(cell) for cell in cells]
    return " / ".join("" if number is None else f"{number:.0f}" for number in numbers) if any(cells) else ""


def sides(cell: Cell) -> tuple[float, float]:
    """How far a cell's interval reaches to either side of its accuracy."""
    return cell.accuracy - cell.interval[0], cell.interval[1] - cell.accuracy


def markdown(table: Table) -> str:
    """The rows that were computed, without columns that were not, and what they are of."""
    by_place = {
        (row.name, column.name): [cell for cell in table.cells if (cell.row, cell.column) == (row.name, column.name)]
        for row in table.rows
        for column in table.columns
    }
    columns = [column for column in table.columns if any(by_place[row.name, column.name] for row in table.rows)]
    rows = [["", *(column.label for column in columns)]]
    for row in table.rows:
        found = [by_place[row.name, column.name] for column in columns]
        if any(found):
            ours = [shown(cells, lambda cell: 100 * cell.accuracy) for cells in found]
            rows.append([f"{row.network}, {row.technique}", *ours])
        if any(cell.published is not None for cells in found for cell in cells):
            rows.append(["published", *(shown(cells, lambda cell: cell.published) for cells in found)])
    if len(columns) > WIDEST:
        rows = [list(turned) for turned in zip(*rows, strict=True)]
    heads, *others = (f"| {' | '.join(row)} |" for row in rows)
    lines = [heads.replace("|  |", "| |", 1), f"|---|{'---:|' * (len(rows[0]) - 1)}", *others]
    eps = sorted({cell.eps for cell in table.cells if cell.eps is not None})
    widest = max(side for cell in table.cells for side in sides(cell))
    bounds = f"{', '.join(map(str, eps[:-1]))} and {eps[-1]}" if len(eps) > 1 else "".join(map(str, eps))
    beginning = f"Eps {bounds}, " if eps else ""
    intervals = f"95 % intervals of at most {math.ceil(1000 * widest) / 10:.1f} points to either side"
    return "\n".join([*lines, "", f"{beginning}{table.images:,} test images, {intervals}; {table.machine['cpu']}."])


def kind_of(training: dict[str, Any]) -> str:
    """What a classifier was trained for: its defence, what it stands behind, or nothing of the kind."""
    defence: str = training.get("defence", "none")
    return training.get("behind") or ("normal" if defence == "none" else defence)


def technique(kind: str) -> str:
    """A kind of training without its settings."""
    return kind.partition(":")[0]


def classifiers() -> str:
    """The classifiers in the package: how they were trained, and their accuracy on all test images."""
    lines = [
        f"| name | training | accuracy | the paper's | steps of {BATCH} images | file, MB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, path in SHIPPED.items():
        notes = read_notes(path)
        dataset, training = notes["dataset"], notes["training"]
        kind = kind_of(training)
        architecture = "vgg16" if isinstance(load_classifier(path), VGG) else "resnet62"
        published = next(
            (
                f"{row.published['clean'][0]} %"
                for row in load_table(PAPER[dataset]).rows
                if (row.architecture, row.training) == (architecture, kind) and not row.defences
            ),
            "",
        )
        runs = runs_in(notes)
        if any(run["training"]["batch_size"] != BATCH for run in runs):
            raise ValueError(f"{path}: the table's heading says steps of {BATCH} images")
        steps = sum(run["steps"] for run in runs if technique(kind_of(run["training"])) == technique(kind))
        others = {start for run in runs if (start := run["training"].get("start")) not in (None, dataset, name)}
        of = kind
        if others:
            of += f", from {' and '.join(f'`{other}`' for other in sorted(others))}"
        elif any(run["training"].get("start") == dataset for run in runs):
            of += ", from the normal one"
        lines.append(
            f"| `{name}` | {of} | {100 * notes['test_accuracy']:.2f} % | {published} "
            f"| {steps:,} | {path.stat().st_size / 1e6:.2f} |"
        )
    return "\n".join(lines)


def renewed(text: str) -> str:
    """The document with its tables made anew. FileNotFoundError or ValueError where a file is missing or is none."""

    def block(found: re.Match[str]) -> str:
        path = ROOT / found[2]
        if found[2] == "classifiers":
            table = classifiers()
        elif path.name.startswith("detectors-"):
            table = detector_tables.markdown(path)
        else:
            table = markdown(read_table(path))
        return f"{found[1]}\n{table}\n\n{found[3]}"

    return BLOCK.sub(block, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "results.md")
    document: Path = parser.parse_args().document
    text = renewed(document.read_text(encoding="utf-8"))
    with whole_file(document) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
