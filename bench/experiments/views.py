"""Accuracy under attack against clean accuracy of PixelDefend with one view and more, several eps, and purifying twice.

    python bench/experiments/views.py cifar10 --root DIR --work FOLDER

The first test images, the shipped ResNet-62 and density model, attacks of eps 8: BIM on the classifier alone, and BPDA
of 100 steps, which knows the purifier and its views. What is finished is kept in FOLDER, where a killed run goes on.
Writes bench/results/views-NAME.json, and for CIFAR-10 docs/views.png; prints the table of docs/results.md. With --only
the other points stay, if they are of the same images, eps, classifier and density model. With another number of
--images both files go to FOLDER.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from matplotlib import rc_context
from torch import nn

import pxfast
from pxfast.attacks import BIM, BPDA
from pxfast.base.files import whole_file
from pxfast.base.machine import processor_name
from pxfast.base.progress import progress_of
from pxfast.classifiers import load_classifier
from pxfast.data.datasets import DATASETS, load_dataset
from pxfast.defences import Defended
from pxfast.defences.weights import classifier_key
from pxfast.engines.cpu import isa_of
from pxfast.evaluation.figures import pictures
from pxfast.evaluation.judge import STRONGEST, Job, Judge
from pxfast.evaluation.verdict import Score
from pxfast.pixelcnn.fingerprint import model_fingerprint
from pxfast.pixelcnn.shipped import load
from pxfast.tensors.store import Store

ROOT = Path(__file__).resolve().parents[2]
NAME = "bench/experiments/views.py"
IMAGES = 1000  # of which bench/results are
EPS = 8  # of the attacks
CLEAN, BLIND, AWARE = "Clean", "BIM", "BPDA"
# by data set: the eps of the purifiers, one after the other
PURIFIERS: dict[str, tuple[tuple[int, ...], ...]] = {
    "cifar10": ((), (8,), (16,), (24,), (16, 16)),
    "fashion-mnist": ((), (16,), (32,), (48,), (32, 32)),
}
VIEWS = ("one", "flip")
# by data set: purifiers of several eps, the mean of whose probabilities is taken
SEVERAL: dict[str, tuple[int, ...]] = {"cifar10": (16, 24), "fashion-mnist": (32, 48)}


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of the curve: lists of purifiers by their eps, and what goes through each."""

    chains: tuple[tuple[int, ...], ...]
    views: str

    @property
    def title(self) -> str:
        """In words."""
        first = self.chains[0]
        if len(self.chains) > 1:
            what = f"eps {' and '.join(str(eps) for (eps,) in self.chains)}"
        else:
            what = f"{'twice, ' if len(first) > 1 else ''}eps {first[0]}" if first else "not purified"
        count = len(self.chains) * (2 if self.views == "flip" else 1)
        return f"{what}, {({1: 'one view', 2: 'two views', 4: 'four views'})[count]}"

    def defended(self, classifier: nn.Module, threads: int) -> Defended:
        """The classifier behind them."""
        first, *others = (
            [pxfast.Purifier(eps, threads=threads) for eps in chain] or [nn.Identity()] for chain in self.chains
        )
        return Defended(classifier, first, views=self.views, alternatives=others)


def points(dataset: str) -> list[Point]:
    """All points of the curve."""
    several = tuple((eps,) for eps in SEVERAL[dataset])
    return [Point(chains, views) for chains in (*((each,) for each in PURIFIERS[dataset]), several) for views in VIEWS]


def judged(
    dataset: str, chosen: list[Point], root: Path, work: Path, images: int, threads: int
) -> dict[str, tuple[Score, ...]]:
    """The scores of every point."""
    given, labels = load_dataset(dataset, root, train=False)
    classifier = load_classifier(dataset)
    judge = Judge(Store(work / "store"), given[:images], labels[:images], EPS, 0, 1, 64)
    bare = judge.surrogate(classifier)
    scores = {}
    with progress_of(judge.work(images, 2) * len(chosen), shown=True) as judge.bar:
        for point in chosen:
            target = judge.target(point.defended(classifier, threads))
            jobs = [Job(BLIND, BIM(), bare), Job(AWARE, BPDA(steps=100))]
            scores[point.title], _ = judge.row(target, jobs)
    return scores


