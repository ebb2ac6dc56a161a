"""What ``pxfast demo`` does: purify images shipped in the package, and show what that did to them.

A classifier's labels are shown beside them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..base.files import claimed, output_files
from ..base.machine import parse_device
from ..classifiers import load_classifier, predict
from ..data.image_writers import check_output
from ..pixelcnn.likelihood import bits_per_dim
from ..pixelcnn.shipped import load
from ..pixeldefend.purify import purify
from ..tensors.safetensors import read_safetensors
from .stage_picture import Row, bits_line, difference_row, draw_rows, label_line, write_canvas

if TYPE_CHECKING:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

FORMAT = "pxfast-demo-images"
ASSETS = {"fashion-mnist": "demo-images.safetensors", "cifar10": "cifar10-demo-images.safetensors"}
MODEL = "fashion-mnist"
PURIFY_EPS = 32  # the paper's for Fashion-MNIST
CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot")


class DemoImages(NamedTuple):
    """Images of a test set, clean and attacked: uint8 (N, C, H, W); their labels (N,) int64."""

    clean: Tensor
    attacked: Tensor
    labels: Tensor
    attack_eps: int


class Stage(NamedTuple):
    """What became of the images: uint8 (N, C, H, W), bits/dim (N,), and the classifier's labels (N,)."""

    name: str
    images: Tensor
    bits: Tensor
    labels: Tensor


def load_demo_images(dataset: str = MODEL) -> DemoImages:
    """The images of 'fashion-mnist' or 'cifar10' shipped in the package; the first ten are one of each class."""
    path = Path(str(resources.files("pxfast") / "assets" / ASSETS[dataset]))
    tensors, metadata = read_safetensors(path, FORMAT)
    if not {"clean", "attacked", "labels"} <= tensors.keys() or not metadata.get("attack_eps", "").isdecimal():
        raise ValueError(f"{path} lacks images that it was shipped with: install pxfast anew")
    return DemoImages(tensors["clean"], tensors["attacked"], tensors["labels"].long(), int(metadata["attack_eps"]))


class Demonstration(NamedTuple):
    """What :func:`run` found: the images at all stages, the seconds that purification took, and the picture's path."""

    images: DemoImages
    stages: list[Stage]
    seconds: float
    picture: Path

    @property
    def purified(self) -> int:
        """How many images were purified: the attacked and the clean ones."""
        return 2 * len(self.images.labels)


def run(
    out: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
    device: str = "auto",
    engine: str = "auto",
    threads: int | None = None,
    progress: bool = False,
) -> Demonstration:
    """Purify the shipped images and write the comparison picture.

    out: the PNG to write, with that suffix; refused with FileExistsError when it exists, unless ``force``. None:
    pxfast-demo.png in the current folder, or pxfast-demo-1.png and so on when that is taken. device, engine, threads:
    of purification.
    """
    settings: dict[str, Any] = {"device": device, "engine": engine, "threads": threads, "progress": progress}
    if out is None:
        with contextlib.suppress(BlockingIOError), claimed("pxfast-demo.png"):  # a folder that can be written to
            pass
        demo, stages, seconds = stages_of_shipped_images(**settings)
        return Demonstration(demo, stages, seconds, write_picture(draw(stages[:3], demo)))
    check_output(Path(out), ".png")
    with output_files(out, force=force) as (temporary,):
        demo, stages, seconds = stages_of_shipped_images(**settings)
        write_canvas(draw(stages[:3], demo), temporary)
    return Demonstration(demo, stages, seconds, Path(out))


def stages_of_shipped_images(
    *, device: str, engine: str, threads: int | None, progress: bool
) -> tuple[DemoImages, list[Stage], float]:
    """The shipped images, what purification made of them, and the seconds that it took. Arguments: of :func:`run`."""
    demo = load_demo_images()
    model, classifier = load(MODEL), load_classifier(MODEL)
    given = torch.cat((demo.attacked, demo.clean)).to(parse_device(device))
    started = time.perf_counter()
    both = purify(given, eps=PURIFY_EPS, model=model, engine=engine, threads=threads, progress=progress).cpu()
    seconds = time.perf_counter() - started
    purified, purified_clean = both.split(len(demo.clean))
    stages = [
        Stage(name, images, bits_per_dim(images, model=model), predict(classifier, images))
        for name, images in (
            ("clean", demo.clean),
            ("attacked", demo.attacked),
            ("purified", purified),
            ("purified clean", purified_clean),
        )
    ]
    return demo, stages, seconds


