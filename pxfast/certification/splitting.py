"""Deterministic certificates against changes of an L1 norm, by splitting noise.

Levine and Feizi, "Improved, Deterministic Smoothing for L1 Certified Robustness", ICML 2021. Each sub-pixel tells only
in which cell of ``width`` grey levels it lies. The cells of sub-pixel i begin at s + v_i and every ``width`` from
there. v is fixed, and s takes all values 0..width - 1. A base classifier guesses the label from the cells, once for
each s, and the smoothed classifier takes the label of most votes. docs/certificate.md derives the radius.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..base.checks import (
    check_between,
    check_choice,
    check_instance,
    check_path,
    check_progress,
    check_seed,
)
from ..base.files import AnyPath, check_output_folder
from ..base.progress import reporting
from ..base.records import shown
from ..classifiers.contract import Labels, class_labels
from ..data.images import Images, to_grid
from ..defences.defended import VIEWS
from ..engines.arithmetic import arithmetic_of
from ..engines.settings import DecodeSettings
from ..pixelcnn.shipped import Model, model_for
from ..pixeldefend.cells import DITHERS, MOST_WIDTH, cells, shifts
from ..tensors.ambient import in_plain_torch
from ..tensors.store import Store
from .certificates import Certificates
from .estimates import Estimate
from .guesses import DENSITY, PURIFIERS, Guess, checked_guess, kept_guess, named_guess, near_estimate, recipe_of
from .votes import check_alone, votes

TOGETHER = 128  # cells of images that are purified at once


def radii_of(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions, int64 (N,), and L1 radii in whole grey levels, int64 (N,), from counts of votes (N, classes).

    The label is that of most votes, the smallest of several. A change of r grey levels moves at most r votes, from the
    label a to another b. The label stays while n_a - r > n_b + r for every b < a, and n_a - r >= n_b + r for b > a: the
    radius is the least of floor((n_a - n_b - [b < a]) / 2) over all b.
    """
    order = torch.arange(counts.shape[1], device=counts.device)
    predictions = (counts == counts.amax(dim=1, keepdim=True)).long().argmax(dim=1)
    first = counts.gather(1, predictions[:, None])
    margins = first - counts - (order < predictions[:, None]).long()
    margins = margins.masked_fill(order == predictions[:, None], torch.iinfo(torch.int64).max)
    return predictions, margins.amin(dim=1).div(2, rounding_mode="floor")


