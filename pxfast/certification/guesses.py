"""Guesses of images from their cells: what stands in front of the classifier that votes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..base.version import __version__
from ..data.images import check_range
from ..pixelcnn.fingerprint import model_fingerprint
from ..pixelcnn.network import PixelCNN
from ..pixeldefend.cells import midpoints
from ..pixeldefend.purify import purify
from ..pixeldefend.sampling import sample
from ..tensors.store import Entry, Recipe, Store, digest
from .estimates import Estimate

DENSITY = ("pixeldefend", "sample")  # guesses by the density model
PURIFIERS = ("pixeldefend", "midpoints", "sample")
# lower and upper ends of cells, uint8 (M, C, H, W) both, to images of that shape, uint8 or floating in [0, 1]
Guess: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def named_guess(
    purifier: str, network: PixelCNN | None, seed: int, engine: str, precision: str, threads: int | None
) -> Guess:
    """The guess of this name. network: the density model of those in ``DENSITY``."""
    if purifier == "midpoints" or network is None:
        return midpoints

    def likeliest(lower: Tensor, upper: Tensor) -> Tensor:
        return purify(lower, within=(lower, upper), model=network, engine=engine, precision=precision, threads=threads)

    def drawn(lower: Tensor, upper: Tensor) -> Tensor:
        return sample(
            len(lower),
            model=network,
            seed=seed,
            within=(lower, upper),
            engine=engine,
            precision=precision,
            threads=threads,
        )

    return likeliest if purifier == "pixeldefend" else drawn


def near_estimate(guess: Guess, estimate: Estimate) -> Guess:
    """The guess within the part of each cell that is near the estimate from all cells."""
    return lambda lower, upper: guess(*estimate.near(lower, upper))


def recipe_of(
    purifier: str, network: PixelCNN, seed: int, arithmetic: dict[str, str], near: Estimate | None = None
) -> Recipe:
    """All that guesses depend on besides their cells. arithmetic: what decodes round by. near: what they are near."""
    versions = {"pxfast": __version__, "torch": torch.__version__}
    made = {"model": model_fingerprint(network), **arithmetic, **versions}
    options: dict[str, Any] = {"seed": seed} if purifier == "sample" else {}
    if near is not None:
        options |= {"near": digest(*near.coefficients), "error": near.error}
    return {"guess": purifier, **made, **options}


def kept_guess(guess: Guess, store: Store, width: int, recipe: Recipe) -> Guess:
    """The guess, of images at all ``width`` offsets each, which are kept and found in the store."""

    def found(lower: Tensor, upper: Tensor) -> Tensor:
        pairs = list(zip(lower.split(width), upper.split(width), strict=True))
        recipes = [{**recipe, "cells": digest(*pair)} for pair in pairs]
        entries = [store.read(each) for each in recipes]
        missing = [number for number, entry in enumerate(entries) if entry is None]
        if missing:
            started = time.perf_counter()
            ends = (torch.cat([pairs[number][end] for number in missing]) for end in (0, 1))
            made = guess(*ends).split(width)
            seconds = (time.perf_counter() - started) / len(missing)
            for number, images in zip(missing, made, strict=True):
                entries[number] = Entry({"images": images}, seconds)
                store.write(recipes[number], Entry({"images": images}, seconds))
        return torch.cat([entry.tensors["images"] for entry in entries if entry is not None])

    return found


def given_images(found: object, like: Tensor) -> Tensor:
    """What a purifier gives, as float32. TypeError or ValueError unless uint8 or floating images of this shape."""
    expected = f"expected the purifier to give images {tuple(like.shape)}, uint8 or floating"
    if not isinstance(found, Tensor):
        raise TypeError(f"{expected}, got {type(found).__name__}")
    if found.dtype != torch.uint8 and not found.is_floating_point():
        raise TypeError(f"{expected}, got {found.dtype}")
    if found.shape != like.shape:
        raise ValueError(f"{expected}, got {tuple(found.shape)}")
    return found.float() / 255.0 if found.dtype == torch.uint8 else found.float()


def checked_guess(guessed: object, lower: Tensor) -> Tensor:
    """Guesses as float32 in [0, 1]. TypeError or ValueError unless images of the cells' shape, in [0, 1] or uint8."""
    images = given_images(guessed, lower)
    if images.numel():
        check_range(images, hint="")
    return images