def lines(shown: Demonstration) -> list[str]:
    """A demonstration in lines for people."""
    demo, count = shown.images, shown.purified
    return [
        f"{len(demo.labels)} test images of Fashion-MNIST, chosen among those that the classifier gets right,",
        f"attacked by FGSM (eps {demo.attack_eps}) and purified (eps {PURIFY_EPS}); eps in grey levels of 255.",
        "Wrong labels are marked with a *.",
        "",
        *table(shown.stages, demo.labels),
        "",
        f"purified {count} images in {shown.seconds:.2f} s: {count / shown.seconds:.1f} images/s",
        f"picture: {shown.picture.resolve()}",
    ]


def facts(shown: Demonstration) -> dict[str, Any]:
    """A demonstration, JSON-able: the classifier's accuracy in [0, 1] and the mean bits/dim at all stages."""
    return {
        "images": shown.purified,
        "seconds": shown.seconds,
        "images_per_second": shown.purified / shown.seconds,
        "stages": {
            stage.name: {
                "accuracy": float((stage.labels == shown.images.labels).double().mean()),
                "bits_per_dim": float(stage.bits.mean()),
            }
            for stage in shown.stages
        },
        "files": [shown.picture.resolve()],
    }


def write_picture(canvas: FigureCanvasAgg) -> Path:
    """Write to pxfast-demo.png in the current folder, or to the first of pxfast-demo-1.png, ... that is free."""
    for path in map(Path, itertools.chain(["pxfast-demo.png"], (f"pxfast-demo-{i}.png" for i in itertools.count(1)))):
        with contextlib.suppress(FileExistsError, BlockingIOError), output_files(path, force=False) as (temporary,):
            write_canvas(canvas, temporary)
            break
    return path


def table(stages: list[Stage], truth: Tensor) -> list[str]:
    """Lines: per image its true label, then per stage the classifier's label and bits/dim; means and accuracies."""
    lines = [
        f"{'':<9}" + "".join(f"  {stage.name:^16}" for stage in stages),
        f"{'true':<9}" + f"  {'label':<9}{'bits/dim':>7}" * len(stages),
    ]
    rule = "-" * len(lines[1])
    lines.append(rule)
    for i, label in enumerate(truth.tolist()):
        cells = []
        for stage in stages:
            given = int(stage.labels[i])
            name = CLASSES[given] + ("" if given == label else "*")
            cells.append(f"  {name:<9}{float(stage.bits[i]):>8.2f}")
        lines.append(f"{CLASSES[label]:<9}" + "".join(cells))
    cells = []
    for stage in stages:
        right = f"{100 * float((stage.labels == truth).double().mean()):.0f} %"
        cells.append(f"  {right:<9}{float(stage.bits.mean()):>8.2f}")
    return [*lines, rule, f"{'all':<9}" + "".join(cells)]


COLUMNS = len(CLASSES)


def draw(stages: list[Stage], demo: DemoImages) -> FigureCanvasAgg:
    """The picture: rows clean, attacked, purified, and 8 times the difference of the last two around mid-grey.

    One column per image, the first ten of them; the rows' means are over these. Under each image the classifier's
    label, a wrong one in bold red after a cross, and its bits/dim.
    """
    columns = min(COLUMNS, len(demo.labels))
    truth = demo.labels[:columns]
    notes = {"attacked": [f"FGSM, eps {demo.attack_eps}"], "purified": [f"eps {PURIFY_EPS}"]}
    rows = []
    for stage in stages:
        labels, bits = stage.labels[:columns], stage.bits[:columns]
        found = [f"{float(bits.mean()):.2f} bits/dim", f"{int((labels == truth).sum())} of {columns} right"]
        captions = [
            [label_line(int(given), int(true), CLASSES), bits_line(float(each))]
            for given, true, each in zip(labels, truth, bits, strict=True)
        ]
        rows.append(Row(stage.name, [*notes.get(stage.name, []), *found], stage.images[:columns], captions))
    attacked, purified = (row.images for row in rows[-2:])
    return draw_rows([*rows, difference_row("purified - attacked", attacked, purified, 8)], columns)
