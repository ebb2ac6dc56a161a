"""Training a classifier behind a defence: it sees what the defence makes of the training images.

Two kinds are known. A defence by name, as :func:`pxfast.defences.parse_defence` reads it ('purifier:eps=16'): the
classifier is trained on clean images, on what the defence makes of them, and on what it makes of them once they were
attacked. And the cells of a certificate ('cells:width=64', :func:`pxfast.certify`): it is trained on guesses of the
images from their cells, at offsets that are drawn for each image.

What a defence makes of the training images is computed once, in blocks, each of which is kept in a folder. A killed run
finds them there, and so does another training of the same images behind the same defence.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..base.checks import check_between, check_choice, check_path, check_text
from ..base.files import AnyPath, check_output_folder
from ..base.machine import torch_instructions
from ..base.progress import progress_of
from ..base.version import __version__
from ..classifiers.adversarial import attacked, draw_eps
from ..classifiers.classifier import Classifier
from ..classifiers.training import ADVERSARIES, ClassifierSettings, train_classifier
from ..engines.arithmetic import arithmetic_of
from ..engines.choosers import uniforms
from ..pixelcnn.fingerprint import model_fingerprint
from ..pixelcnn.network import PixelCNN
from ..pixelcnn.shipped import SHIPPED, model_for
from ..pixeldefend.cells import DITHERS, MOST_WIDTH, cells, midpoints, shifts
from ..pixeldefend.purify import Purifier, purify
from ..tensors.seeds import derived_seeds
from ..tensors.store import Entry, Recipe, Store, digest
from ..training.processes import Processes
from .named import parse_defence, parse_settings
from .weights import classifier_key

BLOCK = 256  # images that are computed and kept together
CELLS = "cells"
GUESSES = ("pixeldefend", "midpoints")
MOST_OFFSETS = 256


class Front(Protocol):
    """What stands in front of a classifier.

    passes: how often a training image goes through it, each time in another way. attackable: whether attacked images
    go through it as well.
    """

    passes: int
    attackable: bool

    def recipe(self, image_shape: tuple[int, ...]) -> Recipe:
        """All that its images depend on besides the given ones and their numbers."""
        ...

    def __call__(self, images: Tensor, numbers: Tensor, at: int) -> Tensor:
        """What the classifier sees of uint8 images (N, C, H, W). numbers: theirs, int64 (N,); at: of the pass."""
        ...


class InFront:
    """A defence by name."""

    passes: int = 1
    attackable: bool = True

    def __init__(self, text: str, threads: int | None) -> None:
        self.defence: nn.Module = parse_defence(text)
        if isinstance(self.defence, Purifier) and self.defence.threads is None:
            self.defence.threads = threads

    def recipe(self, image_shape: tuple[int, ...]) -> Recipe:
        return {"defence": classifier_key(self.defence, image_shape)}

    def __call__(self, images: Tensor, numbers: Tensor, at: int) -> Tensor:
        seen: Tensor = self.defence(images)
        return seen


class InCells:
    """Guesses of images from their cells, at ``offsets`` offsets for each image."""

    attackable: bool = False

    def __init__(self, settings: str, seed: int, threads: int | None) -> None:
        known = ["width", "guess", "dither", "offsets", "model"]
        given = parse_settings((part for part in settings.split(",") if part), known)
        if "width" not in given:
            raise ValueError(f"expected {CELLS}:width=W with a width in grey levels, got {CELLS}:{settings}")
        self.width: int = check_between("width", given["width"], 1, MOST_WIDTH)  # type: ignore[arg-type]
        self.guess: str = check_choice("guess", str(given.get("guess", "pixeldefend")), GUESSES)
        self.dither: str = check_choice("dither", str(given.get("dither", "lattice")), DITHERS)
        self.passes: int = check_between("offsets", given.get("offsets", 1), 1, MOST_OFFSETS)  # type: ignore[arg-type]
        self.model: PixelCNN | None = SHIPPED.resolve(None if "model" not in given else str(given["model"]))
        self.seed: int = seed
        self.threads: int | None = threads

    def recipe(self, image_shape: tuple[int, ...]) -> Recipe:
        recipe: Recipe = {"cells": self.width, "guess": self.guess, "dither": self.dither, "seed": self.seed}
        if self.guess == "pixeldefend":
            recipe |= {"model": model_fingerprint(model_for(self.model, image_shape)), **arithmetic_of()}
        return recipe

    def __call__(self, images: Tensor, numbers: Tensor, at: int) -> Tensor:
        drawn = np.floor(uniforms(self.seed, numbers.numpy().astype(np.uint64), at) * self.width).astype(np.int64)
        v = shifts(tuple(images.shape[1:]), self.width, self.dither)  # type: ignore[arg-type]
        starts = torch.from_numpy(drawn)[:, None, None, None] + v
        lower, upper = cells(images, self.width, starts)
        if self.guess == "midpoints":
            # by at most half a level off what a certificate shows, which is not rounded
            return (255.0 * midpoints(lower, upper)).round().to(torch.uint8)
        return purify(lower, within=(lower, upper), model=self.model, threads=self.threads)


def parse_front(text: str, *, seed: int = 0, threads: int | None = None) -> Front:
    """'NAME:SETTING=VALUE,...' as what stands in front of a classifier.

    NAME: a defence's, with its settings, or 'cells', with ``width`` (grey levels, 1..1024; needed), ``guess``
    ('pixeldefend' or 'midpoints'), ``dither`` ('lattice' or 'random', of seed 0), ``offsets`` (of each training image,
    1..256) and ``model``. seed: of the offsets. threads: of a purifier that does not say its own. Raises what
    :func:`pxfast.defences.parse_defence` raises.
    """
    name, _, settings = check_text("behind", text).partition(":")
    return InCells(settings, seed, threads) if name == CELLS else InFront(text, threads)


class Prepared:
    """The training images of a classifier behind a defence: see :class:`pxfast.classifiers.training.Preparation`.

    settings: of the training, with ``behind``. keep: the folder of what was computed. threads: of the purifier; None:
    the engine's own choice. device: where the classifier that is attacked computes. progress: show a bar.
    """

    def __init__(
        self,
        settings: ClassifierSettings,
        keep: AnyPath,
        *,
        threads: int | None = None,
        device: torch.device | str = "cpu",
        progress: bool = True,
    ) -> None:
        if settings.behind is None:
            raise ValueError("expected settings with behind, got None there")
        self.settings: ClassifierSettings = settings
        self.front: Front = parse_front(settings.behind, seed=settings.seed, threads=threads)
        if settings.adversary in ADVERSARIES and not self.front.attackable:
            raise ValueError(f"adversary {settings.adversary!r}: images in cells are not attacked; leave it out")
        if settings.consistency and (self.front.attackable or self.front.passes < 2):
            expected = f"expected {CELLS}:...,offsets=2 or more"
            raise ValueError(f"consistency needs versions of each image: {expected}, got {settings.behind}")
        self.versions: int = 1 if self.front.attackable else self.front.passes
        check_output_folder(check_path("keep", keep))
        self.store: Store = Store(keep)
        self.device: torch.device | str = device
        self.progress: bool = progress

    def training(self, images: Tensor, labels: Tensor, start: Classifier | None) -> tuple[Tensor, Tensor]:
        """Images uint8 (M, C, H, W) and labels (M,) to train on, of a data set's (N, C, H, W) and (N,).

        Behind a defence: the clean images, what it makes of them, and what it makes of attacked ones where ``start`` is
        a classifier and the settings do not say otherwise. In cells: the guesses at each of the offsets.
        """
        chosen = self._chosen(len(images))
        images, labels = images[chosen], labels[chosen]
        groups = [self._through(images, chosen, at) for at in range(self.front.passes)]
        if self.front.attackable:
            groups.insert(0, images)
            name = self.settings.adversary or ("bim" if start is not None else "none")
            if name != "none" and start is not None:
                groups.append(self._through(images, chosen, 0, adversary=name, start=start.to(self.device)))
        return torch.cat(groups), labels.repeat(len(groups))

    def seen(self, images: Tensor) -> Tensor:
        """What the classifier sees of each image when it is used: uint8, of the images' shape."""
        return self._through(images, torch.arange(len(images)), 0)

    def _chosen(self, count: int) -> Tensor:
        """The numbers of the training images that are used."""
        most = self.settings.behind_images
        if most is None or most >= count:
            return torch.arange(count)
        generator = torch.Generator().manual_seed(self.settings.seed)
        return torch.randperm(count, generator=generator)[:most].sort().values

    def _through(
        self, images: Tensor, numbers: Tensor, at: int, *, adversary: str = "none", start: Classifier | None = None
    ) -> Tensor:
        """Images through what stands in front, block by block, each found in the store or kept there."""
        recipe: Recipe = {
            "behind": self.front.recipe(tuple(images.shape[1:])),
            "pass": at,
            "adversary": adversary,
            "pxfast": __version__,
            "torch": torch.__version__,
        }
        if start is not None:
            recipe |= {"attacked": classifier_key(start, tuple(images.shape[1:])), "delta": self.settings.delta}
            recipe |= {"seed": self.settings.seed, "processor": torch_instructions(self.device)}
        results = []
        with progress_of(len(images), shown=self.progress) as shown:
            shown.entitle("in front of the classifier" if start is None else f"{adversary}, then the same")
            for block, own in zip(images.split(BLOCK), numbers.split(BLOCK), strict=True):
                key = {**recipe, "images": digest(block, own)}
                entry = self.store.read(key)
                if entry is None or entry.tensors["images"].shape != block.shape:
                    started = time.perf_counter()
                    given = block if start is None else self._attacked(block, own, adversary, start)
                    entry = Entry({"images": self.front(given, own, at)}, time.perf_counter() - started)
                    self.store.write(key, entry)
                results.append(entry.tensors["images"])
                shown.advance(len(block))
        return torch.cat(results) if results else images

    def _attacked(self, images: Tensor, numbers: Tensor, adversary: str, start: Classifier) -> Tensor:
        """uint8 images attacked with an eps of their own, as adversarial training does, and rounded to the grid."""
        (seed,) = derived_seeds([self.settings.seed], int(numbers[0]))
        eps = draw_eps(len(images), self.settings.delta, torch.Generator().manual_seed(seed)).to(self.device)
        x = images.to(self.device).float() / 255.0
        with attacked(start):
            moved: Tensor = ADVERSARIES[adversary](start, x, eps)
        return (255.0 * moved).round().to(torch.uint8).cpu()


