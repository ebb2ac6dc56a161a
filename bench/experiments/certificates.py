"""Certified accuracy on CIFAR-10's first test images with the shipped models, by `pxfast certify`.

    python bench/experiments/certificates.py --root DIR --work FOLDER

Each run is kept in FOLDER, where a killed one goes on. Writes bench/results/certificates-cifar10.json and
docs/certificate.png; docs/certificate.md has the table, which is printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from pxfast.base.files import whole_file
from pxfast.certification import Certificates
from pxfast.evaluation.figures import certified, pictures
from pxfast.pixelcnn.fingerprint import model_fingerprint
from pxfast.pixelcnn.shipped import load

ROOT = Path(__file__).resolve().parents[2]
NAME = "bench/experiments/certificates.py"
L2 = ["--norm", "l2", "--sigma", 0.25, "--samples", 100, "--first-samples", 20]
# by name: the number of images, and the options
RUNS: dict[str, tuple[int, list[object]]] = {
    "l1-32-midpoints": (200, ["--width", 32, "--guess", "midpoints"]),
    "l1-32-pixeldefend": (200, ["--width", 32, "--guess", "pixeldefend"]),
    "l1-32-sample": (60, ["--width", 32, "--guess", "sample"]),
    "l1-64-midpoints": (100, ["--width", 64, "--guess", "midpoints"]),
    "l1-64-pixeldefend": (100, ["--width", 64, "--guess", "pixeldefend"]),
    "l1-132-midpoints": (40, ["--width", 132, "--guess", "midpoints"]),
    "l1-132-pixeldefend": (30, ["--width", 132, "--guess", "pixeldefend"]),
    "l2-none": (20, [*L2, "--guess", "none"]),
    "l2-adp": (20, [*L2, "--guess", "adp"]),
    "l2-pixeldefend": (20, [*L2, "--guess", "pixeldefend"]),
}
SHOWN = {"l1": (0, 4, 8, 12, 15, 24, 31, 48, 63), "l2": (0, 0.1, 0.2, 0.3, 0.4)}


def run(name: str, root: Path, work: Path, threads: int) -> Path:
    """The file of a run, which is made unless it is there."""
    out = work / f"{name}.json"
    if not out.exists():
        images, options = RUNS[name]
        words = ["certify", "cifar10", "--root", root, "--images", images, "--threads", threads, *options, "--out", out]
        subprocess.run([sys.executable, "-m", "pxfast.cli", *map(str, words)], check=True)
    return out


def read(path: Path) -> tuple[Certificates, dict[str, Any]]:
    """The certificates in a file of `pxfast certify`, and the file."""
    document = json.loads(path.read_text())
    columns = {key: [image[key] for image in document["images"]] for key in ("label", "prediction", "radius", "votes")}
    found = Certificates(
        torch.tensor(columns["label"]),
        torch.tensor(columns["prediction"]),
        torch.tensor(columns["radius"], dtype=torch.float64),
        torch.tensor(columns["votes"]),
        document["settings"]["norm"],
        document["settings"],
    )
    return found, document


def first(found: Certificates, count: int) -> Certificates:
    """Those of the first images alone."""
    kept = (each[:count] for each in (found.labels, found.predictions, found.radii, found.counts))
    return Certificates(*kept, found.norm, found.settings)


def group(name: str) -> str:
    """What runs are compared with each other: those of one norm and width."""
    return name.rpartition("-")[0]


def compared(runs: dict[str, Certificates]) -> dict[str, Certificates]:
    """The runs over the images that all of a group's longer ones share; of samples over their own, fewer ones."""
    return {
        name: first(
            found,
            min(
                len(other.labels)
                for key, other in runs.items()
                if group(key) == group(name) and ("sample" not in key or key == name)
            ),
        )
        for name, found in runs.items()
    }


def table(runs: dict[str, Certificates], norm: str) -> list[str]:
    """Certified accuracy in % by radius as a table of Markdown."""
    radii = SHOWN[norm]
    lines = [
        f"| run | images | {' | '.join(f'{radius:g}' for radius in radii)} |",
        f"|---|{'---:|' * (len(radii) + 1)}",
    ]
    for name, found in runs.items():
        if found.norm == norm:
            shares = (f"{100 * found.certified_accuracy(radius):.0f}" for radius in radii)
            lines.append(f"| {name} | {len(found.labels)} | {' | '.join(shares)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder")
    parser.add_argument("--work", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="these runs: a,b")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(RUNS)
    files = {name: run(name, arguments.root, arguments.work, arguments.threads) for name in names}
    read_runs = {name: read(path) for name, path in files.items()}
    runs = compared({name: found for name, (found, _) in read_runs.items()})
    result = {
        "script": NAME,
        "data": "the first test images of CIFAR-10",
        "classifier": "cifar10-resnet62, as shipped",
        "density model": model_fingerprint(load("cifar10")),
        "runs": {
            name: {
                "machine": document["machine"],
                "version": document["version"],
                "settings": found.settings,
                "labels": found.labels.tolist(),
                "predictions": found.predictions.tolist(),
                "radii": found.radii.tolist(),
            }
            for name, (found, document) in read_runs.items()
        },
    }
    with whole_file(ROOT / "bench" / "results" / "certificates-cifar10.json") as path:
        path.write_text(json.dumps(result) + "\n", encoding="utf-8")
    shown = {
        f"{found.settings['purifier']}, w = {found.settings['width']}, {len(found.labels)} images": found
        for name, found in runs.items()
        if found.norm == "l1" and "sample" not in name
    }
    pictures.save_picture(certified.draw_certified(shown), ROOT / "docs" / "certificate.png")
    for norm in SHOWN:
        print("\n".join(table(runs, norm)), end="\n\n")


if __name__ == "__main__":
    main()
