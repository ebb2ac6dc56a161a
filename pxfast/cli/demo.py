"""The demo: purify images shipped in the package, and show what that did to them and to a classifier's labels."""

from __future__ import annotations

import itertools
import os
import time
from importlib import resources
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor

from ..base.files import refuse_existing, whole_file
from ..classifiers import load_classifier, predict
from ..pixelcnn.likelihood import bits_per_dim
from ..pixelcnn.shipped import load
from ..pixeldefend.purify import purify
from ..tensors.safetensors import read_safetensors
from .options import ForceOption

FORMAT = "pxfast-demo-images"
ASSET = "demo-images.safetensors"
MODEL = "fashion-mnist"
PURIFY_EPS = 32  # the paper's for Fashion-MNIST
CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot")


class DemoImages(NamedTuple):
    """Images of the Fashion-MNIST test set, clean and attacked: uint8 (N, 1, 28, 28); their labels (N,) int64."""

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


def load_demo_images() -> DemoImages:
    """The images shipped in the package; the first ten are one of each class."""
    tensors, metadata = read_safetensors(Path(str(resources.files("pxfast") / "assets" / ASSET)), FORMAT)
    return DemoImages(tensors["clean"], tensors["attacked"], tensors["labels"].long(), int(metadata["attack_eps"]))


def run(out: str | os.PathLike[str] | None = None, *, force: bool = False) -> Path:
    """Purify the shipped images, print a table of what changed, write the comparison picture, return its path.

    out: the PNG to write; refused with FileExistsError when it exists, unless ``force``. None: pxfast-demo.png in the
    current folder, or pxfast-demo-1.png and so on when that is taken.
    """
    if out is not None:
        refuse_existing(out, force=force)
    demo = load_demo_images()
    model, classifier = load(MODEL), load_classifier(MODEL)
    started = time.perf_counter()
    both = purify(torch.cat((demo.attacked, demo.clean)), eps=PURIFY_EPS, model=model)
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
    print(f"{len(demo.labels)} test images of Fashion-MNIST, attacked by FGSM (eps {demo.attack_eps}) and purified")
    print(f"(eps {PURIFY_EPS}); eps in grey levels of 255. Wrong labels are marked with a *.\n")
    print("\n".join(table(stages, demo.labels)))
    print(f"\npurified {len(both)} images in {seconds:.2f} s: {len(both) / seconds:.1f} images/s")
    picture = default_path() if out is None else Path(out)
    draw(picture, stages[:3], demo)
    print(f"picture: {picture.resolve()}")
    return picture


def default_path() -> Path:
    """pxfast-demo.png in the current folder, or the first of pxfast-demo-1.png, ... that does not exist."""
    names = itertools.chain(["pxfast-demo.png"], (f"pxfast-demo-{i}.png" for i in itertools.count(1)))
    return next(path for path in map(Path, names) if not os.path.lexists(path))


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


SCALE = 3  # screen pixels per image pixel
GAP, LEFT, TOP, CAPTION = 12, 136, 14, 38  # screen pixels
COLUMNS = len(CLASSES)


def cell(row: int, column: int, side: int) -> tuple[int, int]:
    """Left and top edge, in screen pixels from the top left, of an image in the picture."""
    return LEFT + column * (SCALE * side + GAP), TOP + row * (SCALE * side + CAPTION)


def picture_size(columns: int, side: int) -> tuple[int, int]:
    """Width and height of the picture in screen pixels."""
    left, top = cell(4, columns, side)
    return left, top - CAPTION + TOP


def draw(path: Path, stages: list[Stage], demo: DemoImages) -> None:
    """Write the picture: rows clean, attacked, purified, and 8 times the difference of the last two around mid-grey.

    One column per image, the first ten of them; the rows' means are over these. Under each image the classifier's
    label, a wrong one in bold red after a cross, and its bits/dim.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns, side = min(COLUMNS, len(demo.labels)), demo.clean.shape[-1]
    width, height = picture_size(columns, side)
    dpi = 100
    figure = Figure((width / dpi, height / dpi), dpi=dpi, facecolor="white")
    canvas = FigureCanvasAgg(figure)

    def text(x: float, y: float, string: str, **style) -> None:
        # DejaVu Sans comes with matplotlib, and has the cross
        figure.text(x, height - y, string, transform=None, va="top", family="DejaVu Sans", **style)

    def image(row: int, column: int, values: Tensor) -> tuple[int, int]:
        left, top = cell(row, column, side)
        pixels = np.kron(values[0].numpy(), np.ones((SCALE, SCALE), np.uint8))
        figure.figimage(np.repeat(pixels[:, :, None], 3, axis=2), left, height - top - SCALE * side, origin="upper")
        return left + SCALE * side // 2, top + SCALE * side

    _, attacked, purified = stages
    change = purified.images.int() - attacked.images.int()
    difference = (128 + 8 * change).clamp(0, 255).to(torch.uint8)
    notes = ["", f"FGSM, eps {demo.attack_eps}", f"eps {PURIFY_EPS}", "purified - attacked"]
    for row, name in enumerate(["clean", "attacked", "purified", "difference \u00d78"]):
        top = cell(row, 0, side)[1] + SCALE * side // 2
        lines = [notes[row]] if notes[row] else []
        if row < 3:
            right = stages[row].labels[:columns] == demo.labels[:columns]
            lines += [
                f"{float(stages[row].bits[:columns].mean()):.2f} bits/dim",
                f"{int(right.sum())} of {columns} right",
            ]
        text(10, top - 32, name, fontsize=11, weight="bold", color="#222222")
        for line, note in enumerate(lines):
            text(10, top - 14 + 15 * line, note, fontsize=8, color="#444444")
        for column in range(columns):
            if row == 3:
                image(row, column, difference[column])
                continue
            centre, below = image(row, column, stages[row].images[column])
            given = int(stages[row].labels[column])
            right = given == int(demo.labels[column])
            style = {"color": "#1b5e20"} if right else {"color": "#c62828", "weight": "bold"}
            text(centre, below + 4, ("" if right else "\u2717 ") + CLASSES[given], ha="center", fontsize=8.5, **style)
            bits = f"{float(stages[row].bits[column]):.2f} bits/dim"
            text(centre, below + 18, bits, ha="center", fontsize=7, color="#444444")
    with whole_file(path) as temporary:
        canvas.print_png(temporary)


def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="The picture to write; by default pxfast-demo.png here."),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Purify attacked images that are shipped with the package, and draw the result."""
    run(out, force=force)
