"""One training run of a PixelCNN: its step, and its state as a checkpoint."""

from __future__ import annotations

import contextlib
import copy
import math
import time
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...base.progress import progress_of
from ...tensors.batches import fewer_if_large
from ...tensors.safetensors import metadata_record, read_header
from ...training.averaged_run import AveragedRun
from ...training.processes import Processes
from ...training.run import alone, check_training_images
from ..files import parse_config
from ..heads import likelihood_is_fused
from ..network import PixelCNN, PixelCNNConfig
from .folding import folded
from .growth import grown
from .muon import Muon, split_parameters
from .settings import TrainingSettings

CHECKPOINT_FORMAT = "pxfast-training"
EVALUATED_AT_ONCE = 64  # images, fewer of large ones
COMPARED_IMAGES = 512  # that tell whether the last weights are better than the averaged ones
INITIAL_IMAGES = 128  # of the first epoch, fewer of large ones, for the data-dependent initialisation
LOG2 = math.log(2.0)


def network_size(config: PixelCNNConfig) -> dict[str, int]:
    """What the notes of a run call its network by."""
    return {"filters": config.filters, "resnets": config.resnets}


class _LogProb(nn.Module):
    """``model.log_prob`` as a module's forward, which is what DistributedDataParallel wraps.

    fold: all convolutions' weights at once, for eager steps; a compiled one fuses these operations as they are.
    """

    def __init__(self, model: PixelCNN, fold: bool) -> None:
        super().__init__()
        self.model = model
        self.fold = fold

    def forward(self, images: Tensor) -> Tensor:
        with folded(self.model) if self.fold else contextlib.nullcontext():
            return self.model.log_prob(images)


