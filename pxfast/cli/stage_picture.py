"""What became of images, stage after stage, as one picture: rows of images with words under each."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..base.files import write_content

if TYPE_CHECKING:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

GAP, LEFT, TOP, CAPTION = 12, 136, 14, 38  # screen pixels
SIDE = 96  # screen pixels that an image has at most, unless it has more pixels itself
COLUMNS = 10
DPI = 100

RIGHT: dict[str, Any] = {"color": "#1b5e20", "fontsize": 8.5}
WRONG: dict[str, Any] = {"color": "#c62828", "fontsize": 8.5, "weight": "bold"}
UNKNOWN: dict[str, Any] = {"color": "#222222", "fontsize": 8.5}
SMALL: dict[str, Any] = {"color": "#444444", "fontsize": 7}


class Line(NamedTuple):
    """A line of words under an image. style: matplotlib's, of text."""

    text: str
    style: dict[str, Any]


class Row(NamedTuple):
    """A row of the picture: its name, notes below that, images uint8 (N, C, H, W), and at most two lines for each."""

    name: str
    notes: Sequence[str]
    images: Tensor
    captions: Sequence[Sequence[Line]] = ()


def label_line(given: int, true: int | None, names: Sequence[str] | None) -> Line:
    """A classifier's label: a wrong one is bold and red after a cross. true: None where nobody knows it."""
    name = names[given] if names is not None and given < len(names) else f"class {given}"
    if true is None:
        return Line(name, UNKNOWN)
    return Line(name, RIGHT) if given == true else Line(f"\u2717 {name}", WRONG)


def bits_line(bits: float) -> Line:
    return Line(f"{bits:.2f} bits/dim", SMALL)


def difference_row(name: str, before: Tensor, after: Tensor, factor: int | None = None) -> Row:
    """How images changed, around mid-grey. factor: None for the largest up to 8 that keeps all of it in range."""
    change = after.int() - before.int()
    if factor is None:
        factor = max(1, min(8, 127 // max(1, int(change.abs().max()))))
    return Row(f"difference \u00d7{factor}", [name], (128 + factor * change).clamp(0, 255).to(torch.uint8))


def scale_of(height: int, width: int) -> int:
    """Screen pixels to the side of an image's pixel."""
    return max(1, SIDE // max(height, width))


def cell(row: int, column: int, height: int, width: int) -> tuple[int, int]:
    """Left and top edge, in screen pixels from the top left, of an image in the picture."""
    scale = scale_of(height, width)
    return LEFT + column * (max(scale * width, SIDE // 2) + GAP), TOP + row * (scale * height + CAPTION)


def picture_size(rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
    """Width and height of the picture in screen pixels."""
    left, top = cell(rows, columns, height, width)
    return left, top - CAPTION + TOP


def write_canvas(canvas: FigureCanvasAgg, path: Path) -> None:
    """Write a picture as a PNG file."""
    buffer = io.BytesIO()  # given a path, Pillow hides which file could not be written
    canvas.print_png(buffer)  # type: ignore[no-untyped-call]
    write_content(path, buffer.getbuffer())


def draw_rows(rows: Sequence[Row], columns: int = COLUMNS) -> FigureCanvasAgg:
    """The picture of rows that have as many images each; more than ``columns`` go on below, all the rows again."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count, _, H, W = rows[0].images.shape
    blocks = -(-count // columns)
    width, height = picture_size(len(rows) * blocks, min(columns, count), H, W)
    # a little more than that, since some releases of matplotlib round the product down
    figure = Figure(((width + 0.1) / DPI, (height + 0.1) / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    scale = scale_of(H, W)

    def text(x: float, y: float, string: str, **style: Any) -> None:
        # DejaVu Sans comes with matplotlib, and has the cross
        figure.text(x, height - y, string, transform=None, va="top", family="DejaVu Sans", **style)

    for number, row in enumerate(row for _ in range(blocks) for row in rows):
        block = number // len(rows)
        middle = cell(number, 0, H, W)[1] + scale * H // 2
        text(10, middle - 32, row.name, fontsize=11, weight="bold", color="#222222")
        for line, note in enumerate(row.notes):
            text(10, middle - 14 + 15 * line, note, fontsize=8, color="#444444")
        for column, n in enumerate(range(block * columns, min(count, (block + 1) * columns))):
            left, top = cell(number, column, H, W)
            pixels = np.kron(row.images[n].permute(1, 2, 0).numpy(), np.ones((scale, scale, 1), np.uint8))
            colours = pixels if pixels.shape[2] == 3 else np.repeat(pixels[:, :, :1], 3, axis=2)
            figure.figimage(colours, left, height - top - scale * H, origin="upper")
            for line, caption in enumerate(row.captions[n] if row.captions else ()):
                below = top + scale * H + 4 + 14 * line
                text(left + scale * W // 2, below, caption.text, ha="center", **caption.style)
    return canvas
