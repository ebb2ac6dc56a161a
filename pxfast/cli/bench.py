"""``pxfast bench``."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import BatchSizeOption, JsonOption, NetworkOption, PrecisionOption, QuietOption, ThreadsOption

MOST_IMAGES = 1 << 16  # that are decoded at once; more of them tell nothing of the engine


def bench(
    network: NetworkOption = None,
    precision: PrecisionOption = "auto",
    batch_size: BatchSizeOption = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Decodes per row; the median counts.")] = 3,
    isa: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="An instruction set that 'pxfast info' lists; may be repeated. Default: the best one."
        ),
    ] = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure the CPU engine's images/s here, beside what the machine's own matrix products would allow.

    A row for each network, by default all of them, for each instruction set, and for each precision, by default both.
    Torch's products, the limit, are held to the same instruction set.
    """
    import dataclasses
    import itertools

    from ..base.checks import PRECISIONS, check_between, check_precision
    from ..base.progress import progress_of
    from ..engines import benchmark
    from ..engines.cpu import isa_of
    from ..engines.registry import select
    from ..engines.settings import DecodeSettings
    from .output import print_json

    check_between("batch-size", batch_size, 1, MOST_IMAGES)
    isas: list[str | None] = [*isa] if isa else [None]
    ways = [DecodeSettings(threads=threads, isa=each) for each in isas]
    names = network or benchmark.NETWORKS
    benchmark.check_networks(names)
    select("cpu")
    for way in ways:
        isa_of(way)
    precisions = PRECISIONS if check_precision(precision) == "auto" else (precision,)
    rows = []
    with progress_of(len(names) * len(ways) * len(precisions), "row", shown=not quiet, leave=False) as progress:
        for name, way, each in itertools.product(names, ways, precisions):
            progress.entitle(", ".join(filter(None, (name, way.isa, each))))
            rows.append(benchmark.measure(name, precision=each, batch=batch_size, rounds=rounds, settings=way))
            progress.advance()
    if as_json:
        print_json([{**dataclasses.asdict(row), "yardstick_disturbed": row.fraction_of_limit > 1} for row in rows])
    else:
        print(benchmark.table(rows))
