"""Unconditional samples from a model: ancestral sampling through the decode engines."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..base.checks import check_integer, check_number, check_precision, check_progress, check_seed
from ..base.progress import reporting
from ..engines.choosers import Sample
from ..engines.registry import select
from ..engines.schedule import schedule_for
from ..engines.settings import DecodeSettings
from ..pixelcnn.shipped import SHIPPED, Model
from ..tensors.ambient import in_plain_torch
from .rules import Within, check_within, ranges_of

# fp32 knows no probabilities below e^-87, which a greater temperature would make those of a visible share
COLDEST, HOTTEST = 1e-3, 4.0


@in_plain_torch
def sample(
    n: int,
    *,
    model: Model,
    seed: int = 0,
    temperature: float = 1.0,
    first: int = 0,
    within: Within | None = None,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    progress: bool | Callable[[int], None] = False,
) -> Tensor:
    """Draw images from p(X): every sub-pixel in raster and channel order from its distribution given the earlier ones.

    n: how many. model: a PixelCNN, a shipped model's name, or the path of a model file. seed: 0 to 2^64 - 1.
    temperature: the 256 probabilities of a sub-pixel are raised to the power 1 / temperature, which is in [0.001, 4],
    and normalised; 1 draws from the model itself, less gives likelier images. first: the number of the first image.
    Image i of a seed depends on seed, i, temperature, ranges, model, engine and precision alone: n, batches and threads
    don't matter, and ``sample(2, first=3)`` continues ``sample(3)``. within: the least and the greatest value of every
    sub-pixel, as :func:`pxfast.purify` takes them: each is drawn from its distribution normalised over its range. The
    random numbers are counter-based and the same for all engines (see :mod:`pxfast.engines.choosers`), whose rounding
    differs, so that another engine's image i mostly but not always is the same. engine, precision, threads, progress:
    as for :func:`pxfast.purify`.

    Returns uint8 (n, C, H, W). Raises TypeError or ValueError for bad arguments, RuntimeError for an engine that can't
    run here.
    """
    n = check_integer("n", n, 2**31)
    seed = check_seed(seed, 2**64)
    first = check_integer("first", first, 2**64 - n)
    temperature = check_number("temperature", temperature, COLDEST, HOTTEST)
    check_within(within)
    check_precision(precision)
    check_progress(progress)
    settings = DecodeSettings(threads=threads)
    chosen = select(engine)
    network = SHIPPED.resolve(model)
    if network is None:
        raise TypeError("model must be a PixelCNN, a shipped model's name or a path, got None")
    if precision == "auto":
        precision = chosen.best_precision(settings)
    blank = torch.zeros((n, network.config.channels, *network.config.image_size), dtype=torch.uint8)
    if n == 0:
        return blank
    chooser = Sample(seed, temperature, first, None if within is None else ranges_of(within, blank.shape))
    with reporting(n, progress) as report:
        return chosen.decode(
            schedule_for(network), blank, chooser, precision=precision, settings=settings, report=report
        )
