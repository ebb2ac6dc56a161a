"""What ADP does to clean and attacked test images: accuracy with each run alone and over all runs, and images/s.

    python bench/experiments/adp.py cifar10 --root DIR --images 128 --sigma 0.1 0.25 --attack fgsm bim --json out.json

Takes the first images of the test set, the shipped score network and the shipped classifier; the attacks know the
classifier alone. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from pxfast import ADPPurifier
from pxfast.adp.files import read_score_metadata
from pxfast.attacks import PAPER, find_attack
from pxfast.base.files import output_files, refuse_existing
from pxfast.classifiers import accuracy, load_classifier
from pxfast.data.datasets import DATASETS, load_dataset
from pxfast.engines.info import collect
from pxfast.tensors.seeds import derived_seeds, image_seeds


def measure(
    dataset: str, root: Path, count: int, attacks: list[str], eps: int, sigmas: list[float], runs: int, model: str
) -> dict[str, Any]:
    """Everything the table shows, JSON-able; accuracies in [0, 1]."""
    images, labels = load_dataset(dataset, root, train=False)
    images, labels = images[:count], labels[:count]
    classifier = load_classifier(dataset)
    inputs = {"clean": images}
    for name in attacks:
        inputs[f"{name}, eps {eps}"] = find_attack(name)(classifier, images, labels, eps)
    rows = []
    for name, attacked in inputs.items():
        row: dict[str, Any] = {"images": name, "before": accuracy(classifier, attacked, labels), "purified": {}}
        x = attacked.float() / 255
        seeds = image_seeds(x)
        for sigma in sigmas:
            purifier = ADPPurifier(sigma, runs=runs, model=model, progress=True)
            started = time.perf_counter(), time.process_time()
            with torch.no_grad():
                draws = (purifier.draw(x, derived_seeds(seeds, run)) for run in range(runs))
                logits = torch.stack([classifier(draw) for draw in draws])
            seconds, processor_seconds = time.perf_counter() - started[0], time.process_time() - started[1]
            row["purified"][str(sigma)] = {
                "one_run": float((logits.argmax(2) == labels).double().mean()),
                "all_runs": float((logits.mean(0).argmax(1) == labels).double().mean()),
                "images_per_second_and_run": runs * len(images) / seconds,
                "images_per_processor_second_and_run": runs * len(images) / processor_seconds,
            }
        rows.append(row)
    return {
        "dataset": dataset,
        "images": len(images),
        "runs": runs,
        "model": read_score_metadata(model)[1],
        "installation": collect(),
        "rows": rows,
    }


def table(results: dict[str, Any]) -> str:
    """The accuracies as a Markdown table."""
    sigmas = list(results["rows"][0]["purified"])
    runs = results["runs"]
    header = ["images", "before", *(f"ADP {sigma}, {what}" for sigma in sigmas for what in ("one run", f"{runs} runs"))]
    lines = [f"Accuracy on {results['images']} test images:", "", "| " + " | ".join(header) + " |"]
    lines.append("|---|" + "---:|" * (len(header) - 1))
    speeds = []
    for row in results["rows"]:
        found = [row["purified"][sigma] for sigma in sigmas]
        cells = [row["before"], *(each[key] for each in found for key in ("one_run", "all_runs"))]
        lines.append(f"| {row['images']} | " + " | ".join(f"{100 * cell:.1f} %" for cell in cells) + " |")
        speeds += [each["images_per_processor_second_and_run"] for each in found]
    speed = f"{min(speeds):.1f} to {max(speeds):.1f} runs over an image a second of processor time"
    return "\n".join([*lines, "", speed])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted(DATASETS))
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder")
    parser.add_argument("--images", type=int, default=128, help="how many test images (default 128)")
    parser.add_argument("--attack", nargs="*", default=["fgsm", "bim"], choices=[attack.name for attack in PAPER])
    parser.add_argument("--attack-eps", type=int, default=8)
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.1, 0.25])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--model", help="score network: a shipped one's name or a file; by default the data set's")
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
        arguments.sigma,
        arguments.runs,
        arguments.model or arguments.dataset,
    )
    if arguments.json:
        with output_files(arguments.json, force=arguments.force) as (temporary,):
            temporary.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
