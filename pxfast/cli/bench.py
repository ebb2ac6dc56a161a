"""``pxfast bench``."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import BatchSizeOption, JsonOption, NetworkOption, PrecisionOption, QuietOption, ThreadsOption


def bench(
    network: NetworkOption = None,
    precision: PrecisionOption = "auto",
    batch_size: BatchSizeOption = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Decodes per row; the median counts.")] = 1,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure the CPU engine's images/s here, beside what the machine's own matrix products would allow.

    A row for each network, by default all of them, and for each precision, by default both.
    """
    import dataclasses

    from ..base.checks import PRECISIONS, check_precision
    from ..base.progress import progress_of
    from ..engines import benchmark
    from ..engines.settings import DecodeSettings
    from .output import print_json

    settings = DecodeSettings(threads=threads)
    names = network or benchmark.NETWORKS
    precisions = PRECISIONS if check_precision(precision) == "auto" else (precision,)
    rows = []
    with progress_of(len(names) * len(precisions), "row", shown=not quiet, leave=False) as progress:
        for name in names:
            for each in precisions:
                progress.entitle(f"{name}, {each}")
                rows.append(benchmark.measure(name, precision=each, batch=batch_size, rounds=rounds, settings=settings))
                progress.advance()
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
    else:
        print(benchmark.table(rows))
