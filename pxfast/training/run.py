"""What all training runs share: where they stand, data order, learning rate, notes and checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..base.checks import (
    check_between,
    check_number,
)
from ..tensors.floating import fp32_convolutions
from ..tensors.safetensors import metadata_json, metadata_record, metadata_table
from .processes import Processes
from .provenance import training_machine
from .settings import RunSettings
from .settle import settle_precision

MOST_STEPS = 1 << 40
CHECKPOINT = ".checkpoint.safetensors"  # what takes the place of an output's suffix
OF_THE_MACHINE = ("compile", "cuda_graphs")  # settings that say how a run's steps are started, not what they compute
SEED_STRIDE = 1_000_003  # between the generators of two seeds


def check_training_images(images: Tensor, shape: tuple[int, ...], what: str = "training") -> None:
    """TypeError or ValueError unless ``images`` are uint8, N > 0 of them, of ``shape`` (C, H, W)."""
    expected = f"expected uint8 {what} images (N, {', '.join(map(str, shape))}), N > 0"
    if not isinstance(images, Tensor):
        raise TypeError(f"{expected}, got {type(images).__name__}")
    if images.dtype != torch.uint8:
        raise TypeError(f"{expected}, got {images.dtype}")
    if tuple(images.shape[1:]) != shape or images.dim() != 4 or len(images) == 0:
        raise ValueError(f"{expected}, got {tuple(images.shape)}")


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run stands: steps taken, and seconds spent in them. ValueError for negative ones."""

    step: int
    seconds: float

    def __post_init__(self) -> None:
        check_number("seconds", self.seconds, 0.0)
        check_between("step", self.step, 0, MOST_STEPS)


class TrainingRun:
    """Where a run stands: steps, seconds, and what follows from them. Trainers derive from it.

    Everything random is drawn from generators that depend on the seed and the step alone, so that a resumed run goes
    on as the uninterrupted one would have. ValueError where a batch has more images than there are.
    """

    def __init__(self, settings: RunSettings, images: Tensor, processes: Processes | None = None) -> None:
        if len(images) < settings.batch_size:
            raise ValueError(f"expected at least one batch of {settings.batch_size} images, got {len(images)}")
        self.images = images
        self.processes: Processes = processes or Processes()
        self.settings: RunSettings = settle_precision(settings, self.processes)
        self.steps_per_epoch: int = len(images) // settings.batch_size
        self.step: int = 0
        self.seconds: float = 0.0
        self.compilation: str | None = None  # why its steps are compiled or not, where its settings left that open
        self._at_hand: Tensor | None = None

    @property
    def progress(self) -> float:
        """Fraction of the run that is done: of the budget if there is one, else of the epochs."""
        if self.settings.budget is not None:
            return min(1.0, self.seconds / self.settings.budget)
        return min(1.0, self.step / self.total_steps)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, where it is bounded by epochs."""
        return self.settings.steps_of(len(self.images))

    def count_step(self, seconds: float) -> None:
        """Another step is done, which took so many seconds."""
        self.step += 1
        self.seconds += seconds

    def cosine(self) -> float:
        """The peak learning rate times a cosine from 1 to 0 over the run."""
        return self.settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * self.progress))

    def step_seed(self, step: int) -> int:
        return self.settings.seed * SEED_STRIDE + step

    def _epoch_order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.step_seed(epoch))
        return torch.randperm(len(self.images), generator=generator)

    def chosen(self, step: int) -> Tensor:
        """The indices (batch_size,) of a step's images; each epoch is another permutation of them all."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if getattr(self, "_order_epoch", None) != epoch:
            self._order, self._order_epoch = self._epoch_order(epoch), epoch
        B = self.settings.batch_size
        return self._order[position * B : (position + 1) * B]

    def gathered(self, chosen: Tensor) -> Tensor:
        """The images of some indices: on the device if all images fit there beside the training, else on the CPU."""
        if self._at_hand is None:
            self._at_hand = at_hand(self.images, self.processes.device)
        return self._at_hand[chosen.to(self._at_hand.device, non_blocking=True)]

    def flipped(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """A batch (N, C, H, W) with about half of its images flipped left to right, where the settings want it."""
        if not self.settings.horizontal_flips:
            return batch
        flips = (torch.rand(len(batch), generator=generator) < 0.5).to(batch.device, non_blocking=True)
        return torch.where(flips[:, None, None, None], batch.flip(3), batch)

    def autocast(self) -> torch.autocast:
        device = self.processes.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def agree(self, stop: bool) -> bool:
        """Whether any process wants to ``stop``; all of them take over the first one's seconds."""
        self.seconds, stop = self.processes.agree(self.seconds, stop)
        return stop

    def train_step(self) -> Any:
        raise NotImplementedError

    def losses(self, found: Any) -> dict[str, float]:
        """What a ``train_step`` gave, by what the log calls it."""
        raise NotImplementedError

    def rates(self) -> dict[str, float]:
        """The learning rates of the last step, by what the log calls them."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        raise NotImplementedError

    def restore(self, path: Path) -> None:
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What a weights file notes of this run (:mod:`pxfast.training.provenance`)."""
        facts = {
            "training": dataclasses.asdict(self.settings),
            "steps": self.step,
            "images_seen": self.step * self.settings.batch_size,
            "seconds": round(self.seconds),
            "torch": torch.__version__,
            "machine": training_machine(self.processes.device),
        }
        return facts if self.compilation is None else {**facts, "compilation": self.compilation}

    def data(self) -> dict[str, Tensor]:
        """What the run learns from, by name: a checkpoint tells whether a resumed run has the same."""
        return {"images": self.images}

    def metadata(self, checkpoint_format: str, config: Any) -> dict[str, str]:
        """What a checkpoint says of its run."""
        return {
            "format": checkpoint_format,
            "config": json.dumps(dataclasses.asdict(config)),
            "settings": json.dumps(dataclasses.asdict(self.settings)),
            "position": json.dumps({"step": self.step, "seconds": self.seconds}),
            **{what: json.dumps(fingerprint(data)) for what, data in self.data().items()},
            **({} if self.compilation is None else {"compilation": self.compilation}),
        }

    def resume_at(
        self, path: Path, metadata: dict[str, str], config: Any, *, changed_settings: Collection[str] = ()
    ) -> None:
        """Take over a checkpoint's position. ValueError when it is of another network, other settings or data.

        changed_settings: names of those that may be others.
        """
        for what, ours in (("config", config), ("settings", self.settings)):
            # an older checkpoint lacks newer settings, which then had their defaults
            defaults = {f.name: f.default for f in dataclasses.fields(ours) if f.default is not dataclasses.MISSING}
            theirs = defaults | metadata_table(metadata, what, path)
            mine = json.loads(json.dumps(dataclasses.asdict(ours)))
            changed = {key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)}
            if changed - {*OF_THE_MACHINE, *changed_settings}:
                detail = ", ".join(
                    f"{key[:60]}: {str(theirs.get(key))[:60]} then, {mine.get(key)} now" for key in sorted(changed)
                )
                raise ValueError(f"{path} is the checkpoint of a run with another {what} ({detail})")
        for what, data in self.data().items():
            if metadata_json(metadata, what, path, "null") not in (None, fingerprint(data)):
                raise ValueError(f"{path} is the checkpoint of a run on other training {what}")
        position = metadata_record(Position, metadata, path, "position of a run", "position")
        self.step, self.seconds = position.step, float(position.seconds)
        self.compilation = metadata.get("compilation")


