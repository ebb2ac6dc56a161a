"""Many images of one shape as one picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base.checks import check_count, check_optional_count
from .images import Images, to_grid

GAP = 2  # pixels between images, and around them
BACKGROUND = 255
MOST_PIXELS = 1 << 27  # of a picture: memory for three channels of them, and as much again to write them


def grid_size(count: int, size: tuple[int, int], columns: int | None = None, *, enlarge: int = 1) -> tuple[int, int]:
    """Rows and columns of the picture of ``count`` images of ``size``, height and width, that ``image_grid`` makes.

    Raises TypeError or ValueError for bad input, and ValueError for a picture of more than 2^27 pixels.
    """
    columns, enlarge = check_optional_count("columns", columns, 1), check_count("enlarge", enlarge, 1)
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    height, width = rows * (enlarge * size[0] + GAP) + GAP, columns * (enlarge * size[1] + GAP) + GAP
    if height * width > MOST_PIXELS:
        raise ValueError(
            f"expected a picture of {MOST_PIXELS} pixels at most, got {width} x {height}: {count} images, each pixel "
            f"enlarged to {enlarge} x {enlarge}"
        )
    return rows, columns


def image_grid(images: Images, columns: int | None = None, *, enlarge: int = 1) -> Tensor:
    """Images side by side, row after row, on white: uint8 (C, height, width), which ``write_png`` takes.

    images: (N, C, H, W), N > 0, as :func:`pxfast.purify` takes them. columns: images in a row; by default about as
    many as there are rows, and never more than images. enlarge: screen pixels to the side of a pixel.
    Raises TypeError or ValueError for bad input, and what :func:`grid_size` raises.
    """
    grid, _ = to_grid(images)
    N, C, H, W = grid.shape
    if N == 0:
        raise ValueError("expected at least one image, got none")
    rows, columns = grid_size(N, (H, W), columns, enlarge=enlarge)
    grid = grid.repeat_interleave(enlarge, dim=2).repeat_interleave(enlarge, dim=3)
    down, right = enlarge * H + GAP, enlarge * W + GAP
    picture = torch.full((C, rows * down + GAP, columns * right + GAP), BACKGROUND, dtype=torch.uint8)
    for n, image in enumerate(grid):
        top, left = GAP + n // columns * down, GAP + n % columns * right
        picture[:, top : top + enlarge * H, left : left + enlarge * W] = image
    return picture
