"""``pxfast bench``."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def bench(
    network: Annotated[
        list[str] | None,
        typer.Option(help="paper-cifar10, paper-fashion-mnist or shipped-NAME; may be repeated. Default: all."),
    ] = None,
    precision: Annotated[list[str] | None, typer.Option(help="bf16 or fp32; may be repeated. Default: both.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images decoded at once.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Decodes per row; the median counts.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a row.")] = False,
) -> None:
    """Measure images/s here, beside what the machine's own matrix products would allow."""
    import dataclasses

    from ..engines import benchmark

    rows = []
    for name in network or benchmark.NETWORKS:
        for each in precision or ("bf16", "fp32"):
            row = benchmark.measure(name, precision=each, batch=batch, rounds=rounds)
            rows.append(row)
            if as_json:
                print(json.dumps(dataclasses.asdict(row)), flush=True)
    if not as_json:
        print(benchmark.table(rows))
