"""Which parts of the machine a command uses: --threads, --device and --engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def use_threads(threads: int | None) -> None:
    """Let torch use so many threads in this process; None: as they are. Engines have an argument of their own."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def engine_on(device: str, engine: str) -> str:
    """The name of the engine to use on a device: ``engine`` itself, or for 'auto' the best one that runs there.

    device: 'auto' leaves the choice to the engine; 'cuda:N' becomes torch's current GPU, by whose name results are
    kept. Raises ValueError or RuntimeError for an unknown device or engine, and for an engine that does not run on this
    device.
    """
    import torch

    from ..base.machine import parse_device
    from ..engines.registry import check_engine, select

    place = parse_device(device)
    if place.index is not None:
        torch.cuda.set_device(place)
    return check_engine(engine) if device == "auto" else select(engine, gpu=place.type == "cuda", device=place).name


def parse_defences(
    texts: list[str],
    *,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    **settings: Any,
) -> list[nn.Module]:
    """Defences by name with their settings. engine, precision, threads: of purifiers that do not say theirs.

    settings: of the only defence, where they are not None. Raises ValueError for settings of several defences, and what
    :func:`pxfast.defences.named.parse_defence` raises.
    """
    from ..base.checks import check_precision
    from ..defences.named import parse_defence
    from ..pixeldefend.purify import Purifier

    given = {name: value for name, value in settings.items() if value is not None}
    if given and len(texts) > 1:
        raise ValueError(f"which defence's is --{next(iter(given))}? Write it as NAME:SETTING=VALUE in its --defence")
    defences = [parse_defence(text, **given) for text in texts]
    for defence in defences:
        if isinstance(defence, Purifier):
            if defence.engine == "auto":
                defence.engine = engine
            if defence.precision == "auto":
                defence.precision = check_precision(precision)
            if defence.threads is None:
                defence.threads = threads
    return defences