@in_plain_torch
@torch.no_grad()
def certify(
    classifier: nn.Module,
    images: Images,
    labels: Labels,
    *,
    width: int = 32,
    purifier: str | Guess = "pixeldefend",
    near: Estimate | None = None,
    dither: str = "lattice",
    views: str = "one",
    model: Model | None = None,
    seed: int = 0,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    keep: AnyPath | None = None,
    progress: bool | Callable[[int], None] = False,
) -> Certificates:
    """Certify images against every change of an L1 norm, without sampling: ``width`` guesses and votes an image.

    classifier: gives logits (M, classes) for floating images (M, C, H, W) in [0, 1], each the same whenever it is
    called; it stands in eval mode. images: (N, C, H, W), as :func:`pxfast.purify` takes them. labels: integers (N,).
    width: of a cell, 1..1024 grey levels: a wider one certifies further, and tells less of the image. The uniform noise
    that it stands for has the deviation width / (2 sqrt(3)) grey levels.

    purifier: how the image is guessed from its cells. 'pixeldefend': the greedy likeliest image within them
    (Algorithm 1). 'sample': a draw from the density model, restricted to them, whose random numbers depend on ``seed``
    and the offset alone. 'midpoints': the middle of each cell. Or a function of the cells' ends, such as an
    :class:`Estimate`; each result may depend on its own cells alone. near: an :class:`Estimate`, to both sides of which
    'pixeldefend' and 'sample' choose, by up to 1.5 of its errors; by default anywhere in the cells. dither: what v is,
    as :func:`pxfast.certification.shifts` takes it: 'lattice', or 'random' by ``seed``. views: 'one', or 'flip': a vote
    is that of the mean probability of a guess and its mirror image, which takes twice as long. model, engine,
    precision, threads, progress: as for :func:`pxfast.purify`.
    keep: a folder in which the guesses of 'pixeldefend' and 'sample' are kept, ``width`` images for each image; a later
    call finds those of the same cells, model and settings there, whatever the classifier is. It is made if need be.

    Returns the :class:`Certificates`, whose radii hold for images on the grid of 0..255 and for these settings, on this
    machine. Raises TypeError or ValueError for bad input, an unknown purifier or a classifier in training mode.
    """
    check_instance("classifier", classifier, nn.Module)
    width = check_between("width", width, 1, MOST_WIDTH)
    if not callable(purifier) and (not isinstance(purifier, str) or purifier not in PURIFIERS):
        kind = ValueError if isinstance(purifier, str) else TypeError
        raise kind(f"purifier must be one of {', '.join(PURIFIERS)}, or a function of cells, got {shown(purifier)}")
    if near is not None:
        check_instance("near", near, Estimate)
    check_choice("dither", dither, DITHERS)
    check_choice("views", views, VIEWS)
    seed = check_seed(seed)
    arithmetic = checked_arithmetic(engine, precision, threads)
    engine, precision = arithmetic["engine"], arithmetic["precision"]
    check_progress(progress)
    check_eval_mode(classifier)
    grid, form = to_grid(images)
    if keep is not None and purifier not in DENSITY:
        raise ValueError(f"keep={shown(keep)} is of no use: only guesses of {' and '.join(DENSITY)} are kept")
    if model is not None and purifier not in DENSITY:
        raise ValueError(
            f"a model means nothing to purifier={name_of(purifier)!r}: only {' and '.join(DENSITY)} take one"
        )
    if near is not None and purifier not in DENSITY:
        raise ValueError(
            f"near means nothing to purifier={name_of(purifier)!r}: only {' and '.join(DENSITY)} choose near one"
        )
    for name, estimate in (("near", near), ("the purifier", purifier)):
        if isinstance(estimate, Estimate):
            check_same_cells(name, estimate, tuple(grid.shape[1:]), width, dither, seed)
    density = model_for(model, grid.shape[1:]) if purifier in DENSITY else None  # once: the file may be replaced
    guess = purifier if callable(purifier) else named_guess(purifier, density, seed, engine, precision, threads)
    if near is not None:
        guess = near_estimate(guess, near)
    together = 1
    if purifier == "pixeldefend":
        together = max(1, TOGETHER // width)
    if keep is not None:
        check_output_folder(check_path("keep", keep))
        assert density is not None  # as the purifier is one of those
        guess = kept_guess(guess, Store(keep), width, recipe_of(str(purifier), density, seed, arithmetic, near))
    labels = checked_labels(classifier, labels, grid, form.device)
    starts = torch.arange(width).reshape(-1, 1, 1, 1) + shifts(
        tuple(grid.shape[1:]),  # type: ignore[arg-type]
        width,
        dither,
        seed,
    )

    found = []
    with reporting(len(grid), progress) as report:
        for part in grid.split(together) if len(grid) else ():
            lower, upper = cells(part[:, None], width, starts)  # (n, width, C, H, W)
            guessed = checked_guess(guess(lower.flatten(0, 1), upper.flatten(0, 1)), lower.flatten(0, 1))
            for own in guessed.to(form.device).split(width):  # in batches that the offset alone decides
                found.append(votes(classifier, own, views))
            report(len(found))
    counts = torch.stack(found) if found else torch.zeros((0, 2), dtype=torch.int64)
    predictions, radii = radii_of(counts)
    settings: dict[str, Any] = {"norm": "l1", "width": width, "purifier": name_of(purifier), "dither": dither}
    if dither == "random" or purifier == "sample":
        settings["seed"] = seed
    if views != "one":
        settings["views"] = views
    if isinstance(purifier, Estimate):
        settings |= purifier.settings
    if near is not None:
        settings |= {"near": near.reach} | near.settings
    if purifier in DENSITY:
        settings |= arithmetic
    return Certificates(labels, predictions, radii.double(), counts, "l1", settings)


def checked_arithmetic(engine: str, precision: str, threads: int | None) -> dict[str, str]:
    """What decodes round by, as :func:`pxfast.engines.arithmetic.arithmetic_of` has it; raises as ``purify`` does."""
    DecodeSettings(threads=threads)
    return arithmetic_of(engine, precision)


def checked_labels(classifier: nn.Module, labels: Labels, grid: Tensor, device: torch.device) -> Tensor:
    """Labels of uint8 images (N, C, H, W) as int64 (N,), of the classifier's classes, which one image tells.

    It also tells whether the classifier looks at each image alone: ValueError where it does not.
    """
    if not len(grid):
        return class_labels(labels, 0)
    first = grid[:1].to(device).float() / 255.0
    return class_labels(labels, len(grid), classes=check_alone(classifier, first))


def name_of(purifier: str | Callable[..., Tensor]) -> str:
    """What a purifier is called in the settings."""
    if isinstance(purifier, Estimate):
        return "estimate"
    return purifier if isinstance(purifier, str) else getattr(purifier, "__qualname__", type(purifier).__name__)


def check_same_cells(name: str, estimate: Estimate, shape: tuple[int, ...], width: int, dither: str, seed: int) -> None:
    """ValueError unless an estimate, called ``name``, is of these images' shape and of these cells."""
    found = (estimate.image_shape, estimate.width, estimate.dither)
    same_seed = dither != "random" or estimate.seed == seed
    if found != (shape, width, dither) or not same_seed:
        raise ValueError(
            f"expected {name} to be an estimate of images {shape} from cells of width {width}, dither {dither!r}, "
            f"seed {seed}, got one of images {estimate.image_shape} from cells of width {estimate.width}, "
            f"dither {estimate.dither!r}, seed {estimate.seed}"
        )


def check_eval_mode(classifier: nn.Module) -> None:
    """ValueError where a part of it is in training mode: its logits would depend on the batch, or be random."""
    training = next((name or "the classifier" for name, part in classifier.named_modules() if part.training), None)
    if training is not None:
        raise ValueError(f"a certificate needs a classifier in eval mode, and {training} is in training mode")
