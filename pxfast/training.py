"""Training a PixelCNN: Adam, an exponential moving average of the weights, checkpoints that survive kill -9."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from .density import bits_per_dim
from .files import refuse_existing, whole_file
from .pixelcnn import PixelCNN, PixelCNNConfig
from .weights import load_model, read_metadata, read_safetensors, save_model

CHECKPOINT_FORMAT = "pxfast-training"
LOG2 = math.log(2.0)


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    The run ends after ``epochs``, or after ``budget`` seconds spent in training steps (over all resumed parts; not in
    checkpoints and validation) when that is given. The learning rate rises linearly over ``warmup`` steps and falls
    along a cosine to zero at the end of the run. ``ema_decay``: of the averaged weights, which are the ones saved.
    ``gradient_clip``: largest norm of the whole gradient. ``precision``: 'bf16' (autocast) or 'fp32'. ``compile``: use
    torch.compile (minutes to start, then faster).
    """

    batch_size: int = 32
    epochs: float = 10.0
    budget: float | None = None
    learning_rate: float = 2e-3
    warmup: int = 200
    ema_decay: float = 0.9995
    gradient_clip: float = 1.0
    horizontal_flips: bool = False
    precision: str = "bf16"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {self.batch_size}")
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"budget must be positive seconds, got {self.budget}")
        for field in ("epochs", "learning_rate", "gradient_clip"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} must be positive, got {getattr(self, field)}")
        if self.warmup < 0:
            raise ValueError(f"warmup must be a number of steps, got {self.warmup}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if self.precision not in ("bf16", "fp32"):
            raise ValueError(f"precision must be 'bf16' or 'fp32', got {self.precision!r}")


def check_images(config: PixelCNNConfig, images: Tensor, what: str) -> None:
    C, H, W = config.channels, *config.image_size
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != (C, H, W) or len(images) == 0:
        raise ValueError(
            f"expected uint8 {what} images (N, {C}, {H}, {W}), N > 0, got {images.dtype} {tuple(images.shape)}"
        )


def fingerprint(images: Tensor) -> list[int]:
    """Shape and CRC-32 of the images, to notice that a run goes on with other data."""
    return [*images.shape, zlib.crc32(images.contiguous().numpy())]


class Trainer:
    """A training run: model, averaged model, optimiser and position in the data; saved and restored as one."""

    def __init__(self, config: PixelCNNConfig, settings: TrainingSettings, images: Tensor) -> None:
        check_images(config, images, "training")
        self.settings = settings
        self.images = images
        self.steps_per_epoch = max(1, len(images) // settings.batch_size)
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []
        torch.manual_seed(settings.seed)
        self.model = PixelCNN(config).to(memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(self.model)
        self.optimiser = torch.optim.Adam(self.model.parameters(), settings.learning_rate, (0.95, 0.9995), fused=True)
        self._log_prob: Callable[[Tensor], Tensor] = self.model.log_prob
        if settings.compile:
            self._log_prob = torch.compile(self.model.log_prob)

    def initialise(self, start: PixelCNN | None = None) -> None:
        """The weights of ``start``, or data-dependent initialisation from the first 128 images of the first epoch."""
        if start is None:
            self.model.initialise(self.images[self._epoch_order(0)[:128]])
        else:
            config = dataclasses.replace(start.config, dropout=self.model.config.dropout)
            if config != self.model.config:
                raise ValueError(f"expected to start from a model of {self.model.config}, got {start.config}")
            self.model.load_state_dict(start.state_dict())
        self.averaged.load_state_dict(self.model.state_dict())

    @property
    def progress(self) -> float:
        """Fraction of the run that is done: of the budget if there is one, else of the epochs."""
        if self.settings.budget is not None:
            return min(1.0, self.seconds / self.settings.budget)
        return min(1.0, self.step / self.total_steps)

    @property
    def total_steps(self) -> int:
        return max(1, round(self.settings.epochs * self.steps_per_epoch))

    def _epoch_order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.images), generator=generator)

    def batch(self, step: int) -> Tensor:
        """The images of a step; depends on seed and step alone, so a resumed run sees the same ones."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if getattr(self, "_order_epoch", None) != epoch:
            self._order, self._order_epoch = self._epoch_order(epoch), epoch
        B = self.settings.batch_size
        batch = self.images[self._order[position * B : (position + 1) * B]]
        if self.settings.horizontal_flips:
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + step)
            flips = torch.rand(len(batch), generator=generator) < 0.5
            batch = torch.where(flips[:, None, None, None], batch.flip(3), batch)
        return batch

    def learning_rate(self) -> float:
        warmup = min(1.0, (self.step + 1) / max(1, self.settings.warmup))
        return self.settings.learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * self.progress))

    def train_step(self) -> float:
        """One step of Adam; returns the batch's bits/dim.

        FloatingPointError when the loss or its gradient is not finite; the weights are then as before the step.
        """
        started = time.perf_counter()
        torch.manual_seed(self.settings.seed * 1_000_003 + self.step)  # dropout, the same after a resume
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.precision == "bf16"):
            loss = -self._log_prob(self.batch(self.step)).mean() / LOG2
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)
        bits_per_dim = float(loss.detach())
        if not math.isfinite(bits_per_dim) or not math.isfinite(norm):
            raise FloatingPointError(
                f"training broke down at step {self.step}: {bits_per_dim} bits/dim, gradient of norm {float(norm)}"
            )
        self.optimiser.step()
        self.optimiser.zero_grad()
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1.0 - decay)
        self.step += 1
        self.seconds += time.perf_counter() - started
        return bits_per_dim

    @torch.no_grad()
    def evaluate(self, images: Tensor) -> float:
        """Mean bits/dim of the averaged model over uint8 images, in the training's precision."""
        self.averaged.eval()
        total = 0.0
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.precision == "bf16"):
            for part in images.split(64):
                total -= float(self.averaged.log_prob(part).double().sum())
        return total / images.numel() / LOG2

    def save(self, path: Path) -> None:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"averaged.{name}": value for name, value in self.averaged.state_dict().items()}
        # keyed by the parameter's place: one that never had a gradient has no state and must not shift the others
        for i, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{name}": value for name, value in state.items()}
        metadata = {
            "format": CHECKPOINT_FORMAT,
            "config": json.dumps(dataclasses.asdict(self.model.config)),
            "settings": json.dumps(dataclasses.asdict(self.settings)),
            "position": json.dumps({"step": self.step, "seconds": self.seconds}),
            "images": json.dumps(fingerprint(self.images)),
            "history": json.dumps(self.history),
        }
        with whole_file(path) as temporary:
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata=metadata)

    def restore(self, path: Path) -> None:
        """Continue where ``save`` left off. ValueError when the checkpoint is of another model or other settings."""
        tensors, metadata = read_safetensors(path, CHECKPOINT_FORMAT)
        for what, ours in (("config", self.model.config), ("settings", self.settings)):
            theirs = json.loads(metadata[what])
            mine = json.loads(json.dumps(dataclasses.asdict(ours)))
            changed = {key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)}
            if changed - {"compile"}:
                detail = ", ".join(f"{key}: {theirs.get(key)} then, {mine.get(key)} now" for key in sorted(changed))
                raise ValueError(f"{path} is the checkpoint of a run with another {what} ({detail})")
        if json.loads(metadata.get("images", "null")) not in (None, fingerprint(self.images)):
            raise ValueError(f"{path} is the checkpoint of a run on other training images")
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "averaged": {}, "optimiser": {}}
        for name, value in tensors.items():
            part, _, key = name.partition(".")
            parts[part][key] = value
        self.model.load_state_dict(parts["model"])
        self.averaged.load_state_dict(parts["averaged"])
        state: dict[int, dict[str, Tensor]] = {}
        parameters = list(self.model.parameters())
        for key, value in parts["optimiser"].items():
            i, _, name = key.partition(".")
            parameter = parameters[int(i)]
            if value.shape == parameter.shape:
                # fused Adam walks parameter and state in the order of memory, so they must be laid out alike
                # (channels last), and a file's tensors are contiguous
                value = torch.empty_like(parameter, requires_grad=False).copy_(value)
            state.setdefault(int(i), {})[name] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        position = json.loads(metadata["position"])
        self.step, self.seconds = position["step"], position["seconds"]
        self.history = json.loads(metadata["history"])


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Let a first Ctrl-C only set the event, so that a step is finished and kept; a second one interrupts at once.

    Python delivers signals to the main thread; elsewhere this does nothing.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGINT)

    def handler(number: int, frame: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, handler)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def checkpoint_path(out: str | os.PathLike[str]) -> Path:
    """Where a run that writes ``out`` keeps its checkpoint."""
    return Path(out).with_suffix(".checkpoint.safetensors")


