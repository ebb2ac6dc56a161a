"""How an engine decodes: threads, order of evaluation, instructions."""

from __future__ import annotations

import dataclasses

from ..base.checks import check_between, check_choice, check_flag, check_text, put
from ..base.environment import MOST_THREADS, ORDERS


@dataclasses.dataclass(frozen=True)
class DecodeSettings:
    """How an engine decodes; what is None is as the environment says (:mod:`pxfast.base.environment`).

    An engine ignores what it has no use for. threads: of the CPU engine, at least 1. order: 'sequential', 'speculative'
    or 'auto', of the compiled engines. isa: the CPU engine's instruction set, by a name that ``pxfast info`` lists.
    team: blocks of the CUDA engine that decode images together, at least 1. clusters: whether a team
    is a cluster of four blocks, which meet by the hardware's barrier. wgmma: whether its bf16 products may use wgmma.

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
            if value is not None:
                put(self, **{name: check_between(name, value, 1, MOST_THREADS)})
        if self.order is not None:
            check_choice("order", self.order, ORDERS)
        if self.isa is not None:
            check_text("isa", self.isa)
        for name in ("clusters", "wgmma"):
            value = getattr(self, name)
            if value is not None:
                put(self, **{name: check_flag(name, value)})


DEFAULTS = DecodeSettings()
