"""What the figures show of each kind of images, clean or attacked: from the store, or computed into it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ...base.progress import Progress
from ...data.datasets import first_images, load_dataset
from ...pixelcnn.shipped import model_for
from ...pixeldefend.detection import shipped_log_likelihoods
from ..defences import describe
from ..preparation import Prepared
from ..specification import ColumnSpecification, RowSpecification, TableSpecification
from .series import nats_to_bits_per_dim


@dataclasses.dataclass(frozen=True)
class Kind:
    """Images of one kind, clean or attacked by ``name``, and what became of them.

    given, purified: uint8 (N, C, H, W). log_likelihoods: in nats of both, (N,) float64 each. labels: the classifier's
    of both, (N,) int64 each.
    """

    name: str
    given: Tensor
    purified: Tensor
    log_likelihoods: tuple[Tensor, Tensor]
    labels: tuple[Tensor, Tensor]

    def bits(self) -> tuple[np.ndarray, np.ndarray]:
        """Bits/dim before and after purification, (N,) float64 each."""
        before, after = (nats_to_bits_per_dim(each, self.given) for each in self.log_likelihoods)
        return before, after


def measure(
    specification: TableSpecification,
    prepared: Prepared,
    row: RowSpecification,
    columns: Sequence[ColumnSpecification],
    eps: int | None,
    progress: Progress | None = None,
) -> list[Kind]:
    """Clean images, then those of each column's attack on the row's classifier; purified as the row has it."""
    pipeline, classifier = prepared.pipeline, prepared.classifiers[row.name]
    defences = [describe(defence, pipeline.context) for defence in row.defences]
    kinds = []
    for column in (None, *columns):
        name = "clean" if column is None or column.attack is None else column.attack
        if progress is not None:
            progress.entitle(name)
        given = prepared.images
        if column is not None and column.attack is not None:
            given = pipeline.attacked(
                given,
                prepared.labels,
                classifier,
                column.attack,
                eps if eps in column.eps(specification.attack_eps) else None,
                options=column.options,
                seed=specification.seed,
            ).values
        purified, rest = pipeline.defended(given, defences)
        kinds.append(
            Kind(
                name,
                given,
                purified.values,
                (pipeline.log_likelihoods(given).values, pipeline.log_likelihoods(purified.values).values),
                (
                    pipeline.predicted(given, classifier).values,
                    pipeline.predicted(purified.values, classifier, rest).values,
                ),
            )
        )
        if progress is not None:
            progress.advance()
    return kinds


def purified_row(specification: TableSpecification) -> RowSpecification:
    """The first row whose only defence is a purifier without adaptive rules. ValueError where there is none."""
    for row in specification.rows:
        if [set(defence) for defence in row.defences] == [{"kind", "eps"}]:
            return row
    raise ValueError(f"table {specification.name!r} has no row whose only defence is a purifier")


def train_log_likelihoods(dataset: str, root: str | os.PathLike[str] | None, prepared: Prepared, count: int) -> Tensor:
    """Log-likelihoods of training images, (N,) float32: the model's shipped ones, or else of the first ``count``."""
    try:
        return shipped_log_likelihoods(model_for(prepared.density, tuple(prepared.images.shape[1:])))
    except RuntimeError:
        images, _ = load_dataset(dataset, root, train=True)
        return prepared.pipeline.log_likelihoods(first_images(dataset, images, count)).values.float()