class Trainer(AveragedRun):
    """A training run: model, averaged model, optimisers and position in the data; saved and restored as one.

    images: uint8 (N, C, H, W), on the CPU. processes: with several, each computes its share of every batch, and all
    hold the same weights; what is random but for dropout does not depend on their number.
    """

    settings: TrainingSettings
    model: PixelCNN
    averaged: PixelCNN
    checkpoint_format = CHECKPOINT_FORMAT

    def __init__(
        self, config: PixelCNNConfig, settings: TrainingSettings, images: Tensor, processes: Processes | None = None
    ) -> None:
        check_training_images(images, (config.channels, *config.image_size))
        super().__init__(settings, images, processes, ema_decay=settings.ema_decay)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = PixelCNN(config).to(self.processes.device).to(memory_format=torch.channels_last)
            self._drawn = torch.get_rng_state()
        self.averaged = copy.deepcopy(self.model)
        self.optimisers: list[torch.optim.Optimizer] = self._make_optimisers()
        self._log_prob: Callable[[Tensor], Tensor] = self.processes.parallel(_LogProb(self.model, not settings.compile))
        if settings.cuda_graphs and (self.processes.count > 1 or self.processes.device.type != "cuda"):
            where = f"{self.processes.count} on {self.processes.device}"
            raise ValueError(f"cuda_graphs are for one process on a GPU, got {where}")
        self._recorded = not settings.cuda_graphs
        if settings.compile or settings.cuda_graphs:
            likelihood_is_fused(self.processes.device)  # tried now: a trace does not
        if settings.compile:
            self._log_prob = torch.compile(self._log_prob)

    def _make_optimisers(self) -> list[torch.optim.Optimizer]:
        settings, adams = self.settings, list(self.model.parameters())
        optimisers: list[torch.optim.Optimizer] = []
        if settings.optimiser == "muon":
            groups, adams = split_parameters(self.model)
            dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
            optimisers.append(Muon(groups, settings.muon_learning_rate, dtype=dtype))
        optimisers.append(torch.optim.Adam(adams, settings.learning_rate, (0.95, 0.9995), fused=True))
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["peak"] = group["lr"]
        return optimisers

    @property
    def initial_count(self) -> int:
        """How many images the weights are initialised by."""
        return min(fewer_if_large(INITIAL_IMAGES, self.images), len(self.images))

    def initialise(self, start: PixelCNN | None = None) -> None:
        """The weights of ``start``, grown if that is smaller, or data-dependent initialisation; by the first images."""
        images = self.images[self._epoch_order(0)[: self.initial_count]]
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._drawn)  # what is new in a grown network is drawn behind the first weights
            if start is None:
                self.model.initialise(images.to(self.processes.device))
            else:
                self.model.load_state_dict(grown(start, self.model.config, images).state_dict())
        self.processes.spread(self.model)
        self.averaged.load_state_dict(self.model.state_dict())

    def facts(self) -> dict[str, Any]:
        """As any run's, and the network's size: a file's parts may differ in it
        (:mod:`pxfast.pixelcnn.training.growth`).
        """
        return {"network": network_size(self.model.config), **super().facts()}

    def batch(self, step: int) -> Tensor:
        """The images of a step, of all processes; depends on seed and step alone, so a resumed run sees the same."""
        generator = torch.Generator().manual_seed(self.step_seed(step))
        return self.flipped(self.gathered(self.chosen(step)), generator)

    def rate_factor(self) -> float:
        """The learning rates of the present step as a fraction of their peaks."""
        warmup = min(1.0, (self.step + 1) / max(1, self.settings.warmup))
        if self.settings.schedule == "exponential":
            return warmup * self.settings.decay ** (self.step + 1)
        if self.settings.schedule == "linear":
            return warmup * (1.0 - self.progress)
        if self.settings.schedule == "wsd":
            return warmup * min(1.0, (1.0 - self.progress) / max(self.settings.decay_share, 1e-12))
        return warmup * self.cosine() / self.settings.learning_rate

    def learning_rate(self) -> float:
        """Adam's learning rate at the present step."""
        return self.settings.learning_rate * self.rate_factor()

    @alone
    def train_step(self) -> float:
        """One step of the optimisers; returns the batch's bits/dim.

        FloatingPointError when the loss or its gradient is not finite; the weights are then as before the step.
        """
        started = time.perf_counter()
        processes = self.processes
        # dropout, the same after a resume, and another in every process
        torch.manual_seed(self.step_seed(self.step) * processes.count + processes.rank)
        factor = self.rate_factor()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * factor
        self.model.train()
        batch = self.batch(self.step)
        share = processes.share(batch)
        if not self._recorded:
            self._record(share)
        with self.autocast():
            # the processes' gradients are averaged, so each counts as much as its share of the images
            loss = -self._log_prob(share).mean() * (len(share) * processes.count / len(batch)) / LOG2
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip or math.inf)
        bits_per_dim, size = self.optimise(torch.stack((processes.mean(loss), norm.detach())))
        if not math.isfinite(bits_per_dim) or not math.isfinite(size):
            raise FloatingPointError(
                f"training broke down at step {self.step}: {bits_per_dim} bits/dim, gradient of norm {size}"
            )
        self.count_step(time.perf_counter() - started)
        return bits_per_dim

    def losses(self, found: float) -> dict[str, float]:
        return {"train_bits_per_dim": found}

    def rates(self) -> dict[str, float]:
        """Adam's, and Muon's where that optimises."""
        rates = [each.param_groups[0]["lr"] for each in reversed(self.optimisers)]
        return dict(zip(("learning_rate", "muon_learning_rate"), rates, strict=False))

    def _record(self, images: Tensor) -> None:
        """From now on, replay what the passes over a batch of this shape start on the GPU."""
        device, bf16 = self.processes.device.type, self.settings.precision == "bf16"
        with torch.autocast(device, torch.bfloat16, enabled=bf16, cache_enabled=False):
            recorded = torch.cuda.make_graphed_callables(self._log_prob, (images.clone(),))
        self._log_prob = typing.cast("Callable[[Tensor], Tensor]", recorded)
        self._recorded = True

    def evaluate(self, model: PixelCNN, images: Tensor) -> float:
        """Mean bits/dim of a network, such as the averaged one, over uint8 images, in the training's precision."""
        model.eval()
        with self.autocast():
            return mean_bits_per_dim(model, images)

    def best(self) -> tuple[PixelCNN, str]:
        """The network to keep, and which weights it has: 'averaged', or, once the run is over, 'last' where these are
        better on some training images.

        In the middle of a run the last weights are noisy. At its end, when the rates have fallen to zero, they are not,
        and the average trails behind them: the shorter the run, the further.
        """
        if self.progress >= 1.0:
            images = self.images[self._epoch_order(0)[:COMPARED_IMAGES]]
            if self.evaluate(self.model, images) < self.evaluate(self.averaged, images):
                return self.model, "last"
        return self.averaged, "averaged"


def read_settings(checkpoint: Path) -> tuple[PixelCNNConfig, TrainingSettings]:
    """The network and the settings of a run that left a checkpoint.

    FileNotFoundError where there is none, ValueError where it is damaged or another kind of file.
    """
    return settings_in(read_header(checkpoint, CHECKPOINT_FORMAT).metadata, checkpoint)


def settings_in(metadata: dict[str, str], checkpoint: Path) -> tuple[PixelCNNConfig, TrainingSettings]:
    """As :func:`read_settings`, of a checkpoint's metadata."""
    settings = metadata_record(TrainingSettings, metadata, checkpoint, "training settings", "settings")
    return parse_config(metadata, checkpoint), settings


@torch.no_grad()
def mean_bits_per_dim(model: PixelCNN, images: Tensor, *, progress: bool = False) -> float:
    """Mean bits/dim of uint8 images (N, C, H, W) under a model, on whichever device that is.

    fp32 is what it says, on a GPU too; autocast is the caller's.
    """
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64)
    with (
        progress_of(len(images), shown=progress) as shown,
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
    ):
        shown.entitle("measuring")
        for part in images.split(fewer_if_large(EVALUATED_AT_ONCE, images)):
            total += model.log_prob(part.to(device)).double().sum().cpu()
            shown.advance(len(part))
    return -float(total) / images.numel() / LOG2
