"""``pxfast tune``: the tiles of the Triton kernels, measured on the GPU at hand."""

from __future__ import annotations

from typing import Annotated

import typer


def tune(
    network: Annotated[str, typer.Option(help="paper-cifar10, paper-fashion-mnist or shipped-NAME.")] = "paper-cifar10",
    precision: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    images: Annotated[int, typer.Option(min=16, help="Images decoded at once; a multiple of 16.")] = 1024,
) -> None:
    """Measure the Triton kernels' tiles on this machine's GPU and keep the fastest for this user."""
    from ..base.checks import PRECISIONS
    from ..engines.benchmark import network as load_network
    from ..engines.schedule import schedule_for
    from ..engines.triton_tuning import tune as measure

    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if images % 16:
        raise ValueError(f"images must be a multiple of 16, got {images}")
    path = measure(schedule_for(load_network(network)), images=images, precision=precision)
    print(f"kept in {path}")
