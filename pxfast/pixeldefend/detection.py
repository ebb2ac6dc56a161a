"""Detection of images that are unlikely to be clean, by the p-value of their likelihood (PixelDefend, section 3)."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..base.checks import check_choice, check_count, check_flag, check_number, check_path, check_progress, notes_json
from ..base.extras import require
from ..base.files import output_files
from ..base.records import shown
from ..data.images import Array, ImageForm, Images, ImagesT, to_grid
from ..pixelcnn.fingerprint import kept_fingerprint
from ..pixelcnn.likelihood import bits_per_dim, of_log_probs
from ..pixelcnn.network import PixelCNN
from ..pixelcnn.shipped import SHIPPED, Model, model_for
from ..tensors.ambient import in_plain_torch, plain_torch
from ..tensors.safetensors import metadata_json, read_safetensors
from .statistics import STATISTICS, TAILS, permutation_p_values

FORMAT = "pxfast-detector"
LIKELIHOOD = "log-likelihood"
FIT_FIRST = "call fit(train_images) first, in Python; its save(FILE) makes what pxfast detect --detector takes"

Scores: TypeAlias = Tensor | Array


class Detector:
    """A test of the hypothesis that an image is drawn from the distribution of the training images.

    Its statistic is log p(X) under a density model, which adversarial and noisy images lower; see :meth:`p_value`.
    :meth:`fit` computes the log-likelihoods of the training images. For the shipped models they are shipped, and
    nothing has to be fitted.

    model: as :func:`pxfast.purify` takes it; with None a detector that is not fitted takes the shipped model of the
    images' shape, and one that is fitted the model that it was fitted with. clip: of all images, as
    :func:`pxfast.purify` has it. Images on a GPU are judged there.
    statistic: what is compared: 'log-likelihood'; 'spread', the variance of the surprise over the sub-pixels; 'rare',
    the share of sub-pixels whose surprise is more than 8 bits; or 'block', the largest mean surprise of a block of 4x4
    pixels (:mod:`pxfast.pixeldefend.statistics`). All but the first are negated, so that the smaller is the stranger;
    for them a detector has to be fitted. tail: 'lower', or 'both': values that are too large are suspicious as well.
    log_likelihoods: None, or log p(X_i) in nats of the training images, in their order: (N,) float32; the values of the
    statistic, where that is another. The p-value compares with a log-likelihood of the same precision. Up to its
    rounding log p(X) also depends on the machine and the batch, so that an image may lose a tie with itself.

    Raises TypeError for a model, clip, statistic or tail of another type; ValueError for an unknown name of a model,
    statistic or tail, and for a file that is no model; FileNotFoundError for a path that does not exist.
    """

    def __init__(
        self, model: Model | None = None, *, clip: bool = False, statistic: str = LIKELIHOOD, tail: str = "lower"
    ) -> None:
        self.clip: bool = check_flag("clip", clip)
        self.statistic: str = check_choice("statistic", statistic, tuple(STATISTICS))
        self.tail: str = check_choice("tail", tail, TAILS)
        self.model: PixelCNN | None = SHIPPED.resolve(model)
        self.log_likelihoods: Tensor | None = None
        self._fingerprint: str | None = None  # of the weights that gave the log-likelihoods

    def fit(
        self, train_images: Images, *, batch_size: int = 64, progress: bool | Callable[[int], None] = False
    ) -> Detector:
        """Compute and keep the log-likelihoods of the training images; earlier ones are forgotten. Returns itself.

        train_images: (N, C, H, W), N > 0, as :func:`pxfast.purify` takes them; the model should have been trained on
        them or on their like. batch_size, progress: as :func:`pxfast.log_prob` has them.
        Raises TypeError or ValueError for bad input.
        """
        fitted = Detector(self.model, clip=self.clip, statistic=self.statistic).partial_fit(
            train_images, batch_size=batch_size, progress=progress
        )
        self.model, self.log_likelihoods = fitted.model, fitted.log_likelihoods
        self._fingerprint = fitted._fingerprint
        return self

    @in_plain_torch
    def partial_fit(
        self, train_images: Images, *, batch_size: int = 64, progress: bool | Callable[[int], None] = False
    ) -> Detector:
        """As :meth:`fit`, but more training images are added to those already there."""
        grid, _ = to_grid(train_images, keep_device=True, clip=self.clip)
        if len(grid) == 0:
            raise ValueError("expected at least one training image, got none")
        model = model_for(self.model, grid.shape[1:])
        fingerprint = kept_fingerprint(model)
        if self.log_likelihoods is not None:
            self._check_fingerprint(fingerprint)
        found = self._measure(grid, model, batch_size, progress)
        known = () if self.log_likelihoods is None else (self.log_likelihoods,)
        self.model, self.log_likelihoods, self._fingerprint = model, torch.cat((*known, found)), fingerprint
        return self

    @in_plain_torch
    def bits_per_dim(
        self, images: ImagesT, *, batch_size: int = 64, progress: bool | Callable[[int], None] = False
    ) -> ImagesT:
        """Bits/dim of each image, -log2 p(X) / (C H W): the larger, the more suspicious.

        It orders images as the lower p-value of the log-likelihood does, the other way round, without its N + 1 steps:
        what :func:`roc_curve` needs. images, result and errors are those of :func:`pxfast.bits_per_dim`: (N,) float32.
        No fit is needed.
        """
        return bits_per_dim(images, model=self.model, batch_size=batch_size, clip=self.clip, progress=progress)

    @in_plain_torch
    def p_value(
        self, images: ImagesT, *, batch_size: int = 64, progress: bool | Callable[[int], None] = False
    ) -> ImagesT:
        """The permutation p-value of each image, (1 + #{i : p(X_i) <= p(X)}) / (N + 1): the smaller, the stranger.

        With ``tail='both'`` it is min(1, 2 min(lower, upper)): lower as above, and upper with p(X_i) >= p(X); ties
        count in both. With another statistic than the log-likelihood T(X_i) and T(X) stand for p(X_i) and p(X).
        For images from the training images' distribution the lower one is uniform, and that of both tails is at most a
        with a probability of at most a; it is at least 1 / (N + 1). images: as :func:`pxfast.purify` takes them; the
        result is of the same library and on the same device: (N,) float64, or 0-d for a single (C, H, W) image; float32
        on an Apple GPU, which has no float64.
        Raises TypeError or ValueError for bad input, ValueError when the model's weights are no longer those that gave
        the log-likelihoods, and RuntimeError when there are no log-likelihoods of the model.
        """
        values, form = self._p_values(images, batch_size, progress)
        return form.per_image(values)

    @in_plain_torch
    def is_adversarial(
        self,
        images: ImagesT,
        alpha: float = 0.05,
        *,
        batch_size: int = 64,
        progress: bool | Callable[[int], None] = False,
    ) -> ImagesT:
        """Whether each image's p-value is at most ``alpha``: (N,) bool, as :meth:`p_value` has it.

        Images from the training images' distribution are called adversarial with a probability of at most ``alpha``.
        Raises what :meth:`p_value` raises, and TypeError or ValueError for an alpha outside (0, 1) or less than every
        p-value that the training images allow.
        """
        return self.judge(images, alpha, batch_size=batch_size, progress=progress)[1]

    @in_plain_torch
    def judge(
        self,
        images: ImagesT,
        alpha: float = 0.05,
        *,
        batch_size: int = 64,
        progress: bool | Callable[[int], None] = False,
    ) -> tuple[ImagesT, ImagesT]:
        """:meth:`p_value` and :meth:`is_adversarial` of each image, for the work of one of them."""
        alpha = check_number("alpha", alpha, 0.0, 1.0, ends="()")
        values, form = self._p_values(images, batch_size, progress, alpha)
        return form.per_image(values), form.per_image(values <= alpha)

    def save(self, path: str | os.PathLike[str], *, force: bool = False, notes: dict[str, Any] | None = None) -> None:
        """Write the log-likelihoods and the fingerprint of the model's weights (safetensors), whole or not at all.

        The model itself is not in the file. notes: JSON-able facts kept in the metadata. Raises RuntimeError before
        :meth:`fit`, and FileExistsError when ``path`` exists and ``force`` is off.
        """
        if self.model is None or self.log_likelihoods is None:
            raise RuntimeError("this detector is not fitted: call fit(train_images) first")
        metadata = {
            "format": FORMAT,
            "fingerprint": str(self._fingerprint),
            "image_shape": json.dumps([self.model.config.channels, *self.model.config.image_size]),
            "notes": notes_json(notes),
        }
        if self.statistic != LIKELIHOOD:
            metadata["statistic"] = json.dumps(self.statistic)
        if self.tail != "lower":
            metadata["tail"] = json.dumps(self.tail)
        with output_files(path, force=force) as (temporary,):
            save_file({_tensor_name(self.statistic): self.log_likelihoods}, temporary, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Model | None = None, *, clip: bool = False) -> Detector:
        """A detector that :meth:`save` wrote, for the same model, with its statistic and its tail.

        model, clip: as :func:`pxfast.purify` takes them. Raises FileNotFoundError, or ValueError when the file is
        truncated or foreign, or holds the log-likelihoods of another model.
        """
        log_likelihoods, fingerprint, image_shape, statistic, tail = _read(check_path("path", path))
        try:
            fitted = model_for(model, image_shape)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None
        if kept_fingerprint(fitted) != fingerprint:
            raise ValueError(
                f"{os.fspath(path)} holds the log-likelihoods of another model; fit a detector of this one"
            )
        detector = cls(fitted, clip=clip, statistic=statistic, tail=tail)
        detector.log_likelihoods, detector._fingerprint = log_likelihoods, fingerprint
        return detector

    def __repr__(self) -> str:
        model = "by image shape" if self.model is None else self.model.config
        fitted = "not fitted" if self.log_likelihoods is None else f"{len(self.log_likelihoods)} training images"
        other = "" if (self.statistic, self.tail) == (LIKELIHOOD, "lower") else f"{self.statistic}, {self.tail} tail; "
        return f"Detector(model={model}; {other}{fitted})"

    def _p_values(
        self, images: ImagesT, batch_size: int, progress: bool | Callable[[int], None], alpha: float = 1.0
    ) -> tuple[Tensor, ImageForm[ImagesT]]:
        """The p-values (M,) float64 of M images, on the CPU, and the form of the images. alpha: which they may meet."""
        grid, form = to_grid(images, keep_device=True, clip=self.clip)
        model = model_for(self.model, grid.shape[1:])
        if self.log_likelihoods is None:
            if self.statistic != LIKELIHOOD:
                raise RuntimeError(
                    f"this detector is not fitted, and no {self.statistic} of training images is shipped: {FIT_FIRST}"
                )
            known = shipped_log_likelihoods(model)
        else:
            self._check_fingerprint(kept_fingerprint(model))
            known = self.log_likelihoods
        least = (1.0 if self.tail == "lower" else 2.0) / (len(known) + 1)  # of all p-values, as they are computed
        if alpha < min(least, 1.0):
            many = f"with {len(known)} training images"
            raise ValueError(f"no p-value is at most alpha = {alpha:g} {many}: use more of them")
        found = self._measure(grid, model, batch_size, progress)
        return permutation_p_values(known, found, self.tail), form

    def _measure(
        self, grid: Tensor, model: PixelCNN, batch_size: int, progress: bool | Callable[[int], None]
    ) -> Tensor:
        """The statistic of uint8 images (N, C, H, W) in the precision in which it is kept and compared."""
        batch_size, progress = check_count("batch_size", batch_size, 1), check_progress(progress)
        found = of_log_probs(grid, model, batch_size, progress, STATISTICS[self.statistic]).float()
        if found.isnan().any():
            raise ValueError("the model gives log-likelihoods that are not a number: it is broken")
        return found

    def _check_fingerprint(self, fingerprint: str) -> None:
        if fingerprint != self._fingerprint:
            raise ValueError(
                "the model's weights have changed since the log-likelihoods of the training images were computed: "
                "call fit(train_images) again"
            )


def _tensor_name(statistic: str) -> str:
    """What a detector's file calls the training images' values: an older pxfast refuses those of another statistic."""
    return "log_likelihoods" if statistic == LIKELIHOOD else "values"


def _read(path: Path) -> tuple[Tensor, str, tuple[int, ...], str, str]:
    """Values, fingerprint, (C, H, W), statistic and tail of a detector file. ValueError names it and what is wrong."""
    tensors, metadata = read_safetensors(path, FORMAT)
    chosen = []
    for key, known in (("statistic", tuple(STATISTICS)), ("tail", TAILS)):
        value = metadata_json(metadata, key, path) if key in metadata else known[0]
        if value not in known:
            raise ValueError(f"{path}: {key} in its metadata must be one of {', '.join(known)}, got {shown(value)}")
        chosen.append(value)
    statistic, tail = chosen
    name = _tensor_name(statistic)
    if tensors.keys() != {name} or "fingerprint" not in metadata:
        raise ValueError(f"{path} is not a whole detector file: it needs {name} and a fingerprint alone")
    image_shape, fingerprint = metadata_json(metadata, "image_shape", path), metadata["fingerprint"]
    if not isinstance(image_shape, list) or len(image_shape) != 3 or not all(type(side) is int for side in image_shape):
        raise ValueError(f"{path}: image_shape in its metadata must be (C, H, W), got {shown(image_shape)}")
    found = tensors[name]
    if found.dtype != torch.float32 or found.ndim != 1 or len(found) == 0 or found.isnan().any():
        raise ValueError(
            f"{path}: expected log-likelihoods (N,) float32, N > 0, found {found.dtype} {tuple(found.shape)}"
        )
    return found, fingerprint, tuple(image_shape), statistic, tail


def shipped_log_likelihoods_path(name: str) -> Path:
    """Where the training images' log-likelihoods of the model shipped under ``name`` lie, as a detector's file."""
    return SHIPPED[name].with_name(f"{name}-train-log-likelihoods.safetensors")


def shipped_log_likelihoods(model: PixelCNN) -> Tensor:
    """The shipped log-likelihoods, (N,) float32, that the model's own weights gave; RuntimeError if there are none."""
    fingerprint = kept_fingerprint(model)
    paths = {name: shipped_log_likelihoods_path(name) for name in SHIPPED}
    present = {name: path for name, path in paths.items() if path.is_file()}
    for path in present.values():
        found, of_weights = _read_once(path, path.stat().st_mtime_ns)
        if of_weights == fingerprint:
            return found
    raise RuntimeError(
        "this detector is not fitted, and no log-likelihoods of training images are shipped for the model's weights "
        f"(only for: {', '.join(present) or 'none'}): {FIT_FIRST}"
    )


@functools.cache
def _read_once(path: Path, changed: int) -> tuple[Tensor, str]:
    """Values and fingerprint of a shipped detector's file, as of the time when it was ``changed``."""
    with plain_torch():
        return _read(path)[:2]


def roc_curve(clean: Scores, suspicious: Scores) -> tuple[Array, Array, Array]:
    """scikit-learn's ROC curve of telling suspicious images from clean ones by their scores.

    clean, suspicious: scores (N,) and (M,), tensors or arrays, larger meaning more suspicious: those of
    :meth:`Detector.bits_per_dim`, or p-values negated. The paper's Figure 6 takes the training images as the clean
    ones.
    Returns false-positive rates, true-positive rates and the thresholds: a score of at least that is called suspicious.
    Needs the extra 'evaluate'. Raises ValueError for other shapes, no scores, or NaN; ImportError without the extra.
    """
    metrics = require("sklearn.metrics", "evaluate")
    rates: tuple[Array, Array, Array] = metrics.roc_curve(*_labels_and_scores(clean, suspicious))
    return rates


def roc_auc_score(clean: Scores, suspicious: Scores) -> float:
    """The area under :func:`roc_curve`: the probability that a suspicious image scores above a clean one, ties half."""
    metrics = require("sklearn.metrics", "evaluate")
    return float(metrics.roc_auc_score(*_labels_and_scores(clean, suspicious)))


def _labels_and_scores(clean: Scores, suspicious: Scores) -> tuple[Array, Array]:
    try:
        scores = [np.asarray(torch.as_tensor(each).detach().cpu().double()) for each in (clean, suspicious)]
    except (TypeError, ValueError, RuntimeError) as error:
        kinds = " and ".join(type(each).__name__ for each in (clean, suspicious))
        raise TypeError(f"expected scores (N,) and (M,), tensors or arrays of numbers, got {kinds}: {error}") from None
    if any(each.ndim != 1 or len(each) == 0 or np.isnan(each).any() for each in scores):
        shapes = " and ".join(str(each.shape) for each in scores)
        raise ValueError(f"expected scores (N,) and (M,), N, M > 0, without NaN, got {shapes}")
    return np.repeat([0, 1], [len(each) for each in scores]), np.concatenate(scores)