def train(
    config: PixelCNNConfig,
    images: Tensor,
    out: str | os.PathLike[str],
    *,
    settings: TrainingSettings | None = None,
    validation: Tensor | None = None,
    start: PixelCNN | None = None,
    resume: bool = False,
    force: bool = False,
    checkpoint_interval: float = 180.0,
    progress: bool = True,
) -> PixelCNN:
    """Train a PixelCNN on uint8 images (N, C, H, W) and write the averaged model to ``out`` (bf16 safetensors).

    Every ``checkpoint_interval`` seconds the whole state goes to ``out`` with the suffix .checkpoint.safetensors, and
    the averaged model so far to ``out``; with ``resume`` a killed run goes on from there with the same data order.
    Ctrl-C ends the run after the step at hand, with everything kept, and raises KeyboardInterrupt.
    start: a model whose weights to begin with, in place of random ones. validation: uint8 images whose bits/dim is
    recorded at every checkpoint. Returns the averaged model.
    Raises FileExistsError when ``out`` or its checkpoint exists and neither ``resume`` nor ``force`` is set,
    FileNotFoundError when ``resume`` finds no checkpoint or the folder of ``out`` does not exist, FloatingPointError
    when bits/dim stop being finite (the files then stay as the last interval left them).
    """
    settings = settings or TrainingSettings()
    checkpoint = checkpoint_path(out)
    if not checkpoint.parent.is_dir():  # now, not when the first checkpoint is due
        raise FileNotFoundError(f"no such folder: {checkpoint.parent}")
    if validation is not None:
        check_images(config, validation, "validation")
    trainer = Trainer(config, settings, images)
    if resume:
        trainer.restore(checkpoint)
    else:
        refuse_existing(out, force=force)
        refuse_existing(checkpoint, force=force)
        trainer.initialise(start)

    def keep(recent: float | None) -> None:
        entry = {"step": trainer.step, "seconds": round(trainer.seconds, 1), "train_bits_per_dim": recent}
        if validation is not None:
            entry["validation_bits_per_dim"] = trainer.evaluate(validation)
        trainer.history.append(entry)
        trainer.save(checkpoint)
        notes = {
            "training": dataclasses.asdict(settings),
            "steps": trainer.step,
            "images_seen": trainer.step * settings.batch_size,
            "seconds": round(trainer.seconds),
            "torch": torch.__version__,
        }
        save_model(trainer.averaged, out, notes=notes)

    recent: float | None = trainer.history[-1]["train_bits_per_dim"] if trainer.history else None
    kept_at = time.monotonic()
    total = trainer.total_steps if settings.budget is None else None
    with (
        deferred_interrupt() as interrupted,
        tqdm(total=total, initial=trainer.step, unit="step", mininterval=0.5, disable=not progress) as bar,
    ):
        while trainer.progress < 1.0 and not interrupted.is_set():
            loss = trainer.train_step()
            recent = loss if recent is None else 0.98 * recent + 0.02 * loss
            bar.update()
            if trainer.step % 10 == 0:
                speed = (bar.format_dict["rate"] or 0.0) * settings.batch_size
                left = f"{100 * trainer.progress:.0f} % of budget, " if settings.budget is not None else ""
                bar.set_postfix_str(f"{left}{recent:.3f} bits/dim, {speed:.0f} images/s", refresh=False)
            if time.monotonic() - kept_at >= checkpoint_interval:
                keep(recent)
                kept_at = time.monotonic()
        keep(recent)
    if interrupted.is_set():
        raise KeyboardInterrupt(f"training stopped at step {trainer.step}; resume from {checkpoint}")
    return trainer.averaged.eval()


def record_bits_per_dim(path: str | os.PathLike[str], test_images: Tensor, *, progress: bool = False) -> float:
    """Measure a model file on uint8 test images (N, C, H, W), fp32, and keep the mean bits/dim in the file's notes.

    Notes: ``test_bits_per_dim`` and ``test_images``. Returns the mean.
    """
    model, (_, notes) = load_model(path), read_metadata(path)
    mean = float(bits_per_dim(test_images, model=model, progress=progress).double().mean())
    notes |= {"test_bits_per_dim": round(mean, 5), "test_images": len(test_images)}
    save_model(model, path, notes=notes)
    return mean
