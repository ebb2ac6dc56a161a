"""What purification does to attacked test images: bits/dim, accuracy and images/s.

    python bench/experiments/purify_attacked.py cifar10 --root DIR --images 256 --attack fgsm bim --json results.json

Takes the first images of the test set, the shipped density model and the shipped classifier; prints Markdown tables.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from torch import Tensor

import pxfast
from pxfast.attacks import PAPER, find_attack
from pxfast.base.files import output_files, refuse_existing
from pxfast.classifiers import accuracy, load_classifier
from pxfast.data.datasets import DATASETS, load_dataset
from pxfast.engines.info import collect
from pxfast.engines.registry import select

PURIFY_EPS = {"cifar10": 16, "fashion-mnist": 32}  # the paper's


def measure(
    dataset: str,
    root: Path,
    count: int,
    attacks: list[str],
    attack_eps: list[int],
    purify_eps: list[int],
    model_path: str,
    **settings: str,
) -> dict[str, Any]:
    """Everything the tables show, JSON-able; accuracies in [0, 1]."""
    images, labels = load_dataset(dataset, root, train=False)
    images, labels = images[:count], labels[:count]
    model, classifier = pxfast.load(model_path), load_classifier(dataset)

    def judge(x: Tensor) -> dict[str, float]:
        bits = pxfast.bits_per_dim(x, model=model)
        return {"bits_per_dim": float(bits.mean()), "accuracy": accuracy(classifier, x, labels)}

    inputs = {"clean": images}
    for name in attacks:
        for eps in attack_eps:
            inputs[f"{name}, eps {eps}"] = find_attack(name)(classifier, images, labels, eps)
    # packs the weights, once per process; kernels of a GPU may be compiled and captured for the size of the batch
    first = images if select(settings["engine"]).gpu else images[:1]
    pxfast.purify(first, purify_eps[0], model=model, **settings)
    rows = []
    for name, x in inputs.items():
        row: dict[str, Any] = {"images": name, "before": judge(x), "purified": {}}
        for eps in purify_eps:
            started = time.perf_counter()
            purified = pxfast.purify(x, eps, model=model, progress=True, **settings)
            seconds = time.perf_counter() - started
            largest = int((purified.int() - x.int()).abs().max())
            assert largest <= eps, f"a sub-pixel moved by {largest} > eps = {eps}"
            row["purified"][str(eps)] = judge(purified) | {"images_per_second": len(x) / seconds}
        rows.append(row)
    return {
        "dataset": dataset,
        "images": len(images),
        "settings": {"model": model_path, **settings},
        "installation": collect(),
        "rows": rows,
    }


def tables(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    purify_eps = list(results["rows"][0]["purified"])
    header = ["images", "before", *(f"purified, eps {eps}" for eps in purify_eps)]
    formats = {
        "Mean bits/dim": ("bits_per_dim", lambda v: f"{v:.3f}"),
        "Accuracy of the classifier": ("accuracy", lambda v: f"{100 * v:.1f} %"),
        "Images/s": ("images_per_second", lambda v: f"{v:.1f}"),
    }
    lines = []
    for title, (key, show) in formats.items():
        lines += [f"{title}, {results['images']} test images:", "", "| " + " | ".join(header) + " |"]
        lines.append("|---|" + "---:|" * (len(header) - 1))
        for row in results["rows"]:
            cells = [row["before"], *(row["purified"][eps] for eps in purify_eps)]
            shown = [show(c[key]) if key in c else "" for c in cells]
            lines.append("| " + " | ".join([row["images"], *shown]) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted(DATASETS))
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder")
    parser.add_argument("--images", type=int, default=256, help="how many test images (default 256)")
    parser.add_argument("--attack", nargs="+", default=["fgsm"], choices=[attack.name for attack in PAPER])
    parser.add_argument("--attack-eps", type=int, nargs="+", default=[8])
    parser.add_argument(
        "--purify-eps", type=int, nargs="+", help="by default the paper's: 16, and 32 for fashion-mnist"
    )
    parser.add_argument("--model", help="density model: a shipped one's name or a file; by default the data set's")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    arguments = parser.parse_args()
    if arguments.images < 1:
        parser.error(f"--images must be positive, got {arguments.images}")
    if arguments.json:
        refuse_existing(arguments.json, force=arguments.force)
    results = measure(
        arguments.dataset,
        arguments.root,
        arguments.images,
        arguments.attack,
        arguments.attack_eps,
        arguments.purify_eps or [PURIFY_EPS[arguments.dataset]],
        arguments.model or arguments.dataset,
        engine=arguments.engine,
        precision=arguments.precision,
    )
    if arguments.json:
        with output_files(arguments.json, force=arguments.force) as (temporary,):
            temporary.write_text(json.dumps(results, indent=2) + "\n")
    print(tables(results))


if __name__ == "__main__":
    main()
