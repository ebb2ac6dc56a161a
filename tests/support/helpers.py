"""What several test modules share: real images, sharp small models, measures of exactness, subprocesses."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import hashlib
import inspect
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.main import get_command  # itself: the fixture run_here replaces it in its module

import pxfast
from pxfast.base.code import code_hash
from pxfast.cli.main import app
from pxfast.engines.choosers import LEAST_MASS, Chooser, Greedy, Ranges, Sample, out_of, uniforms
from pxfast.pixelcnn.heads import LogisticHead, make_head
from pxfast.pixelcnn.network import PixelCNN, PixelCNNConfig
from pxfast.pixelcnn.oracle import oracle
from pxfast.pixeldefend.verify import regret_of

TESTS = Path(__file__).parents[1]
SOURCE = TESTS.parent
KEYS = {1: "fashion_mnist", 3: "cifar10"}
LABELS = {
    1: "9211614657457341248025791460938833807579613767212244582284807785",
    3: "388066163109579857867049524096654592419546560939",
}


@functools.cache
def bundled_images(channels: int) -> Tensor:
    """Real images that lie in tests/data: 64 of Fashion-MNIST (1, 28, 28) or 48 of CIFAR-10 (3, 32, 32), uint8."""
    with np.load(TESTS / "data" / "real_images.npz") as file:
        return torch.from_numpy(file[KEYS[channels]])


def bundled_labels(channels: int) -> Tensor:
    """The classes (N,) int64 of the bundled images."""
    return torch.tensor([int(label) for label in LABELS[channels]])


def real_images(channels: int, size: tuple[int, int], count: int) -> Tensor:
    """``count`` crops (count, channels, H, W) of the bundled images, different ones, always the same ones.

    A size beyond that of the images (28 or 32) is reached by mirroring at the border.
    """
    images = bundled_images(channels)
    H, W = size
    padding = (max(0, W - images.shape[3]), max(0, H - images.shape[2]))
    if any(padding):
        images = torch.nn.functional.pad(images.float(), (0, padding[0], 0, padding[1]), mode="reflect").byte()
    generator = torch.Generator().manual_seed(0)
    crops = []
    for n in range(count):
        top = int(torch.randint(0, images.shape[2] - H + 1, (), generator=generator))
        left = int(torch.randint(0, images.shape[3] - W + 1, (), generator=generator))
        crop = images[n % len(images), :, top : top + H, left : left + W]
        crops.append(crop.flip(2) if (n // len(images)) % 2 else crop)
    return torch.stack(crops)


def random_model(
    image_size: tuple[int, int] = (8, 8),
    channels: int = 1,
    filters: int = 8,
    resnets: int = 1,
    *,
    seed: int = 0,
    **changes,
) -> PixelCNN:
    """A random network in eval mode whose features have the spread that data-dependent initialisation gives.

    The output layer is scaled up, so that the 256-way distributions differ from pixel to pixel.
    """
    config = PixelCNNConfig(image_size, channels, filters, resnets, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PixelCNN(config)
        model.initialise(torch.randint(0, 256, (16, channels, *image_size), dtype=torch.uint8))
    with torch.no_grad():
        model.output.g.mul_(10.0)
    return model.eval()


def wide_component_parameters(channels: int) -> Tensor:
    """Parameters (P,) of a mixture of two components: one sharp and above all values, one so wide that fp32 fails.

    The sharp one gives the values between 0 and 255 e^-1000 to e^-3200, the more the larger they are. The wide one
    gives each of them e^-4005; its inverse scale underflows in fp32. The channels do not depend on each other.
    """
    means, log_scales = (1.9, 0.0), (-7.0, 4000.0)
    coefficients = (0.0, 0.0) if channels == 3 else ()
    return torch.tensor((0.0, 0.0) + channels * (*means, *log_scales, *coefficients))


def wide_component_model(channels: int, head: str) -> PixelCNN:
    """A model over 4x4 images that gives :func:`wide_component_parameters` at every pixel."""
    model = random_model((4, 4), channels, head=head, mixtures=2)
    with torch.no_grad():
        model.output.g.zero_()
        model.output.b.copy_(wide_component_parameters(channels))
    return model


def noisy(images: Tensor, amount: int = 12, seed: int = 0) -> Tensor:
    """The images plus uniform integer noise of up to ±amount, clipped to the grid."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(-amount, amount + 1, images.shape, generator=generator)
    return (images.int() + noise).clamp(0, 255).to(torch.uint8)


