"""``pxfast tune``: the tiles of the Triton kernels, measured on the GPU at hand."""

from __future__ import annotations

from .options import BatchSizeOption, JsonOption, NetworkOption, PrecisionOption, QuietOption, settled


def tune(
    network: NetworkOption = None,
    precision: PrecisionOption = "auto",
    batch_size: BatchSizeOption = 1024,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure the Triton kernels' tiles on this machine's GPU and keep the fastest for this user.

    They are tried on paper-cifar10, unless networks are given, in bf16, unless --precision says otherwise; --batch-size
    is a multiple of 16.
    """
    from ..base.streams import note
    from ..engines.benchmark import check_networks
    from ..engines.benchmark import network as load_network
    from ..engines.schedule import schedule_for
    from ..engines.triton_tuning import check_tunable
    from ..engines.triton_tuning import tune as measure
    from .output import print_files

    chosen = settled(precision) or "bf16"
    if batch_size % 16:
        raise ValueError(f"batch-size must be a multiple of 16, got {batch_size}")
    names = network or ["paper-cifar10"]
    check_networks(names)
    check_tunable()
    paths = [
        measure(
            schedule_for(load_network(name)),
            images=batch_size,
            precision=chosen,
            log=lambda line: note(line, quiet=quiet),
        )
        for name in names
    ]
    print_files(paths[-1:], as_json=as_json)
