"""What a classifier gains from having been trained behind the purifier: its table beside the unmodified classifier's.

    pxfast train-classifier cifar10 resnet62 --root DIR --out FILE --behind purifier:eps=16 --start cifar10 \\
        --behind-images 20000 --epochs 3 --learning-rate 0.02
    python bench/experiments/behind.py cifar10 FILE --root DIR --work FOLDER

Both classifiers, without a defence and behind the purifier of the paper's eps, on the first test images, under attacks
of eps 8. The attacks know a classifier and no purifier, but for BPDA of 100 steps. The trained classifier gets the
images that were made to fool the unmodified one, and those made to fool itself. What is finished is kept in FOLDER,
where a killed run goes on. Writes bench/results/behind-NAME.json, with another number of --images to FOLDER instead;
prints the table of docs/results.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import pxfast
from pxfast.attacks import BPDA, find_attack
from pxfast.base.files import whole_file
from pxfast.base.machine import processor_name
from pxfast.base.progress import progress_of
from pxfast.classifiers import load_classifier
from pxfast.classifiers.weights import read_notes
from pxfast.data.datasets import DATASETS, load_dataset
from pxfast.defences import Defended
from pxfast.defences.weights import classifier_key
from pxfast.engines.cpu import isa_of
from pxfast.evaluation.judge import STRONGEST, Job, Judge, Target
from pxfast.evaluation.verdict import Score
from pxfast.pixelcnn.fingerprint import model_fingerprint
from pxfast.pixelcnn.shipped import load
from pxfast.tensors.store import Store

ROOT = Path(__file__).resolve().parents[2]
NAME = "bench/experiments/behind.py"
IMAGES = 1000  # of which bench/results are
EPS = 8  # of the attacks
PURIFY_EPS = {"cifar10": 16, "fashion-mnist": 32}  # the paper's
ATTACKS = ("rand", "fgsm", "bim", "deepfool", "cw-linf")
CLEAN, AWARE = "Clean", "bpda"


def judged(dataset: str, trained: Path, root: Path, work: Path, images: int, threads: int) -> dict[str, list[Score]]:
    """The scores of every row, by its title."""
    given, labels = load_dataset(dataset, root, train=False)
    judge = Judge(Store(work / "store"), given[:images], labels[:images], EPS, 0, 1, 64)
    networks = {"unmodified": load_classifier(dataset), "trained behind": load_classifier(trained)}
    bare = {name: judge.surrogate(network) for name, network in networks.items()}
    rows: list[tuple[str, Target, list[Job]]] = []
    for name, network in networks.items():
        purified = judge.target(Defended(network, [pxfast.Purifier(PURIFY_EPS[dataset], threads=threads)]))
        for defence, target in (("none", bare[name]), ("PixelDefend", purified)):
            for source in ("unmodified", name) if name != "unmodified" else (name,):
                jobs = [Job(each, find_attack(each), bare[source]) for each in ATTACKS]
                if source == name and defence != "none":
                    jobs.append(Job(AWARE, BPDA(steps=100)))
                rows.append((f"{name} | {defence} | {source}", target, jobs))
    scores: dict[str, list[Score]] = {}
    with progress_of(sum(judge.work(images, len(jobs)) for _, _, jobs in rows), shown=True) as judge.bar:
        for title, target, jobs in rows:
            found, _ = judge.row(target, jobs)
            scores[title] = [score for score in found if score.attack != STRONGEST]
    return scores


def table(found: dict[str, list[Score]]) -> list[str]:
    """As a table of Markdown, in %."""
    columns = (CLEAN, *ATTACKS, AWARE)
    lines = [
        f"| classifier | defence | images that fool | {' | '.join(columns)} |",
        f"|---|---|---|{'---:|' * len(columns)}",
    ]
    for title, scores in found.items():
        by_attack = {score.attack: f"{100 * score.majority / score.images:.1f}" for score in scores}
        lines.append(f"| {title} | {' | '.join(by_attack.get(name, '') for name in columns)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted(PURIFY_EPS))
    parser.add_argument("classifier", type=Path, help="the file of the one that was trained behind the purifier")
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder")
    parser.add_argument("--work", type=Path, required=True, help="where what is finished is kept")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    dataset: str = arguments.dataset
    found = judged(dataset, arguments.classifier, arguments.root, arguments.work, arguments.images, arguments.threads)
    result = {
        "script": NAME,
        "data": f"the first {arguments.images} test images of {dataset}",
        "eps of the attacks": EPS,
        "unmodified": classifier_key(load_classifier(dataset), DATASETS[dataset]),
        "trained behind": read_notes(arguments.classifier),
        "density model": model_fingerprint(load(dataset)),
        "machine": {"cpu": processor_name(), "isa": isa_of(), "threads": arguments.threads},
        "rows": {title: [dataclasses.asdict(score) for score in scores] for title, scores in found.items()},
    }
    folder = ROOT / "bench" / "results" if arguments.images == IMAGES else arguments.work
    with whole_file(folder / f"behind-{dataset}.json") as path:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
