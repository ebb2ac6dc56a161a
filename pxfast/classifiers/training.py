"""Training a classifier: SGD with momentum, flips and shifts, a cosine schedule, checkpoints that survive kill -9."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..data import DATASETS, load_dataset
from ..files import refuse_existing, whole_file
from ..training import checkpoint_path
from ..weights import read_safetensors
from .prediction import accuracy
from .resnet import ResNet, ResNetConfig, standardise
from .weights import fill, save_classifier, stored_tensors

CHECKPOINT_FORMAT = "pxfast-classifier-training"
WIDTHS = {"fashion-mnist": (4, 8, 16), "cifar10": (16, 32, 64)}


@dataclasses.dataclass(frozen=True)
class ClassifierSettings:
    """How to train.

    The learning rate rises linearly over the first tenth of the run and falls along a cosine to zero at its end.
    ``max_shift``: images are moved by up to so many pixels each way, zeros moving in. ``precision``: 'bf16'
    (autocast) or 'fp32'.
    """

    epochs: float = 12.0
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 2e-4
    horizontal_flips: bool = True
    max_shift: int = 1
    precision: str = "bf16"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs <= 0:
            raise ValueError(f"epochs must be positive, got {self.epochs}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2 (batch normalisation), got {self.batch_size}")
        if self.max_shift < 0:
            raise ValueError(f"max_shift must not be negative, got {self.max_shift}")
        if self.precision not in ("bf16", "fp32"):
            raise ValueError(f"precision must be 'bf16' or 'fp32', got {self.precision!r}")


def augment(images: Tensor, settings: ClassifierSettings, generator: torch.Generator) -> Tensor:
    """Random flips and shifts of a batch of uint8 images (N, C, H, W)."""
    N, C, H, W = images.shape
    if settings.horizontal_flips:
        flips = torch.rand(N, generator=generator) < 0.5
        images = torch.where(flips[:, None, None, None], images.flip(3), images)
    if settings.max_shift:
        s = settings.max_shift
        rows, columns = torch.randint(0, 2 * s + 1, (2, N, 1), generator=generator)
        rows, columns = rows + torch.arange(H), columns + torch.arange(W)
        image, channel = torch.arange(N)[:, None, None, None], torch.arange(C)[None, :, None, None]
        images = F.pad(images, (s, s, s, s))[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return images


class ClassifierTrainer:
    """A training run: model, momentum and position in the data; saved and restored as one."""

    def __init__(
        self, config: ResNetConfig, settings: ClassifierSettings, images: Tensor, labels: Tensor, *, compile: bool
    ) -> None:
        if len(images) < settings.batch_size:
            raise ValueError(f"expected at least one batch of {settings.batch_size} images, got {len(images)}")
        self.settings, self.images, self.labels = settings, images, labels
        self.steps_per_epoch = len(images) // settings.batch_size
        self.total_steps = max(1, round(settings.epochs * self.steps_per_epoch))
        self.step = 0
        self.seconds = 0.0
        torch.manual_seed(settings.seed)
        self.model = ResNet(config).to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.SGD(
            self.model.parameters(),
            settings.learning_rate,
            settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=True,
        )
        self._logits = torch.compile(self.model.logits) if compile else self.model.logits

    def batch(self) -> tuple[Tensor, Tensor]:
        """Images and labels of the present step; depends on seed and step alone, so a resumed run sees the same."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if getattr(self, "_order_epoch", None) != epoch:
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
            self._order, self._order_epoch = torch.randperm(len(self.images), generator=generator), epoch
        B = self.settings.batch_size
        chosen = self._order[position * B : (position + 1) * B]
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.step)
        return augment(self.images[chosen], self.settings, generator), self.labels[chosen]

    def learning_rate(self) -> float:
        done = self.step / self.total_steps
        warmup = min(1.0, (self.step + 1) / (0.1 * self.total_steps))
        return self.settings.learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * done))

    def train_step(self) -> tuple[float, float]:
        """One step of SGD; returns the batch's cross-entropy in nats and its accuracy."""
        started = time.perf_counter()
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        self.model.train()
        images, labels = self.batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.precision == "bf16"):
            logits = self._logits(standardise(images))
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        self.seconds += time.perf_counter() - started
        return loss.item(), (logits.argmax(1) == labels).double().mean().item()

    def _state(self) -> dict[str, str]:
        return {
            "format": CHECKPOINT_FORMAT,
            "config": json.dumps(dataclasses.asdict(self.model.config)),
            "settings": json.dumps(dataclasses.asdict(self.settings)),
            "position": json.dumps({"step": self.step, "seconds": self.seconds}),
        }

    def save(self, path: Path) -> None:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            tensors[f"momentum.{i}"] = state["momentum_buffer"]
        with whole_file(path) as temporary:
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata=self._state())

    def restore(self, path: Path) -> None:
        """Continue where ``save`` left off. ValueError when the checkpoint is of another model or other settings."""
        tensors, metadata = read_safetensors(path, CHECKPOINT_FORMAT)
        for what in ("config", "settings"):
            if metadata[what] != self._state()[what]:
                raise ValueError(
                    f"{path} is the checkpoint of a run with another {what}: {metadata[what]} then, "
                    f"{self._state()[what]} now"
                )
        model = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        self.model.load_state_dict(model)
        momentum = {
            int(name.removeprefix("momentum.")): {"momentum_buffer": value}
            for name, value in tensors.items()
            if name.startswith("momentum.")
        }
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": momentum})
        position = json.loads(metadata["position"])
        self.step, self.seconds = position["step"], position["seconds"]


