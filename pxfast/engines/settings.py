"""How an engine decodes: threads, order of evaluation, instructions."""

from __future__ import annotations

import dataclasses

from ..base.checks import check_integer
from ..base.environment import ORDERS

MOST_THREADS = 2**16


@dataclasses.dataclass(frozen=True)
class DecodeSettings:
    """How an engine decodes; what is None is as the environment says (:mod:`pxfast.base.environment`).

    An engine ignores what it has no use for. threads: of the CPU engine, at least 1. order: 'sequential', 'speculative'
    or 'auto', of the compiled engines. isa: the CPU engine's instruction set, by a name that ``pxfast info`` lists.
    team: blocks of the CUDA engine that decode images together, at least 1. clusters: whether its blocks share weights
    in clusters. wgmma: whether its bf16 row steps may use wgmma.

    threads, order, team and clusters change no bit of a result; isa and wgmma may. Raises TypeError or ValueError for
    other values.
    """

    threads: int | None = None
    order: str | None = None
    isa: str | None = None
    team: int | None = None
    clusters: bool | None = None
    wgmma: bool | None = None

    def __post_init__(self) -> None:
        for name in ("threads", "team"):
            value = getattr(self, name)
            if value is not None and check_integer(name, value, MOST_THREADS) == 0:
                raise ValueError(f"{name} must be at least 1, got 0")
        if self.order is not None and self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {self.order!r}")


DEFAULTS = DecodeSettings()
