"""Training a score network by denoising score matching over noise levels (Vincent 2011; Song and Ermon 2019, 2020)."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.checks import check_instance, check_number, check_path, check_seed, check_text
from ..base.files import claimed
from ..data.datasets import image_shape, is_mirrored
from ..tensors.ambient import in_plain_torch
from ..tensors.batches import fewer_if_large
from ..tensors.safetensors import add_notes, fill, metadata_record, read_header, stored_tensors
from ..training.averaged_run import AveragedRun
from ..training.loop import run_to_the_end
from ..training.outputs import run_outputs
from ..training.processes import Processes
from ..training.provenance import training_notes
from ..training.run import alone, check_training_images
from ..training.settings import RunSettings, run_settings
from ..training.settle import settle
from .files import FORMAT, load_score_network, parse_score_config, save_score_network
from .score_network import ScoreNetwork, ScoreNetworkConfig

CHECKPOINT_FORMAT = "pxfast-score-training"
EVALUATED_AT_ONCE = 64  # images, fewer of large ones


@dataclasses.dataclass(frozen=True)
class ScoreSettings(RunSettings):
    """How to train: see :class:`pxfast.training.settings.RunSettings`, and more.

    ``levels``: how many noise levels, in geometric steps from ``sigma_max`` down to ``sigma_min``, deviations of the
    noise on images in [0, 1]. Which ones the ADP authors used can't be told from their code, whose configurations have
    232 from 50 to 0.01 and 10 from 1 to 0.01. ``clamped``: the fraction of noisy images that are clamped to [0, 1], as
    purification clamps them; the authors' are not. ``warmup``: steps in which Adam's learning rate rises.
    ``ema_decay``: of the averaged weights, which are the ones saved. ``gradient_clip``: largest norm of the gradient;
    0 clips nothing.
    """

    batch_size: int = 128
    epochs: float = 768.0
    learning_rate: float = 1e-4
    levels: int = 10
    sigma_max: float = 1.0
    sigma_min: float = 0.01
    warmup: int = 100
    ema_decay: float = 0.999
    gradient_clip: float = 1.0
    clamped: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._count("levels", least=1)
        self._count("warmup")
        self._number("sigma_min", "sigma_max", ends="()")
        if self.sigma_min > self.sigma_max:
            raise ValueError(f"expected 0 < sigma_min <= sigma_max, got {self.sigma_min} and {self.sigma_max}")
        self._number("gradient_clip")
        self._number("ema_decay", high=1.0, ends="[)")
        self._number("clamped", high=1.0)

    def sigmas(self) -> Tensor:
        """The noise levels (levels,), fp32, the largest first."""
        ends = torch.tensor((self.sigma_max, self.sigma_min), dtype=torch.float64).log()
        first, last = ends.tolist()
        return torch.linspace(first, last, self.levels, dtype=torch.float64).exp().float()


PRESETS = {
    # the authors' network, learning rate, batch, averaging and length of training, with the smaller set of levels
    "full": (128, ScoreSettings()),
    # for a CPU: levels around ADP's noise, 0.1 or 0.25. Clamped noise looks different where images are black or
    # white, so a small network has to be trained on it as well
    "small": (16, ScoreSettings(batch_size=16, epochs=2.0, learning_rate=2e-3, sigma_max=0.5, clamped=0.5)),
}


def score_preset(name: str, dataset: str | os.PathLike[str]) -> tuple[ScoreNetworkConfig, ScoreSettings]:
    """The network and settings of a preset for a data set; CIFAR-10's and CIFAR-100's images are flipped.

    dataset: a known name, or a folder of images. ValueError for an unknown preset or data set.
    """
    if check_text("a preset", name) not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    ngf, settings = PRESETS[name]
    channels, H, W = image_shape(dataset)
    flips = is_mirrored(dataset)
    return ScoreNetworkConfig((H, W), channels, ngf), dataclasses.replace(settings, horizontal_flips=flips)


def denoising_losses(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    sigmas: Tensor,
    noise: Tensor,
    clamped: Tensor | None = None,
) -> Tensor:
    """The denoising score matching losses (N,), weighted by sigma^2: means over the values of (f(x + sigma z) + z)^2.

    network: f, sigma times a score. images: floating (N, C, H, W) in [0, 1]. sigmas: (N,). noise: z, from N(0, 1), of
    the images' shape. They are about 1 where the network gives 0, and 0 where it finds the noise exactly. clamped: bool
    (N,), which noisy images are clamped to [0, 1] first; z is then what is left of the noise.
    """
    sigmas = sigmas[:, None, None, None]
    noisy = images + sigmas * noise
    if clamped is not None:
        inside = noisy.clamp(0.0, 1.0)
        clamped = clamped[:, None, None, None]
        noisy, noise = torch.where(clamped, inside, noisy), torch.where(clamped, (inside - images) / sigmas, noise)
    return (network(noisy).to(noise.dtype) + noise).square().mean((1, 2, 3))


class ScoreTrainer(AveragedRun):
    """A training run of a score network: model, averaged model, Adam's state and position in the data.

    images: uint8 (N, C, H, W), on the CPU.
    """

    settings: ScoreSettings
    model: ScoreNetwork
    averaged: ScoreNetwork
    checkpoint_format = CHECKPOINT_FORMAT

    def __init__(
        self,
        config: ScoreNetworkConfig,
        settings: ScoreSettings,
        images: Tensor,
        processes: Processes | None = None,
    ) -> None:
        check_training_images(images, (config.channels, *config.image_size))
        super().__init__(settings, images, processes, ema_decay=settings.ema_decay)
        if self.processes.count > 1:
            raise ValueError(f"a score network is trained by one process, not by {self.processes.count}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = ScoreNetwork(config).to(self.processes.device).to(memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(self.model)
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Adam(self.model.parameters(), settings.learning_rate, fused=True)
        ]
        self._sigmas = settings.sigmas()
        self._network: Callable[[Tensor], Tensor] = torch.compile(self.model) if settings.compile else self.model

    def start_from(self, network: ScoreNetwork) -> None:
        """Begin with the weights of ``network``. ValueError when it is of another size."""
        if network.config != self.model.config:
            raise ValueError(f"expected to start from a score network of {self.model.config}, got {network.config}")
        self.model.load_state_dict(network.state_dict())
        self.averaged.load_state_dict(network.state_dict())

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What :func:`denoising_losses` takes, for a step, on the CPU; it depends on seed and step alone."""
        generator = torch.Generator().manual_seed(self.step_seed(step))
        images = self.flipped(self.images[self.chosen(step)], generator).float() / 255.0
        levels = torch.randint(self.settings.levels, (len(images),), generator=generator)
        noise = torch.randn(images.shape, generator=generator)
        clamped = torch.rand(len(images), generator=generator) < self.settings.clamped
        return images, self._sigmas[levels], noise, clamped

    def learning_rate(self) -> float:
        return min(1.0, (self.step + 1) / max(1, self.settings.warmup)) * self.cosine()

    @alone
    def train_step(self) -> float:
        """One step of Adam; returns the batch's loss, see :func:`denoising_losses`.

        FloatingPointError when the loss or its gradient is not finite; the weights are then as before the step.
        """
        started = time.perf_counter()
        (adam,) = self.optimisers
        for group in adam.param_groups:
            group["lr"] = self.learning_rate()
        self.model.train()
        parts = (part.to(self.processes.device) for part in self.batch(self.step))
        with self.autocast():
            loss = denoising_losses(self._network, *parts).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip or math.inf)
        found, size = self.optimise(torch.stack((loss.detach(), norm.detach())))
        if not math.isfinite(found) or not math.isfinite(size):
            raise FloatingPointError(f"training broke down at step {self.step}: loss {found}, gradient of norm {size}")
        self.count_step(time.perf_counter() - started)
        return found

    def losses(self, found: float) -> dict[str, float]:
        return {"train_loss": found}

    def rates(self) -> dict[str, float]:
        return {"learning_rate": self.optimisers[0].param_groups[0]["lr"]}