def train_behind(
    dataset: str,
    arch: str,
    root: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    settings: ClassifierSettings,
    keep: AnyPath | None = None,
    threads: int | None = None,
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
    checkpoint_interval: float = 60.0,
    processes: Processes | None = None,
) -> Classifier:
    """Train a classifier on what a defence makes of a data set's training images, and write it to ``out``.

    settings: with ``behind``, see :mod:`pxfast.defences.behind`. The classifier usually starts from one that was
    trained on clean images (``start``), which is attacked too. keep: a folder for what the defence made, which stays
    after the training; None: OUT.purified. threads: of the purifier. dataset, arch, root, resume, force, progress,
    checkpoint_interval, processes: as for :func:`pxfast.classifiers.train_classifier`. The file's notes have the
    accuracy on the clean test images without the defence, and, as ``behind_test_accuracy``, that behind it on the first
    1,000 of them (in cells: at one offset for each image).

    Raises what :func:`pxfast.classifiers.train_classifier` and :func:`parse_front` raise.
    """
    folder = Path(f"{os.fspath(check_path('out', out))}.purified") if keep is None else keep
    device = (processes or Processes()).device
    preparation = Prepared(settings, folder, threads=threads, device=device, progress=progress)
    return train_classifier(
        dataset,
        arch,
        root,
        out,
        settings=settings,
        resume=resume,
        force=force,
        progress=progress,
        checkpoint_interval=checkpoint_interval,
        processes=processes,
        preparation=preparation,
    )