def train_classifier(
    dataset: str,
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    epochs: float = 12.0,
    seed: int = 0,
    resume: bool = False,
    force: bool = False,
    progress: bool = True,
    compile: bool = False,
    settings: ClassifierSettings | None = None,
    checkpoint_interval: float = 60.0,
) -> ResNet:
    """Train the paper's ResNet-62 on a data set's training images and write it to ``out`` (safetensors).

    dataset: 'fashion-mnist' (widths 4, 8, 16) or 'cifar10' (16, 32, 64), read from torchvision's ``root``. The notes
    in the file record the settings, the time and the accuracy on all test images of the weights as stored.
    settings: everything about the training; takes the place of ``epochs`` and ``seed``. compile: use torch.compile (a
    minute to start, then faster). Every ``checkpoint_interval`` seconds the state goes to ``out`` with the suffix
    .checkpoint.safetensors; with ``resume`` a killed run goes on from there with the same data order.
    Raises FileExistsError when ``out`` or its checkpoint exists and neither ``resume`` nor ``force`` is set,
    FileNotFoundError when ``resume`` finds no checkpoint or ``root`` no data.
    """
    if dataset not in WIDTHS:
        raise ValueError(f"unknown data set {dataset!r}; known: {', '.join(sorted(WIDTHS))}")
    settings = settings or ClassifierSettings(epochs=epochs, seed=seed)
    channels, *image_size = DATASETS[dataset]
    config = ResNetConfig(tuple(image_size), channels, WIDTHS[dataset])
    checkpoint = checkpoint_path(out)
    if not resume:
        refuse_existing(out, force=force)
        refuse_existing(checkpoint, force=force)
    images, labels = load_dataset(dataset, root, train=True)
    test_images, test_labels = load_dataset(dataset, root, train=False)
    trainer = ClassifierTrainer(config, settings, images, labels, compile=compile)
    if resume:
        trainer.restore(checkpoint)

    recent: tuple[float, ...] | None = None
    kept_at = time.monotonic()
    with tqdm(total=trainer.total_steps, initial=trainer.step, unit="step", disable=not progress) as bar:
        while trainer.step < trainer.total_steps:
            now = trainer.train_step()
            if not math.isfinite(now[0]):
                raise FloatingPointError(f"the loss became {now[0]} at step {trainer.step}")
            recent = tuple(0.98 * old + 0.02 * new for old, new in zip(recent or now, now, strict=True))
            bar.update()
            if trainer.step % 10 == 0:
                speed = (bar.format_dict["rate"] or 0.0) * settings.batch_size
                text = f"loss {recent[0]:.3f}, accuracy {100 * recent[1]:.1f} %, {speed:.0f} images/s"
                bar.set_postfix_str(text, refresh=False)
            if time.monotonic() - kept_at >= checkpoint_interval:
                trainer.save(checkpoint)
                kept_at = time.monotonic()
    trainer.save(checkpoint)

    model = trainer.model
    fill(model, stored_tensors(model), os.fspath(out))  # judge what is stored: weights rounded to bf16
    notes = {
        "dataset": dataset,
        "training": dataclasses.asdict(settings),
        "steps": trainer.step,
        "seconds": round(trainer.seconds),
        "test_images": len(test_images),
        "test_accuracy": accuracy(model.eval(), test_images, test_labels),
        "torch": torch.__version__,
    }
    save_classifier(model, out, notes=notes)
    return model