@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
@torch.no_grad()
def denoising_quality(network: ScoreNetwork, images: Tensor, sigma: float, *, seed: int = 0) -> dict[str, float]:
    """How well a score network knows noise of a deviation ``sigma``: its loss and what Tweedie's formula makes of it.

    images: uint8 (N, C, H, W), N > 0. Returns 'loss', the mean of :func:`denoising_losses`; 'psnr', of the estimates
    x + sigma f(x), clamped to [0, 1], in dB over the mean squared error of all images; and 'noisy_psnr', of x itself.
    """
    check_instance("images", images, Tensor)
    check_training_images(images, tuple(images.shape[1:]), "test")
    sigma = check_number("sigma", sigma, 0.0, ends="()")
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(check_seed(seed))
    losses = errors = before = 0.0
    for part in images.split(fewer_if_large(EVALUATED_AT_ONCE, images)):
        clean = part.float() / 255.0
        noise = torch.randn(clean.shape, generator=generator).to(device)
        clean = clean.to(device)
        noisy = clean + sigma * noise
        found = network(noisy)
        losses += float((found + noise).double().square().sum())
        errors += float(((noisy + sigma * found).clamp(0.0, 1.0) - clean).double().square().sum())
        before += float((noisy.clamp(0.0, 1.0) - clean).double().square().sum())
    count = images.numel()
    return {
        "loss": losses / count,
        "psnr": -10.0 * math.log10(max(errors / count, 1e-30)),
        "noisy_psnr": -10.0 * math.log10(max(before / count, 1e-30)),
    }


