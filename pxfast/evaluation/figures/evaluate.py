"""The paper's figures from what the tables left in the store, and whatever is missing of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from matplotlib import rc_context

from ...base.checks import check_count
from ...base.files import claimed, made_folder
from ...base.streams import shown_name
from ...data.datasets import TITLES
from ...pixelcnn.shipped import model_for
from ...pixeldefend.sampling import sample
from ...pixeldefend.statistics import permutation_p_values
from ..preflight import check_libraries, check_table
from ..preparation import Settings, prepare
from ..results import figures_folder
from ..specification import TableSpecification
from ..table_run import progress_bars
from . import pictures
from .density import measure_baseline
from .drawing import SHOWN, draw, draw_violins
from .kinds import measure, purified_row, train_log_likelihoods
from .series import DensityMeasurements, Series, nats_to_bits_per_dim

TRAIN_IMAGES = 1000  # that p-values compare with, where no log-likelihoods are shipped
LBFGS_IMAGES = 10  # the paper's Figure 5
EXAMPLE_EPS = {"cifar10": 8, "fashion-mnist": 25}  # the paper's: Figures 1 to 7 and 11; 10


@contextlib.contextmanager
def only_run(specification: TableSpecification, out: str | os.PathLike[str]) -> Iterator[None]:
    """Be the only process that draws a table's figures: two would leave some of each."""
    folder = figures_folder(out)
    with made_folder(folder), claimed(folder / specification.name):
        yield


def check_figures(
    specification: TableSpecification,
    out: str | os.PathLike[str],
    settings: Settings,
    columns: list[str] | None,
    lbfgs_images: int,
) -> None:
    """What :func:`evaluate_figures` looks at before any work: raises what is wrong with its arguments and libraries."""
    check_libraries(settings.runner, roc=True, lbfgs=lbfgs_images > 0)
    chosen = specification.chosen(None, columns)
    if all(column.attack is None for column in chosen.columns):
        raise ValueError(f"the figures need an attack, got the columns {', '.join(columns or ())} alone")
    check_table(chosen, out)


def evaluate_figures(
    specification: TableSpecification,
    root: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    columns: list[str] | None = None,
    train_images: int = TRAIN_IMAGES,
    lbfgs_images: int = LBFGS_IMAGES,
    lbfgs_starts: int = 1,
    progress: bool = False,
) -> list[Path]:
    """Draw the paper's figures of a table's data set into ``out``/figures, and give their descriptions' paths.

    The attacks are those of the table, or of its ``columns``, on the classifier of its first purified row. root, out,
    settings: as :func:`pxfast.evaluation.run.evaluate_table` has them. train_images: how many training images p-values
    compare with, where none are shipped for the density model. lbfgs_images, lbfgs_starts: of the comparison with
    L-BFGS-B; 0 images: none. Figures of an earlier run are replaced, since the store has all they show.
    """
    for name, value, least in (
        ("train_images", train_images, 1),
        ("lbfgs_images", lbfgs_images, 0),
        ("lbfgs_starts", lbfgs_starts, 1),
    ):
        check_count(name, value, least)
    check_figures(specification, out, settings or Settings(), columns, lbfgs_images)
    with only_run(specification, out):
        row = purified_row(specification)
        chosen = [column for column in specification.chosen(None, columns).columns if column.attack is not None]
        eps = EXAMPLE_EPS.get(specification.dataset)
        if eps not in specification.attack_eps:
            eps = max(specification.attack_eps, default=None)
        prepared = prepare(dataclasses.replace(specification, rows=(row,)), root, out, settings or Settings(), progress)
        if row.name in prepared.missing:
            raise ValueError(prepared.missing[row.name])
        with progress_bars(prepared.pipeline, len(chosen) + 1, progress) as bar:
            kinds = measure(specification, prepared, row, chosen, eps, bar)
            known = train_log_likelihoods(specification.dataset, root, prepared, train_images)
        purify_eps = row.defences[0]["eps"]
        network = model_for(prepared.density, tuple(prepared.images.shape[1:]))
        series = []
        for kind in kinds:
            before, after = kind.bits()
            p_before, p_after = (permutation_p_values(known, each).numpy() for each in kind.log_likelihoods)
            series.append(Series(kind.name, before, p_before, after, p_after))
        images = {kind.name: (kind.given, kind.purified) for kind in kinds}
        measured = DensityMeasurements(
            prepared.images[:SHOWN],
            sample(SHOWN, model=network, seed=specification.seed),
            nats_to_bits_per_dim(known, prepared.images),
            series,
            measure_baseline(
                images, series, network, purify_eps, lbfgs_images, lbfgs_starts, specification.seed, progress
            ),
            {
                "data set": TITLES.get(specification.dataset, shown_name(specification.dataset)),
                "images": len(prepared.images),
                "training images": len(known),
                "attack eps": eps,
                "purification eps": purify_eps,
                "L-BFGS-B starts": lbfgs_starts,
                "seed": specification.seed,
                "density model": prepared.pipeline.context.density,
                "classifier": prepared.classifiers[row.name].key,
            },
        )
        with rc_context(pictures.STYLE):
            return draw(specification, prepared, measured, kinds, out)


def evaluate_violins(
    specification: TableSpecification,
    root: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    progress: bool = False,
) -> Path:
    """Violins of bits/dim by attack, the reproduction's Figure 2, of a table's images before purification.

    Arguments as :func:`evaluate_figures` has them. Returns the path of the figure's description.
    """
    check_libraries((settings or Settings()).runner)
    check_table(specification, out)
    with only_run(specification, out):
        row = purified_row(specification)
        columns = [column for column in specification.columns if column.attack is not None]
        prepared = prepare(dataclasses.replace(specification, rows=(row,)), root, out, settings or Settings(), progress)
        if row.name in prepared.missing:
            raise ValueError(prepared.missing[row.name])
        with progress_bars(prepared.pipeline, len(columns) + 1, progress) as bar:
            kinds = measure(specification, prepared, row, columns, None, bar)
        with rc_context(pictures.STYLE):
            return draw_violins(specification, prepared, kinds, row, out)