@functools.cache
def trained_model(
    size: tuple[int, int], channels: int, filters: int, resnets: int, head: str = "logistic", steps: int = 16
) -> PixelCNN:
    """A small model trained for some steps on real crops: its distributions are sharp. Don't change it.

    An untrained network's distributions are so flat that the argmax within a range depends on rounding, and a wrong
    feature would hardly move it; a few steps of Adam at a high rate give peaks as real ones have. 5 mixtures keep the
    256-way evaluation cheap; the authors' golden models have 10. The rate falls with the width: at 1e-2 a network of 48
    filters diverges, and then the processor's rounding during the training decides how exact bf16 can be afterwards.
    """
    config = PixelCNNConfig(size, channels, filters, resnets, mixtures=5, head=head)
    model = PixelCNN(config)  # no weight depends on the size of an image
    model.load_state_dict(_trained_weights(dataclasses.replace(config, image_size=(8, 8)), steps))
    return model.eval().requires_grad_(False)


# where trained models are kept, if conftest.py has put a folder in: for the workers of pytest-xdist, and for later runs
models_kept_in: list[Path] = []


@functools.cache
def _trained_weights(config: PixelCNNConfig, steps: int) -> dict[str, Tensor]:
    if not models_kept_in:
        return _train(config, steps)

    def make(folder: Path) -> None:
        save_file(_train(config, steps), folder / "weights.safetensors")

    name = hashlib.sha256(repr((config, steps, _what_trains())).encode()).hexdigest()[:16]
    return load_file(made_once_in(models_kept_in[0], f"model-{name}", make) / "weights.safetensors")


@functools.cache
def _what_trains() -> tuple[str, ...]:
    """All that a trained model depends on beside its arguments."""
    images = b"".join(bundled_images(channels).numpy().tobytes() for channels in (1, 3))
    ours = inspect.getsource(_train) + inspect.getsource(real_images)
    return torch.__version__, code_hash("pxfast.pixelcnn.network"), ours, hashlib.sha256(images).hexdigest()


def _train(config: PixelCNNConfig, steps: int) -> dict[str, Tensor]:
    """Computed in fp64: the steps magnify rounding a million times, so that in fp32 every machine has its own model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.filters * 100 + config.resnets)
        images = real_images(config.channels, config.image_size, 64)
        model = PixelCNN(config).double()
        model.initialise(images)
        rate = 1e-2 * min(1.0, 10 / config.filters)
        optimiser = torch.optim.Adam(model.parameters(), rate)
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 10)
            batch = images[(step * 8) % len(images) :][:8]
            loss = -model.log_prob(batch).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            assert loss.isfinite()
    return {name: value.float().contiguous() for name, value in model.state_dict().items()}


def plain_mixture_log_prob(features: Tensor, images: Tensor, bins_per_unit: float, joint: bool) -> Tensor:
    """What ``pxfast.kernels.mixture.mixture_log_prob`` computes, by the plain path of the heads."""
    C = images.shape[1]
    head = make_head("pixelcnn++" if joint else "logistic", C, features.shape[1] // (10 if C == 3 else 3))
    assert isinstance(head, LogisticHead)
    assert head.bins_per_unit == bins_per_unit
    return head.plain_log_prob(features, images)


@torch.no_grad()
def regret(model: PixelCNN, before: Tensor, after: Tensor, eps: int) -> Tensor:
    """Log-probability of the best value in range minus that of the chosen one, in nats: (N, C, H, W).

    Written here apart from ``pxfast.verify``, which the tests compare with it.
    """
    log_probs = model.log_probs(after)
    distance = (torch.arange(256) - before.int().unsqueeze(-1)).abs()
    best = log_probs.masked_fill(distance > eps, -torch.inf).amax(dim=-1)
    return best - log_probs.gather(-1, after.long().unsqueeze(-1)).squeeze(-1)


# In nats, mean and largest: by how much one engine's regret may exceed twice another's. fp32: as pxfast.verify allows.
# bf16: ten times what was seen of any engine, over models whose training was perturbed in the last bits.
ROOM = {"fp32": (1e-5, 1e-3), "bf16": (5e-4, 0.1)}


@torch.no_grad()
def assert_as_exact(
    model: PixelCNN, images: Tensor, result: Tensor, other: Tensor, chooser: Greedy, precision: str
) -> None:
    """``result`` keeps to the bounds, and its regret is no worse than that of ``other``, an engine that is trusted.

    All images are (N, C, H, W) uint8. How many of them differ is not asked: beside a near-tie two correct roundings
    part ways, and how many near-ties there are depends on the processor, which rounded the model's training as well.
    """
    assert_within(chooser.ranges(images), result)
    network = oracle(model, precision)
    ours, theirs = (
        regret_of(functools.partial(network.head.log_probs, network(x), x), images, x, chooser).double()
        for x in (result, other)
    )
    mean, largest = ROOM[precision]
    assert float(ours.mean()) <= 2 * float(theirs.mean()) + mean, f"mean regret {ours.mean()}, not {theirs.mean()}"
    assert float(ours.max()) <= 2 * float(theirs.max()) + largest, f"regret up to {ours.max()}, not {theirs.max()}"


@torch.no_grad()
def assert_chosen(model: PixelCNN, images: Tensor, result: Tensor, chooser: Chooser) -> None:
    """Every sub-pixel of ``result`` is what the chooser takes, up to the rounding of fp32.

    All images are (N, C, H, W) uint8. One teacher-forced pass gives the distributions; a sample is checked against its
    random number by inversion.
    """
    lower, upper = chooser.ranges(images)
    assert_within((lower, upper), result)
    log_probs = oracle(model, "fp32").log_probs(result)
    if isinstance(chooser, Greedy):
        assert float(regret_of(functools.partial(log_probs.gather, -1), images, result, chooser).max()) < 1e-3
        return
    _, C, H, W = result.shape
    for position in range(C * H * W):
        pixel, k = divmod(position, C)
        i, j = divmod(pixel, W)
        own = lower[:, k, i, j], upper[:, k, i, j]
        assert_sampled(log_probs[:, k, i, j], result[:, k, i, j], chooser, own, position)


def assert_within(ranges: Ranges, values: Tensor) -> None:
    """Every value is in its range, uint8 all."""
    assert ((ranges[0] <= values) & (values <= ranges[1])).all()


def cells(images: Tensor, width: int, seed: int = 0) -> Ranges:
    """The cell of ``width`` values that each sub-pixel of images (uint8) lies in, where cells begin anywhere."""
    start = torch.randint(0, width, images.shape, generator=torch.Generator().manual_seed(seed))
    lower = (images.int() - start).div(width, rounding_mode="floor") * width + start
    return lower.clamp(min=0).byte(), (lower + width - 1).clamp(max=255).byte()


def assert_sampled(log_probs: Tensor, values: Tensor, chooser: Sample, ranges: Ranges, position: int) -> None:
    """Values (N,) uint8 are the draws that the chooser's random numbers make.

    log_probs: (N, 256) in nats. ranges: (N,) uint8 both, of this sub-pixel.
    """
    tempered = (log_probs.double() / chooser.temperature).masked_fill(out_of(ranges), -torch.inf)
    cumulative = tempered.softmax(-1).cumsum(-1)
    numbers = np.arange(chooser.first, chooser.first + len(values), dtype=np.uint64)
    u = torch.from_numpy(uniforms(chooser.seed, numbers, position))
    likely = log_probs.double().masked_fill(out_of(ranges), -torch.inf)
    far_out = likely.logsumexp(-1).exp() < LEAST_MASS
    assert torch.equal(values[far_out].long(), likely.argmax(-1)[far_out]), "the likeliest, where nothing is likely"
    above = cumulative.gather(-1, values.long().unsqueeze(-1)).squeeze(-1)
    below = torch.nn.functional.pad(cumulative, (1, 0)).gather(-1, values.long().unsqueeze(-1)).squeeze(-1)
    assert (far_out | (u <= above + 1e-5)).all()
    assert (far_out | (u >= below - 1e-5)).all()


def environment(**changes: str) -> dict[str, str]:
    """The environment of a subprocess that imports pxfast and these helpers from where this process does."""
    package = Path(pxfast.__file__).parents[1]
    path = os.pathsep.join(filter(None, (str(package), str(TESTS), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path, **changes}


def run_python(code: str, *arguments: str, timeout: float = 300.0, **changes: str) -> str:
    """Run code in a fresh interpreter and give its standard output; its errors become the test's."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"exit status {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A temporary folder that ``make`` fills, once for all the workers of pytest-xdist."""
    return made_once_in(common_folder(factory), name, make)