@in_plain_torch
@torch.enable_grad()
def train_score_network(
    config: ScoreNetworkConfig,
    images: Tensor,
    out: str | os.PathLike[str],
    *,
    settings: ScoreSettings | None = None,
    start: ScoreNetwork | None = None,
    earlier: Sequence[dict[str, Any]] = (),
    resume: bool = False,
    force: bool = False,
    checkpoint_interval: float = 120.0,
    progress: bool = True,
    processes: Processes | None = None,
) -> ScoreNetwork:
    """Train a score network on uint8 images (N, C, H, W) and write the averaged one to ``out`` (bf16 safetensors).

    Every ``checkpoint_interval`` seconds the whole state goes to ``out`` with the suffix .checkpoint.safetensors, in
    shards if it is large, and the averaged network so far to ``out``; with ``resume`` a killed run goes on from there
    with the same images and noise. Ctrl-C ends the run after the step at hand, with everything kept, and raises
    KeyboardInterrupt. start: a network whose weights to begin with, in place of random ones. earlier: the runs that
    made them, for the file's notes (:mod:`pxfast.training.provenance`); a resumed run has them from its checkpoint.
    processes: names the device; a score network is trained by one process. Returns the averaged network as it is in the
    file, on its device. Raises FloatingPointError when the loss stops being finite, and what
    :func:`pxfast.training.outputs.run_outputs` raises.
    """
    settings = run_settings(
        settings,
        ScoreSettings,
        resume=resume,
        force=force,
        progress=progress,
        checkpoint_interval=checkpoint_interval,
        processes=processes,
    )
    check_path("out", out)
    check_instance("config", config, ScoreNetworkConfig)
    if start is not None:
        check_instance("start", start, ScoreNetwork)
    with run_outputs(out, resume=resume, force=force, processes=processes, progress=progress) as files:
        check_training_images(images, (config.channels, *config.image_size))
        before = files.checkpoint if files.resumed else None
        place = processes or Processes()
        settings, why = settle(settings, config, len(images), place, before, progress=progress)
        trainer = ScoreTrainer(config, settings, images, processes)
        trainer.compilation = why
        if files.resumed:
            trainer.restore(files.checkpoint, out=files.model.path)
        else:
            trainer.earlier = list(earlier)
            if start is not None:
                trainer.start_from(start)
        recent: float | None = trainer.history[-1].get("train_loss") if trainer.history else None

        def keep() -> None:
            trainer.history.append({"step": trainer.step, "seconds": round(trainer.seconds, 1), "train_loss": recent})
            trainer.save(files.checkpoint)
            with files.model.written() as temporary:
                save_score_network(trainer.averaged, temporary, notes=training_notes(trainer.facts(), trainer.earlier))

        def describe(loss: float) -> str:
            nonlocal recent
            recent = loss if recent is None else 0.98 * recent + 0.02 * loss
            return f"loss {recent:.4f}"

        run_to_the_end(
            trainer,
            keep,
            describe,
            config=config,
            log=files.log,
            checkpoint_interval=checkpoint_interval,
            progress=progress,
        )
        network = trainer.averaged
        fill(network, stored_tensors(network), os.fspath(out))  # rounded to bf16
        return network.eval()


def read_score_settings(checkpoint: Path) -> tuple[ScoreNetworkConfig, ScoreSettings]:
    """The network and the settings of a run that left a checkpoint.

    FileNotFoundError where there is none, ValueError where it is damaged or another kind of file.
    """
    metadata = read_header(checkpoint, CHECKPOINT_FORMAT).metadata
    settings = metadata_record(ScoreSettings, metadata, checkpoint, "training settings", "settings")
    return parse_score_config(metadata, checkpoint), settings


@in_plain_torch
def record_quality(
    path: str | os.PathLike[str],
    test_images: Tensor,
    sigmas: tuple[float, ...] = (0.05, 0.1, 0.25),
    *,
    device: torch.device | str = "cpu",
) -> dict[str, dict[str, float]]:
    """Measure a score network's file on uint8 test images (N, C, H, W), fp32, and keep the result in its notes.

    Notes: ``test_images`` and ``denoising``, what :func:`denoising_quality` gives by noise level. Returns the latter.
    BlockingIOError where another process writes the file; meanwhile none can train to it.
    """
    with claimed(path):  # or another training's network could be noted with the quality of this one
        network = load_score_network(path)
        check_training_images(test_images, (network.config.channels, *network.config.image_size), "test")
        network.to(device)
        found = {}
        for sigma in sigmas:
            quality = denoising_quality(network, test_images, sigma)
            found[str(sigma)] = {name: round(value, 5) for name, value in quality.items()}
        add_notes(path, {"test_images": len(test_images), "denoising": found}, FORMAT)
    return found
