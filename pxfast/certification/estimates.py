"""Estimates of images from their cells by least squares, from the cells on all sides of each sub-pixel.

Algorithm 1 decodes in raster order: a sub-pixel is chosen by what lies above it and to its left. The cells below and to
its right say as much of it, and an estimate that looks at them tells PixelDefend where to search.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.checks import check_between, check_choice, check_seed
from ..data.images import Images, to_grid
from ..pixeldefend.cells import DITHERS, MOST_WIDTH, cells, shifts
from ..tensors.ambient import in_plain_torch
from ..tensors.batches import fewer_if_large, in_fixed_batches
from ..tensors.store import digest

IMAGES = 256  # that a fit looks at, of up to 64x64 pixels
TOGETHER = 16  # images whose windows are in memory at once
SIDE = 7  # of the window around a sub-pixel: 9 gains 0.7 % at most, bench/experiments/dithers.py
STAGES = 2  # a third gains 1.5 % at most, the same script
RIDGE = 1e-6  # of the squared coefficients, by row
NEAR = 1.5  # errors to each side of the estimate; 0.75 does as well, bench/experiments/near_estimates.py


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """The image behind cells of one width and dither, by least squares: a guess that :func:`certify` takes.

    Made by :meth:`fit`. The first of the ``STAGES`` is linear in the cells' ends in the window of 7 x 7 pixels around a
    sub-pixel, all channels. Each later one is linear in them, in the estimate before, and in the mean of a normal
    distribution around that estimate, of the deviation that it was found to have, cut off at the cell's ends.

    image_shape: (C, H, W). width, dither, seed: of the cells. coefficients: float64 (C, planes, 7, 7), one of each
    stage. errors: root mean square errors of the stages in grey levels, on the images of the fit. source: what tells
    these images from others.
    """

    image_shape: tuple[int, int, int]
    width: int
    dither: str
    seed: int
    coefficients: tuple[Tensor, ...]
    errors: tuple[float, ...]
    source: str

    @classmethod
    @in_plain_torch
    @torch.no_grad()
    def fit(cls, images: Images, *, width: int = 32, dither: str = "lattice", seed: int = 0) -> Estimate:
        """An estimate that is fitted to clean images: training images, not those that are to be certified.

        images: (N, C, H, W), as :func:`pxfast.purify` takes them, N > 0; a few hundred are wanted, and of more 256 are
        taken that are spread evenly over them. width, dither, seed: as for :func:`certify`, and the same as there. Each
        image is seen at one offset. The same images give the same estimate. Raises TypeError or ValueError for bad
        input.
        """
        width = check_between("width", width, 1, MOST_WIDTH)
        check_choice("dither", dither, DITHERS)
        seed = check_seed(seed)
        grid, _ = to_grid(images)
        if not len(grid):
            raise ValueError("an estimate is fitted to at least one image, got none")
        most = fewer_if_large(IMAGES, grid)
        grid = grid[torch.arange(min(most, len(grid))) * len(grid) // min(most, len(grid))].cpu()
        _, C, H, W = grid.shape
        offsets = (torch.arange(len(grid)) * width // len(grid)).reshape(-1, 1, 1, 1)
        lower, upper = cells(grid, width, offsets + shifts((C, H, W), width, dither, seed))
        values = grid.double()
        estimate = cls((C, H, W), width, dither, seed, (), (), digest(grid))
        found, error = None, math.nan
        for _ in range(STAGES):
            coefficients = (*estimate.coefficients, _solved(lower, upper, values, found, error))
            estimate = dataclasses.replace(estimate, coefficients=coefficients)
            found = estimate.values(lower, upper)
            error = float((found - values).square().mean().sqrt())
            estimate = dataclasses.replace(estimate, errors=(*estimate.errors, error))
        return estimate

    @property
    def error(self) -> float:
        """The root mean square error of the estimate in grey levels, on the images of the fit."""
        return self.errors[-1]

    @property
    def settings(self) -> dict[str, Any]:
        """What tells it from other estimates, JSON-able."""
        return {"estimate": self.source, "error": round(self.error, 3)}

    @property
    def reach(self) -> int:
        """How many grey levels to both sides of the estimate are near it: 1.5 times its error, at least 1."""
        return max(1, round(NEAR * self.error))

    def __call__(self, lower: Tensor, upper: Tensor) -> Tensor:
        """The estimated images on the grid of 0..255, each sub-pixel within its cell.

        lower, upper: the cells' ends, uint8 (M, C, H, W) both. Returns uint8 of that shape.
        """
        return _within(self.values(lower, upper).round(), lower, upper).to(torch.uint8)

    def near(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The ends of what is near the estimate in each cell, uint8 (M, C, H, W) both.

        lower, upper: the cells' ends, uint8 of that shape both.
        """
        estimate = self(lower, upper).int()
        ends = (estimate - self.reach, estimate + self.reach)
        first, last = (_within(end, lower, upper).to(torch.uint8) for end in ends)
        return first, last

    @torch.no_grad()
    def values(self, lower: Tensor, upper: Tensor) -> Tensor:
        """The estimates before they are rounded: float64 (M, C, H, W), in grey levels, some outside of their cells.

        lower, upper: the cells' ends, uint8 (M, C, H, W) both. ValueError for others.
        """
        for ends in (lower, upper):
            if ends.dtype != torch.uint8 or ends.shape != (len(lower), *self.image_shape):
                expected = f"uint8 ends of cells (M, C, H, W) = (M, {', '.join(map(str, self.image_shape))})"
                raise ValueError(f"expected {expected}, got {ends.dtype} {tuple(ends.shape)}")
        if not len(lower):
            return lower.double()
        both = torch.cat([lower, upper], dim=1)
        return in_fixed_batches(lambda some: self._values(*some.chunk(2, dim=1)), both, TOGETHER)

    def _values(self, lower: Tensor, upper: Tensor) -> Tensor:
        estimate = None
        before = (math.nan, *self.errors)  # of the stage before; while fitted, the last one has none yet
        for coefficients, error in zip(self.coefficients, before, strict=False):
            planes = _planes(lower, upper, estimate, error)
            estimate = F.conv2d(planes, coefficients.to(planes.device), padding=SIDE // 2) * 255.0 + 127.5
        assert estimate is not None
        return estimate


def _within(values: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The values, each moved to the nearest end of its cell where it is outside."""
    return torch.minimum(torch.maximum(values, lower.to(values.dtype)), upper.to(values.dtype))


def _planes(lower: Tensor, upper: Tensor, estimate: Tensor | None, error: float) -> Tensor:
    """What a stage is linear in: float64 (M, planes, H, W) in units of [0, 1] around 0, the last plane ones.

    estimate: of the stage before, float64 (M, C, H, W) in grey levels, whose error it is; None for the first stage.
    """
    lower, upper = lower.double(), upper.double()
    seen = [lower, upper]
    if estimate is not None:
        seen += [estimate, _mean_within(estimate, error, lower, upper)]
    scaled = torch.cat(seen, dim=1) / 255.0 - 0.5
    return torch.cat([scaled, torch.ones_like(scaled[:, :1])], dim=1)  # 0 outside of the image, which these tell


def _mean_within(mean: Tensor, deviation: float, lower: Tensor, upper: Tensor) -> Tensor:
    """The mean of normal distributions, cut off at the ends of cells, but not at 0 and 255. All in grey levels."""
    deviation = max(deviation, 1e-3)
    from_ = torch.where(lower == 0, -torch.inf, (lower - 0.5 - mean) / deviation)
    to = torch.where(upper == 255, torch.inf, (upper + 0.5 - mean) / deviation)
    inside = (torch.special.ndtr(to) - torch.special.ndtr(from_)).clamp(min=1e-9)
    densities = torch.exp(-from_.square() / 2) - torch.exp(-to.square() / 2)
    return _within(mean + deviation / math.sqrt(2 * math.pi) * densities / inside, lower, upper)


def _solved(lower: Tensor, upper: Tensor, values: Tensor, before: Tensor | None, error: float) -> Tensor:
    """A stage's coefficients, float64 (C, planes, 7, 7), by ridge regression.

    before: the estimates of the stage before, as ``_planes`` takes them, and their error.
    """
    products, targets, rows = torch.zeros(()), torch.zeros(()), 0
    together = fewer_if_large(TOGETHER, values)
    for start in range(0, len(values), together):
        some = slice(start, start + together)
        planes = _planes(lower[some], upper[some], None if before is None else before[some], error)
        windows = F.unfold(planes, SIDE, padding=SIDE // 2).transpose(1, 2).flatten(0, 1)
        wanted = (values[some] / 255.0 - 0.5).flatten(2).transpose(1, 2).flatten(0, 1)
        products, targets, rows = products + windows.T @ windows, targets + windows.T @ wanted, rows + len(windows)
    ridge = RIDGE * rows * torch.eye(len(products), dtype=torch.float64)
    solved: Tensor = torch.linalg.solve(products + ridge, targets)
    return solved.T.reshape(values.shape[1], -1, SIDE, SIDE)
