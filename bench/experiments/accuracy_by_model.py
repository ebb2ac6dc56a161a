"""How the accuracy of purified images grows with the density model: bits/dim against accuracy over several models.

    python bench/experiments/accuracy_by_model.py cifar10 FILE... --root DIR --work FOLDER

The first test images, clean and under BIM of eps 8 against the shipped ResNet-62 alone, purified by each model with the
paper's eps. FILE: models of the same data set, besides the shipped one; earlier ones are in the repository's history
(git show COMMIT:pxfast/assets/cifar10.safetensors). What is finished is kept in FOLDER, where a killed run goes on.
Writes bench/results/accuracy-by-model-NAME.json and docs/accuracy-by-model-NAME.png, with another number of --images
both to FOLDER; prints the table of docs/results.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib import rc_context

import pxfast
from pxfast.attacks import BIM
from pxfast.base.files import whole_file
from pxfast.base.machine import processor_name
from pxfast.base.progress import progress_of
from pxfast.classifiers import load_classifier
from pxfast.data.datasets import DATASETS, load_dataset
from pxfast.defences import Defended
from pxfast.defences.weights import classifier_key
from pxfast.engines.cpu import isa_of
from pxfast.evaluation.figures import pictures
from pxfast.evaluation.judge import Job, Judge
from pxfast.pixelcnn.fingerprint import model_fingerprint
from pxfast.tensors.store import Store

ROOT = Path(__file__).resolve().parents[2]
NAME = "bench/experiments/accuracy_by_model.py"
IMAGES = 1000  # of which bench/results are
EPS = 8  # of the attack
PURIFIERS = {"cifar10": 16, "fashion-mnist": 32}
CLEAN, BLIND = "Clean", "BIM"


def judged(dataset: str, files: list[str], root: Path, work: Path, images: int, threads: int) -> list[dict[str, Any]]:
    """A row for every model, the worst by bits/dim first; accuracies in %."""
    given, labels = load_dataset(dataset, root, train=False)
    classifier = load_classifier(dataset)
    judge = Judge(Store(work / "store"), given[:images], labels[:images], EPS, 0, 1, 64)
    bare = judge.surrogate(classifier)
    models = [pxfast.load(each) for each in (*files, dataset)]
    rows = []
    with progress_of(judge.work(images, 1) * len(models), shown=True) as judge.bar:
        for model in models:
            target = judge.target(
                Defended(classifier, [pxfast.Purifier(PURIFIERS[dataset], model=model, threads=threads)])
            )
            scores, _ = judge.row(target, [Job(BLIND, BIM(), bare)])
            found = {score.attack: 100 * score.majority / score.images for score in scores}
            rows.append(
                {
                    "filters": model.config.filters,
                    "resnets": model.config.resnets,
                    "bits/dim": model.notes["test_bits_per_dim"],
                    "weights": model_fingerprint(model),
                    "accuracy": {name: found[name] for name in (CLEAN, BLIND)},
                }
            )
    return sorted(rows, key=lambda row: -float(row["bits/dim"]))


def table(rows: list[dict[str, Any]]) -> list[str]:
    """As a table of Markdown."""
    lines = [
        f"| filters | resnets | test bits/dim | clean, purified | {BLIND}, purified |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = " | ".join(f"{row['accuracy'][each]:.1f}" for each in (CLEAN, BLIND))
        lines.append(f"| {row['filters']} | {row['resnets']} | {row['bits/dim']:.3f} | {cells} |")
    return lines


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against bits/dim, better models to the right."""
    with rc_context(pictures.STYLE):
        figure = pictures.new_figure(4.2, 3.0)
        axes = figure.subplots()
        x = [row["bits/dim"] for row in rows]
        for attack, filled in ((CLEAN, "none"), (BLIND, "full")):
            y = [row["accuracy"][attack] for row in rows]
            axes.plot(x, y, "o-", fillstyle=filled, color="black", label=f"{attack}, purified", linewidth=0.8)
        axes.invert_xaxis()
        axes.set_xlabel("bits/dim of the test images")
        axes.set_ylabel("accuracy, %")
        axes.set_ylim(0, 100)
        pictures.legend_above(figure, axes, 2)
    pictures.save_picture(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted(PURIFIERS))
    parser.add_argument("files", nargs="*", help="models besides the shipped one")
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder")
    parser.add_argument("--work", type=Path, required=True, help="where what is finished is kept")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    dataset: str = arguments.dataset
    rows = judged(dataset, arguments.files, arguments.root, arguments.work, arguments.images, arguments.threads)
    result = {
        "script": NAME,
        "data": f"the first {arguments.images} test images of {dataset}",
        "classifier": classifier_key(load_classifier(dataset), DATASETS[dataset]),
        "attack": f"BIM, eps {EPS}, on the classifier alone",
        "eps of the purifier": PURIFIERS[dataset],
        "machine": {"cpu": processor_name(), "isa": isa_of(), "threads": arguments.threads},
        "models": rows,
    }
    whole, name = arguments.images == IMAGES, f"accuracy-by-model-{dataset}"
    with whole_file((ROOT / "bench" / "results" if whole else arguments.work) / f"{name}.json") as path:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(rows, (ROOT / "docs" if whole else arguments.work) / f"{name}.png")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