Run = TypeVar("Run", bound=TrainingRun)
Found = TypeVar("Found")


def alone(step: Callable[[Run], Found]) -> Callable[[Run], Found]:
    """A ``train_step`` whose fp32 is what it says, on a GPU too, and whose seeds are no longer the caller's behind it.

    The seeds are the CPU's: to ask a GPU for its own would make it known to a process that does not use it.
    """

    @functools.wraps(step)
    def stepped(run: Run) -> Found:
        with torch.random.fork_rng(devices=[]), fp32_convolutions(exact=run.settings.precision == "fp32"):
            return step(run)

    return stepped


def at_hand(images: Tensor, device: torch.device) -> Tensor:
    """Images where batches are best taken from: on a GPU where they fill a twentieth of it at most."""
    if device.type == "cuda" and 20 * images.nbytes <= torch.cuda.get_device_properties(device).total_memory:
        return images.to(device)
    return images


def fingerprint(data: Tensor) -> list[int]:
    """Shape and CRC-32 of images or labels, to notice that a run goes on with other data."""
    return [*data.shape, zlib.crc32(data.cpu().contiguous().numpy().data)]


def laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """A file's tensor in the memory layout of the parameter it belongs to, which fused optimisers rely on.

    They walk parameter and state in the order of memory, and a file's tensors are contiguous, not channels last.
    """
    return torch.empty_like(parameter, requires_grad=False).copy_(value)


def checkpoint_path(out: str | os.PathLike[str]) -> Path:
    """Where a run that writes ``out`` keeps its checkpoint.

    ValueError unless ``out`` has the suffix .safetensors: other names that differ in what follows their last dot alone
    would share a checkpoint. ValueError where it is called as checkpoints are.
    """
    path = Path(out)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: the output of a training must have the suffix .safetensors")
    if path.name.endswith(CHECKPOINT):
        raise ValueError(f"{path}: expected another name than NAME{CHECKPOINT}, which is a training's checkpoint")
    return path.with_suffix(CHECKPOINT)
