"""Certified accuracy on the first test images of CIFAR-10 or Fashion-MNIST, by `pxfast certify`.

    python bench/experiments/certificates.py cifar10 --root DIR --work FOLDER

The classifiers are the shipped one, those in the package for midpoints of cells, and those fine-tuned here first, on
PixelDefend's guesses from cells or on midpoints. Runs named random have the paper's random dither; in those named near
PixelDefend chooses near the estimate from the cells on all sides. Each run, its guesses and the trainings are kept in
FOLDER, where a killed one goes on; a file there of other options or of another classifier is refused. Writes the
results as bench/results/certificates-NAME.json, and for CIFAR-10 docs/certificate.png; docs/certificate.md has the
printed tables. With --only the other runs' results stay. With --images, for a first look, both files go to FOLDER.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from pxfast.base.files import whole_file
from pxfast.certification import Certificates
from pxfast.classifiers import load_classifier
from pxfast.classifiers.weights import read_notes
from pxfast.data.datasets import DATASETS
from pxfast.defences.weights import classifier_key
from pxfast.evaluation.figures import certified, pictures
from pxfast.pixelcnn.fingerprint import model_fingerprint
from pxfast.pixelcnn.shipped import load

ROOT = Path(__file__).resolve().parents[2]
NAME = "bench/experiments/certificates.py"
L2 = ["--norm", "l2", "--sigma", 0.25]
MOST_COPIES = ["--samples", 10000, "--first-samples", 100]
MANY, FEW = ["--samples", 1000, "--first-samples", 100], ["--samples", 300, "--first-samples", 50]
RANDOM = ["--dither", "random"]
WITHOUT_DENSITY = ("midpoints", "estimate", "none", "adp")  # guesses that no density model makes
CLASSIFIERS = {"tuned": "fine-tuned", "packaged": "packaged"}  # by what a run's name says; of others the shipped one
Runs = dict[str, tuple[int, list[object]]]  # by name: the number of images, and the options
CIFAR10: Runs = {
    "l1-32-sample": (60, ["--width", 32, "--guess", "sample"]),
    **{
        f"l1-{width}-{guess}": (images, ["--width", width, "--guess", guess])
        for width, *counts in ((32, 1000, 1000), (64, 1000, 1000), (132, 1000, 1000), (442, 100, 100))
        for guess, images in zip(("midpoints", "pixeldefend"), counts, strict=True)  # w purifications each
    },
    **{
        f"l1-{width}-{name}": (images, ["--width", width, "--guess", guess])
        for width, images in ((32, 100), (64, 100), (132, 100), (442, 100))
        for name, guess in (("estimate", "estimate"), ("near-pixeldefend", "pixeldefend"))
    },
    **{
        f"l1-{width}-near-flip-pixeldefend": (images, ["--width", width, "--guess", "pixeldefend", "--views", "flip"])
        for width, images in ((132, 100), (442, 100))
    },
    **{
        f"l1-{width}-random-{guess}": (images, ["--width", width, "--guess", guess, *RANDOM])
        for width in (64, 132)
        for guess, images in (("midpoints", 1000), ("pixeldefend", 200))
    },
    **{f"l1-{width}-tuned-midpoints": (1000, ["--width", width, "--guess", "midpoints"]) for width in (32, 64)},
    **{
        f"l1-132-random-tuned-{guess}": (1000, ["--width", 132, "--guess", guess, *RANDOM])
        for guess in ("midpoints", "pixeldefend")
    },
    **{
        f"l1-132-{name}-midpoints": (1000, ["--width", 132, "--guess", "midpoints", *options])
        for name, options in {
            "random-packaged": RANDOM,
            "packaged": [],
            "packaged-flip": ["--views", "flip"],
        }.items()
    },
    "l2-none": (50, [*L2, *MANY, "--guess", "none"]),
    "l2-adp": (50, [*L2, *MOST_COPIES, "--guess", "adp"]),
    "l2-pixeldefend": (20, [*L2, *FEW, "--guess", "pixeldefend"]),
}
FASHION_MNIST: Runs = {
    f"l1-{width}-{name}": (1000, ["--width", width, "--guess", guess])
    for width in (32, 64, 132)
    for name, guess in {
        "sample": "sample",
        "midpoints": "midpoints",
        "pixeldefend": "pixeldefend",
        "tuned-pixeldefend": "pixeldefend",
        "packaged-midpoints": "midpoints",
    }.items()
}
RUNS: dict[str, Runs] = {"cifar10": CIFAR10, "fashion-mnist": FASHION_MNIST}
MOST = 1000  # images of a run
TUNING = ["--behind-images", 25000, "--epochs", 4, "--learning-rate", 0.02]  # of 'tuned' classifiers
SHOWN = {"l1": (0, 8, 15, 24, 31, 48, 63, 127), "l2": (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)}


def pxfast(*words: object) -> None:
    """Run the command."""
    subprocess.run([sys.executable, "-m", "pxfast.cli", *map(str, words)], check=True)


def tuned(dataset: str, cells: str, root: Path, work: Path, threads: int) -> Path:
    """The classifier fine-tuned on guesses from ``cells``, as --behind has them, trained unless it is there."""
    out = work / f"{dataset}-cells-{cells.replace(',', '-').replace('=', '-')}.safetensors"
    if not out.exists():
        behind = ["--behind", f"cells:{cells}", "--start", dataset, *TUNING, "--keep", work / "training"]
        places = ["--root", root, "--out", out, "--threads", threads]
        pxfast("train-classifier", dataset, "resnet62", *places, *behind, "--resume")
    training = read_notes(out)["training"]
    refuse_others(out, by_name(TUNING), training)
    return out


def by_name(options: list[object]) -> dict[str, object]:
    """Options of a command, as settings are named."""
    names = (str(name).removeprefix("--").replace("-", "_") for name in options[::2])
    return dict(zip(names, options[1::2], strict=True))


def refuse_others(file: Path, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """SystemExit unless a file that was kept was made with what is wanted."""
    others = [f"{name} {found.get(name)}, not {value}" for name, value in wanted.items() if found.get(name) != value]
    if others:
        raise SystemExit(f"{file} was made with {'; '.join(others)}: move it away, or take another folder")


def check_kept(file: Path, dataset: str, options: list[object], near: bool) -> None:
    """SystemExit unless a file of `pxfast certify` is of these options, and of the classifier as it is now."""
    document = json.loads(file.read_text())
    refuse_others(file, {"near an estimate": near}, {"near an estimate": "near" in document["settings"]})
    unsaid = {"norm": "l1", "dither": "lattice", "views": "one"}
    given = by_name(options)
    name = str(given.pop("classifier", dataset))
    given.pop("keep", None)
    given["purifier"] = given.pop("guess")
    refuse_others(file, unsaid | given, {**unsaid, **document["settings"]})
    classifier = document.get("classifier")
    if isinstance(classifier, dict):  # older files have a name alone
        now = classifier_key(load_classifier(name), DATASETS[dataset])
        refuse_others(file, {"classifier": now}, {"classifier": classifier["sha256"]})


def run(dataset: str, name: str, most: int, root: Path, work: Path, threads: int) -> Path:
    """The file of a run over its images, but at most so many, which is made unless it is there."""
    images, options = RUNS[dataset][name]
    images, options = min(images, most), list(options)
    model = "" if name.endswith(WITHOUT_DENSITY) else f"-{model_fingerprint(load(dataset))[:16]}"
    out = work / f"{dataset}-{name}-{images}{model}.json"
    given = by_name(options)
    if "-tuned-" in name:
        cells = f"width={given['width']},guess={given['guess']},dither={given.get('dither', 'lattice')}"
        options += ["--classifier", tuned(dataset, cells, root, work, threads)]
    if "-packaged-" in name:
        options += ["--classifier", f"{dataset}-resnet62-cells{given['width']}"]
    if "l1" in name and not name.endswith(WITHOUT_DENSITY):
        options += ["--keep", work / "kept"]
    near = "-near-" in name
    if out.exists():
        check_kept(out, dataset, options, near)
    else:
        places = ["--root", root, "--images", images, "--threads", threads, "--out", out]
        pxfast("certify", dataset, *places, *options, *(["--near-estimate"] if near else []))
    return out


def recorded(path: Path, dataset: str) -> dict[str, Any]:
    """What bench/results keeps of a file of `pxfast certify`."""
    document = json.loads(path.read_text())
    settings = document["settings"]
    columns = {f"{key}s": [image[key] for image in document["images"]] for key in ("label", "prediction")}
    entry = {key: document[key] for key in ("machine", "version", "settings")}
    if settings["purifier"] not in WITHOUT_DENSITY:
        entry["density model"] = model_fingerprint(load(dataset))
    return {**entry, **columns, "radii": [image["radius"] for image in document["images"]]}


def certificates(entry: dict[str, Any]) -> Certificates:
    """Those of a recorded run, without the votes."""
    return Certificates(
        torch.tensor(entry["labels"]),
        torch.tensor(entry["predictions"]),
        torch.tensor(entry["radii"], dtype=torch.float64),
        torch.zeros(len(entry["labels"]), 0, dtype=torch.int64),
        entry["settings"]["norm"],
        entry["settings"],
    )


def title(name: str, found: Certificates) -> str:
    """The dither, the guess and the classifier of a run of L1."""
    guess = {"pixeldefend": "PixelDefend", "sample": "draw"}.get(kind := found.settings["purifier"], kind)
    classifier = next((text for part, text in CLASSIFIERS.items() if f"-{part}-" in name), "shipped")
    guess += " near the estimate" if "near" in found.settings else ""
    views = ", two views" if found.settings.get("views") == "flip" else ""
    return f"{found.settings['dither']}, {guess}, {classifier}{views}"


def table(runs: dict[str, Certificates], norm: str) -> list[str]:
    """Certified accuracy in % by radius as a table of Markdown."""
    radii = SHOWN[norm]
    lead = ["w", "dither, guess, classifier", "images"] if norm == "l1" else ["purifier", "N", "images"]
    lines = [
        f"| {' | '.join(lead)} | {' | '.join(f'{radius:g}' for radius in radii)} |",
        f"|{'---|' * len(lead)}{'---:|' * len(radii)}",
    ]
    for name, found in runs.items():
        if found.norm == norm:
            shares = (f"{100 * found.certified_accuracy(radius):.0f}" for radius in radii)
            kind = found.settings["width"] if norm == "l1" else name.rpartition("-")[2]
            head = f"{kind} | {title(name, found) if norm == 'l1' else found.settings['samples']}"
            lines.append(f"| {head} | {len(found.labels)} | {' | '.join(shares)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=("cifar10", "fashion-mnist"))
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder")
    parser.add_argument("--work", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="these runs: a,b")
    parser.add_argument("--images", type=int, default=MOST, help="at most so many, for a first look")
    arguments = parser.parse_args()
    dataset: str = arguments.dataset
    names = arguments.only.split(",") if arguments.only else list(RUNS[dataset])
    arguments.work.mkdir(parents=True, exist_ok=True)
    places = (arguments.root, arguments.work, arguments.threads)
    files = {name: run(dataset, name, arguments.images, *places) for name in names}
    whole = arguments.images == MOST
    results = (ROOT / "bench" / "results" if whole else arguments.work) / f"certificates-{dataset}.json"
    before = json.loads(results.read_text())["runs"] if arguments.only and results.exists() else {}
    made = {**before, **{name: recorded(path, dataset) for name, path in files.items()}}
    result = {
        "script": NAME,
        "data": f"the first test images of {dataset}",
        "classifiers": f"ResNet-62 of {dataset} as shipped; tuned: on guesses, {shlex.join(map(str, TUNING))}",
        "runs": {name: made[name] for name in RUNS[dataset] if name in made},
    }
    with whole_file(results) as path:
        path.write_text(json.dumps(result) + "\n", encoding="utf-8")
    runs = {name: certificates(entry) for name, entry in result["runs"].items()}
    panels: dict[str, dict[str, Certificates]] = {}
    for name, found in runs.items():
        if found.norm == "l1" and found.settings["dither"] == "lattice" and found.settings["purifier"] != "sample":
            panel = panels.setdefault(f"w = {found.settings['width']}", {})
            panel[title(name, found).removeprefix("lattice, ")] = found
    if dataset == "cifar10":
        pictures.save_picture(
            certified.draw_panels(panels), (ROOT / "docs" if whole else arguments.work) / "certificate.png"
        )
    for norm in sorted({found.norm for found in runs.values()}):
        print("\n".join(table(runs, norm)), end="\n\n")


if __name__ == "__main__":
    main()
