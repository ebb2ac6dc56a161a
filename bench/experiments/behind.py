"""What a classifier gains from having been trained behind the purifier: its table beside the unmodified classifier's.

    pxfast train-classifier cifar10 resnet62 --root DIR --out FILE --behind purifier:eps=16 --start cifar10 \\
        --behind-images 20000 --epochs 3 --learning-rate 0.02
    python bench/experiments/behind.py cifar10 FILE --root DIR --work FOLDER

Both classifiers, without a defence and behind the purifier of the paper's eps, on the first test images, by
`pxfast.benchmark`. All attacks but BPDA know the row's classifier alone. What is finished is kept in FOLDER, where a
killed run goes on. Writes bench/results/behind-NAME.json; prints the table of docs/results.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pxfast
from pxfast.base.files import whole_file
from pxfast.base.machine import processor_name
from pxfast.classifiers import load_classifier
from pxfast.classifiers.weights import read_notes
from pxfast.engines.cpu import isa_of
from pxfast.evaluation import BenchmarkTable
from pxfast.pixelcnn.fingerprint import model_fingerprint
from pxfast.pixelcnn.shipped import load

ROOT = Path(__file__).resolve().parents[2]
NAME = "bench/experiments/behind.py"
EPS = 8  # of the attacks
PURIFY_EPS = {"cifar10": 16, "fashion-mnist": 32}  # the paper's
ATTACKS = ("rand", "fgsm", "bim", "deepfool", "cw-linf", "bpda")


def cells(table: BenchmarkTable) -> dict[str, dict[str, Any]]:
    """Accuracies in [0, 1] with their intervals, by row and column."""
    return {
        row.name: {
            cell.column: {"accuracy": cell.accuracy, "interval": cell.interval}
            for cell in table.cells
            if cell.row == row.name
        }
        for row in table.rows
    }


def lines(found: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """As a table of Markdown, in %."""
    columns = ("clean", *ATTACKS)
    result = [f"| classifier | defence | {' | '.join(columns)} |", f"|---|---|{'---:|' * len(columns)}"]
    for classifier, rows in found.items():
        for row, given in rows.items():
            shown = (f"{100 * given[name]['accuracy']:.1f}" if name in given else "" for name in columns)
            result.append(f"| {classifier} | {row} | {' | '.join(shown)} |")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted(PURIFY_EPS))
    parser.add_argument("classifier", type=Path, help="the file of the one that was trained behind the purifier")
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder")
    parser.add_argument("--work", type=Path, required=True, help="where what is finished is kept")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    dataset: str = arguments.dataset
    found = {}
    for title, source in (("unmodified", dataset), ("trained behind", arguments.classifier)):
        table = pxfast.benchmark(
            load_classifier(source),
            dataset,
            out=arguments.work,
            root=arguments.root,
            defences=["none", f"pixeldefend:eps={PURIFY_EPS[dataset]}"],
            attacks=ATTACKS,
            eps=EPS,
            images=arguments.images,
            name=title,
            threads=arguments.threads,
        )
        found[title] = cells(table)
    result = {
        "script": NAME,
        "data": f"the first {arguments.images} test images of {dataset}",
        "eps of the attacks": EPS,
        "trained behind": read_notes(arguments.classifier),
        "density model": model_fingerprint(load(dataset)),
        "machine": {"cpu": processor_name(), "isa": isa_of(), "threads": arguments.threads},
        "cells": found,
    }
    with whole_file(ROOT / "bench" / "results" / f"behind-{dataset}.json") as path:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines(found)))


if __name__ == "__main__":
    main()
