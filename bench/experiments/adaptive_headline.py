"""What BPDA leaves of PixelDefend: accuracy, and the images/s of the whole attack.

    python bench/experiments/adaptive_headline.py --root DIR --classifiers DIR --images 128 --out DIR

Normal and FGSM-trained ResNet-62 behind the purifier of the paper's eps (16 for CIFAR-10, 32 for Fashion-MNIST), under
BPDA of 100 steps with eps 8 on the first test images. The normal classifiers are the shipped ones, the others
DATASET-resnet62-fgsm.safetensors in the folder --classifiers, as `pxfast train-classifier --defence fgsm` makes them.
A killed run that is started again goes on: attacked images and finished rows are kept in --out. Rows of other settings
of the attack or of the purifier are refused: they need another --out. An image is attacked
until it is misclassified or 100 steps are over; the rates are by the clock, and by the processor's own time, which
other work on the machine does not stretch.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pxfast
from pxfast.attacks import BPDA, attack_to_file
from pxfast.attacks.resumable import labels_path
from pxfast.base.files import file_digest, whole_file
from pxfast.base.machine import processor_name
from pxfast.classifiers import load_classifier, predict
from pxfast.classifiers.weights import SHIPPED
from pxfast.data.datasets import DATASETS, load_dataset
from pxfast.defences import Defended
from pxfast.engines.cpu import isa_of
from pxfast.engines.info import collect
from pxfast.evaluation.results import wilson_interval
from pxfast.pixelcnn.fingerprint import model_fingerprint

ATTACK_EPS, STEPS = 8, 100
PURIFY_EPS = {"cifar10": 16, "fashion-mnist": 32}  # the paper's
SETTINGS = {"attack": "bpda", "eps": ATTACK_EPS, "steps": STEPS, "purify_eps": PURIFY_EPS}  # of all rows of a file


def accuracy(right: torch.Tensor) -> dict[str, Any]:
    """A row's cell: of bool (N,), which images are classified rightly."""
    correct, images = int(right.sum()), len(right)
    return {"correct": correct, "accuracy": correct / images, "interval": wilson_interval(correct, images)}


def measure(dataset: str, training: str, classifier_path: str, root: Path, count: int, out: Path) -> dict[str, Any]:
    """One row, JSON-able: accuracies in [0, 1], rates of the whole attack."""
    images, labels = load_dataset(dataset, root, train=False)
    images, labels = images[:count], labels[:count]
    model, classifier = pxfast.load(dataset), load_classifier(classifier_path)
    purifier = pxfast.Purifier(PURIFY_EPS[dataset], model=model)
    defended = Defended(classifier, [purifier])
    purifier(images[:1])  # packs the weights, once per process
    started = time.process_time()
    file = out / f"{dataset}-{training}.npy"
    begun = file.with_suffix(".npy.parts").exists()
    result = attack_to_file(
        BPDA(steps=STEPS), defended, images, labels, file, eps=ATTACK_EPS, force=True, progress=True
    )
    processor = None if begun else time.process_time() - started
    assert int((result.images.int() - images.int()).abs().max()) <= ATTACK_EPS
    assert np.load(labels_path(file)).tolist() == labels.tolist()
    return {
        "dataset": dataset,
        "training": training,
        "images": len(images),
        "accuracy": {
            "clean, undefended": accuracy(predict(classifier, images) == labels),
            "clean, purified": accuracy(~result.clean),
            "attacked, undefended": accuracy(predict(classifier, result.images) == labels),
            "attacked, purified": accuracy(~result.rounded),
        },
        "queries_per_image": float(result.queries.double().mean()),
        "seconds": result.seconds,
        "images_per_second": len(images) / result.seconds,
        "images_per_hour": 3600 * len(images) / result.seconds,
        "queries_per_second": int(result.queries.sum()) / result.seconds,
        "processor_seconds": processor,
        "images_per_processor_second": None if processor is None else len(images) / processor,
        "threads": torch.get_num_threads(),
        "machine": {"processor": processor_name(), "isa": isa_of()},  # the file's installation is the last row's
        "density_model": model_fingerprint(model),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    names = list(rows[0]["accuracy"])
    rates = ["steps an image", "images/s", "images an hour", "images per processor second"]
    header = ["data set", "ResNet-62", "images", *names, *rates]
    lines = ["| " + " | ".join(header) + " |", "|---|---|" + "---:|" * (len(header) - 2)]
    for row in rows:
        shown = []
        for name in names:
            cell = row["accuracy"][name]
            low, high = (100 * end for end in cell["interval"])
            shown.append(f"{100 * cell['accuracy']:.1f} % ({low:.0f} to {high:.0f})")
        by_processor = row["images_per_processor_second"]
        shown += [f"{row['queries_per_image']:.1f}", f"{row['images_per_second']:.2f}"]
        shown += [f"{row['images_per_hour']:.0f}", "" if by_processor is None else f"{by_processor:.2f}"]
        lines.append("| " + " | ".join([row["dataset"], row["training"], str(row["images"]), *shown]) + " |")
    return "\n".join(lines)


def finished_rows(file: Path) -> list[dict[str, Any]]:
    """The rows that an earlier run has left, if any. SystemExit where they are of other settings."""
    if not file.exists():
        return []
    record = json.loads(file.read_text())
    if record["settings"] != SETTINGS:
        raise SystemExit(f"{file} has rows of {record['settings']}, not of {SETTINGS}: take another --out")
    rows: list[dict[str, Any]] = record["rows"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder")
    parser.add_argument(
        "--classifiers", type=Path, help="folder of the FGSM-trained ones; without it they are left out"
    )
    parser.add_argument("--dataset", nargs="+", default=list(PURIFY_EPS), choices=sorted(DATASETS))
    parser.add_argument("--images", type=int, default=128, help="how many test images (default 128)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, headline.json among them")
    arguments = parser.parse_args()
    if arguments.images < 1:
        parser.error(f"--images must be positive, got {arguments.images}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "headline.json"
    rows = finished_rows(file)
    shown: list[dict[str, Any]] = []  # of these networks; others are kept in the file
    for dataset in arguments.dataset:
        sources = {"normal": dataset}
        if arguments.classifiers is not None:
            sources["fgsm"] = str(arguments.classifiers / f"{dataset}-resnet62-fgsm.safetensors")
        for training, source in sources.items():
            wanted = {
                "dataset": dataset,
                "training": training,
                "images": arguments.images,
                "density_model": model_fingerprint(pxfast.load(dataset)),
                "classifier": file_digest(SHIPPED.path(source)),
            }
            found = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
            shown += found
            if found:
                continue
            measured = measure(dataset, training, source, arguments.root, arguments.images, arguments.out)
            rows.append({**measured, **wanted})
            shown.append(rows[-1])
            record = {"settings": SETTINGS, "installation": collect(), "rows": rows}
            with whole_file(file) as temporary:
                temporary.write_text(json.dumps(record, indent=2) + "\n")
    print(table(shown))


if __name__ == "__main__":
    main()
