"""How to train a PixelCNN."""

from __future__ import annotations

import dataclasses

from ...base.checks import check_choice, check_flag, put
from ...training.settings import RunSettings

OPTIMISERS = ("adam", "muon")
SCHEDULES = ("cosine", "linear", "exponential", "wsd")


@dataclasses.dataclass(frozen=True)
class TrainingSettings(RunSettings):
    """How to train: see :class:`pxfast.training.settings.RunSettings`, and more.

    ``batch_size``: images a step, of all processes together. ``optimiser``: 'adam', or 'muon' for the directions of
    the convolutions' weights and Adam for everything else (pxfast/pixelcnn/training/muon.py). ``learning_rate`` is
    Adam's; ``muon_learning_rate`` Muon's, in radians a step. Both rise linearly over ``warmup`` steps at first, and
    follow the ``schedule``: 'cosine' and 'linear' fall to zero at the end of the run, 'exponential' by the factor
    ``decay`` at every step, and 'wsd' (warm up, stay, decay) linearly to zero over the last ``decay_share`` of the run.
    ``ema_decay``: of the averaged weights, which are saved, at the end of a run if the last
    ones are not better. ``gradient_clip``: largest norm of the whole gradient; 0 clips nothing.
    ``cuda_graphs``: record what a GPU is given in a step's passes forward and back, and replay it at every step; for
    one process, and not together with ``compile``.
    """

    batch_size: int = 32
    epochs: float = 10.0
    learning_rate: float = 2e-3
    warmup: int = 200
    ema_decay: float = 0.9995
    gradient_clip: float = 1.0
    # checkpoints older than these fields were made with their defaults
    optimiser: str = "adam"
    muon_learning_rate: float = 0.05
    schedule: str = "cosine"
    decay: float = 0.999995
    decay_share: float = 0.2
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("muon_learning_rate", ends="()")
        self._number("gradient_clip")
        self._count("warmup")
        self._number("ema_decay", "decay", high=1.0, ends="[)")
        self._number("decay_share", high=1.0)
        check_choice("optimiser", self.optimiser, OPTIMISERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        put(self, cuda_graphs=check_flag("cuda_graphs", self.cuda_graphs))
        if self.cuda_graphs and self.compile:
            raise ValueError("expected compile or cuda_graphs, got both")