def accuracy(scores: tuple[Score, ...], attack: str) -> float:
    """In %, under an attack."""
    score = next(each for each in scores if each.attack == attack)
    return 100 * score.majority / score.images


def table(points: dict[str, tuple[Score, ...]]) -> list[str]:
    """As a table of Markdown."""
    lines = [f"| defence | clean | {BLIND}, blind | {AWARE} |", "|---|---:|---:|---:|"]
    for name, scores in points.items():
        cells = (f"{accuracy(scores, each):.1f}" for each in (CLEAN, BLIND, AWARE))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def draw(points: dict[str, tuple[Score, ...]], path: Path) -> None:
    """Accuracy under each attack against clean accuracy."""
    with rc_context(pictures.STYLE):
        figure = pictures.new_figure(5.2, 3.6)
        axes = figure.subplots()
        for attack, filled in ((BLIND, "full"), (AWARE, "none")):
            for views, marker in (("one view", "o"), ("two views", "s"), ("four views", "D")):
                chosen = {name: each for name, each in points.items() if name.endswith(views)}
                if not chosen:
                    continue
                x = [accuracy(each, CLEAN) for each in chosen.values()]
                y = [accuracy(each, attack) for each in chosen.values()]
                axes.plot(x, y, marker, fillstyle=filled, color="black", label=f"{attack}, {views}")
                for name, place in zip(chosen, zip(x, y, strict=True), strict=True):
                    what = name.rpartition(", ")[0]
                    # the points below have the same clean accuracy, and the bare classifier's two lie side by side
                    if attack == BLIND and (what, views) != ("not purified", "two views"):
                        offset = (4, -9 if " and " in what else 3)  # to the right of the former is another point
                        axes.annotate(what, place, fontsize=6, xytext=offset, textcoords="offset points")
        axes.margins(x=0.15)
        axes.set_xlabel("clean accuracy, %")
        axes.set_ylabel(f"accuracy under attack, eps {EPS}, %")
        pictures.legend_above(figure, axes, 2)
    pictures.save_picture(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted(PURIFIERS))
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder")
    parser.add_argument("--work", type=Path, required=True, help="where what is finished is kept")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="these points, by their names in the table")
    arguments = parser.parse_args()
    dataset: str = arguments.dataset
    chosen = points(dataset)
    if arguments.only:
        by_name = {point.title: point for point in chosen}
        if unknown := [name for name in arguments.only if name not in by_name]:
            parser.error(f"no such point: {', '.join(unknown)}; there are: {'; '.join(by_name)}")
        chosen = [by_name[name] for name in arguments.only]
    same = {
        "script": NAME,
        "data": f"the first {arguments.images} test images of {dataset}",
        "eps of the attacks": EPS,
        "density model": model_fingerprint(load(dataset)),
        "classifier": classifier_key(load_classifier(dataset), DATASETS[dataset]),
    }
    whole = arguments.images == IMAGES
    results = (ROOT / "bench" / "results" if whole else arguments.work) / f"views-{dataset}.json"
    before = json.loads(results.read_text()) if arguments.only and results.exists() else {**same, "points": {}}
    # a file from before the classifier was noted in it says nothing of it
    if other := [f"{key}: {before[key]}" for key, value in same.items() if before.get(key, value) != value]:
        parser.error(f"{results} has points of other settings ({'; '.join(other)}): measure all of them")
    judgements = judged(dataset, chosen, arguments.root, arguments.work, arguments.images, arguments.threads)
    machine = {"cpu": processor_name(), "isa": isa_of(), "threads": arguments.threads}
    made = before["points"] | {
        name: {
            "machine": machine,
            "scores": [dataclasses.asdict(score) for score in scores if score.attack != STRONGEST],
        }
        for name, scores in judgements.items()
    }
    ordered = {point.title: made[point.title] for point in points(dataset) if point.title in made}
    with whole_file(results) as path:
        path.write_text(json.dumps({**same, "points": ordered}, indent=1) + "\n", encoding="utf-8")
    found = {name: tuple(Score(**score) for score in point["scores"]) for name, point in ordered.items()}
    if dataset == "cifar10":
        draw(found, (ROOT / "docs" if whole else arguments.work) / "views.png")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
