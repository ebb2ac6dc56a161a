"""Computing a table: each cell by itself, or each row by the protocol; its file is written anew after each."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import nn

from ..base.checks import check_flag, check_instance, check_path, check_text
from ..base.files import claimed, made_folder
from .judged_table import judge_table
from .preflight import check_libraries, check_table
from .preparation import Prepared, Settings, prepare
from .request import judged_columns
from .results import Table, table_path, write_table
from .specification import TableSpecification
from .table_run import TableRun, earlier_table, progress_bars


def evaluate_table(
    specification: TableSpecification,
    root: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    rows: list[str] | None = None,
    columns: list[str] | None = None,
    classifier: nn.Module | None = None,
    surrogates: Mapping[str, nn.Module] | None = None,
    progress: bool = False,
) -> Table:
    """Compute a table's cells, and write them to ``out``/tables/NAME.json after each; give the table.

    specification: of the table. root: torchvision's root folder. out: the output folder, made when it isn't there.
    settings: None for the defaults. rows, columns: names of those to compute; None: all. progress: show bars.

    A specification with ``runs`` is judged row by row by the protocol of :func:`pxfast.referee`, and only here, in this
    process: each row's number is every image under the attack that is strongest on it. Its columns may be attacks with
    options, too, such as 'bpda:steps=20'; the rows of the classifiers without a defence are always there. classifier:
    instead of the rows' own. surrogates: other classifiers by name, whose adversarial images are tried as well. Both
    are modules in eval mode of floating images (N, C, H, W) in [0, 1] to logits, and need such a specification.

    What an earlier run of the same settings wrote for other rows, and but for ``runs`` other columns, stays in the
    file; a table of other settings is replaced, since the store still has everything it was made of.
    Raises ValueError, TypeError or FileNotFoundError for bad input, BlockingIOError where another process computes the
    same table.
    """
    check_instance("specification", specification, TableSpecification)
    settings = Settings() if settings is None else check_instance("settings", settings, Settings)
    check_path("out", out)
    check_flag("progress", progress)
    others = {
        check_text("surrogates", name): check_instance(name, network, nn.Module)
        for name, network in (surrogates or {}).items()
    }
    if specification.runs is None:
        if classifier is not None or others:
            raise ValueError(f"classifier and surrogates need a table with runs, and {specification.name} has none")
        chosen = specification.chosen(rows, columns)
    else:
        if settings.runner != "local":
            raise ValueError(f"the protocol runs here: runner must be 'local', got {settings.runner!r}")
        if classifier is not None:
            check_instance("classifier", classifier, nn.Module)
        specification = judged_columns(specification, columns)
        chosen = specification.chosen(rows, None)
    check_libraries(settings.runner)
    check_table(chosen, out)
    if specification.runs is None:
        return compute(specification, chosen, prepare(chosen, root, out, settings, progress), out, progress)
    return judge_table(
        specification, root, out, settings, rows=rows, classifier=classifier, surrogates=others, progress=progress
    )


def compute(
    specification: TableSpecification,
    chosen: TableSpecification,
    prepared: Prepared,
    out: str | os.PathLike[str],
    progress: bool,
) -> Table:
    """Compute the cells of ``chosen``, those of a table's rows and columns that are wanted; see :func:`evaluate_table`.

    prepared: what they are computed from.
    """
    path = table_path(out, specification.name)
    with made_folder(path.parent), claimed(path):  # two runs of other cells would each drop the other's
        run = TableRun(specification, prepared)
        run.adopt(earlier_table(specification, out), chosen)
        places = list(run.places(chosen))
        with progress_bars(prepared.pipeline, len(places), progress) as cells:
            write_table(out, run.table())
            for row, column, eps in places:
                cells.entitle(f"{row.name}, {column.name}" + ("" if eps is None else f", eps {eps}"))
                run.compute(row, column, eps)
                run.renew_strongest()
                write_table(out, run.table())
                cells.advance()
        return run.table()