def common_folder(factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of a run, the same for all the workers of pytest-xdist."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once_in(base: Path, name: str, make: Callable[[Path], object]) -> Path:
    """A folder in ``base`` that ``make`` fills, by whoever needs it first. It is whole or not there."""
    folder, unfinished = base / f"once-{name}", base / f"once-{name}.unfinished"
    with open(base / f"once-{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if not folder.exists():
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


@functools.cache
def whole_command() -> typer.core.TyperGroup:
    """What typer makes of all commands of ``pxfast``."""
    return get_command(app)


def bench_script(name: str) -> dict[str, Any]:
    """What a script of bench/ defines; the modules beside it are found as when it runs."""
    script = SOURCE / "bench" / name
    place = str(script.parent)
    sys.path.insert(0, place)
    try:
        return runpy.run_path(str(script))
    finally:
        sys.path.remove(place)


def command_line(*arguments: object) -> list[str]:
    """The words that run ``pxfast`` with these arguments."""
    return [sys.executable, "-m", "pxfast.cli", *map(str, arguments)]


def run_command(*arguments: object, code: int = 0, timeout: float = 240.0) -> subprocess.CompletedProcess[str]:
    """Run ``pxfast`` in a process of its own, which must end with ``code`` and without a traceback."""
    done = subprocess.run(command_line(*arguments), env=environment(), capture_output=True, text=True, timeout=timeout)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def limit_file_size() -> None:
    """As on a full disk, writing beyond 64 KiB fails in this process with an OSError."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))


def error_line(stderr: str) -> str:
    """The one line of a command that must fail."""
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]
