"""Measuring the engines: images/s beside what the machine's own matrix products would allow.

Every row holds a ratio of two rates measured in the same run, since absolute timings of shared machines are noisy:
``fraction_of_limit`` is images/s times the network's forward FLOP over the matrix-product rate of torch in the same
precision and with as many threads. One is a decode that does nothing but matrix products, as fast as torch's.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..pixelcnn.network import PixelCNN, PixelCNNConfig, forward_flops
from ..pixelcnn.shipped import SHIPPED, load
from . import cpu
from .choosers import Greedy
from .registry import select
from .schedule import schedule_for
from .settings import DEFAULTS, DecodeSettings

EPS = 16
# (rows, inner, columns): blocks of images times the taps and channels of the paper's layers, and a larger square
# product, in case the library is at its best there
MATRIX_SHAPES = ((64, 1920, 320), (128, 1920, 320), (256, 1280, 160), (1024, 1024, 1024))
GPU_MATRIX_SHAPES = ((4096, 4096, 4096), (8192, 8192, 8192))
PAPER_NETWORKS = {
    "paper-cifar10": PixelCNNConfig((32, 32), 3, filters=160, resnets=5),
    "paper-fashion-mnist": PixelCNNConfig((28, 28), 1, filters=40, resnets=5),
}
NETWORKS = (*PAPER_NETWORKS, *(f"shipped-{name}" for name in SHIPPED))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement. Rates are medians over the rounds; ``matrix_gflops`` is torch's, in the same run."""

    network: str
    engine: str
    isa: str
    precision: str
    batch: int
    threads: int
    images_per_second: float
    matrix_gflops: float
    fraction_of_limit: float
    bytes_per_image: int


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def matrix_rate(
    precision: str,
    threads: int,
    seconds: float = 0.3,
    *,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """GFLOP/s of torch's matrix product: the best of a few shapes, each tried for ``seconds``.

    precision: 'fp32' or 'bf16'. The best round counts, not the mean: the limit of the machine is asked for, not its
    load of the moment. clock: tells the seconds.
    """
    device = torch.device(device)
    shapes = GPU_MATRIX_SHAPES if device.type == "cuda" else MATRIX_SHAPES
    with torch_threads(threads):
        return max(_rate(shape, DTYPES[precision], seconds, device, clock) for shape in shapes)


def _rate(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    seconds: float,
    device: torch.device,
    clock: Callable[[], float],
) -> float:
    rows, inner, columns = shape
    a, b = torch.randn(rows, inner).to(device, dtype), torch.randn(inner, columns).to(device, dtype)
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    gpu = device.type == "cuda"
    wait: Callable[[], None] = torch.cuda.synchronize if gpu else lambda: None
    torch.mm(a, b, out=out)
    wait()
    gflop = 2e-9 * rows * inner * columns
    repeats = max(1, round((5000.0 if gpu else 2.0) / gflop))  # a round is some milliseconds
    best, end = 0.0, clock() + seconds
    while clock() < end:
        started = clock()
        for _ in range(repeats):
            torch.mm(a, b, out=out)
        wait()
        best = max(best, repeats * gflop / (clock() - started))
    return best


@functools.cache
def network(name: str) -> PixelCNN:
    """A network of the benchmark: the paper's sizes with random weights, or a shipped model.

    Random weights are initialised from data, so that activations are of the size they have in a trained network.
    Raises ValueError for an unknown name.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(NETWORKS)}")
    if name not in PAPER_NETWORKS:
        return load(name.removeprefix("shipped-"))
    config = PAPER_NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PixelCNN(config)
        model.initialise(smooth_images(16, config))
    return model.eval()


def smooth_images(count: int, config: PixelCNNConfig) -> Tensor:
    """Images (count, C, H, W) uint8 with the smoothness of real ones: noise on four scales, always the same."""
    generator = torch.Generator().manual_seed(0)
    H, W = config.image_size
    total = torch.zeros(count, config.channels, H, W)
    for divisor in (1, 2, 4, 8):
        coarse = torch.randn(count, config.channels, -(-H // divisor), -(-W // divisor), generator=generator)
        total += divisor * torch.nn.functional.interpolate(coarse, size=(H, W), mode="bilinear")
    return (127.5 + 16 * total).clamp(0, 255).to(torch.uint8)


def measure(
    name: str,
    *,
    precision: str,
    batch: int,
    rounds: int = 3,
    settings: DecodeSettings = DEFAULTS,
    timer: Callable[[Callable[[], None]], float] | None = None,
) -> Row:
    """Decode ``batch`` images ``rounds`` times on the CPU engine, and compare with the matrix rate before and after.

    settings: threads, order and instruction set. timer: runs a function and gives the median of its seconds, in place
    of ``rounds`` plain timings. Raises ValueError for an unknown network or
    precision, RuntimeError where the compiled module is missing.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision must be one of {', '.join(DTYPES)}, got {precision!r}")
    chosen = select("cpu")
    model = network(name)
    schedule, images = schedule_for(model), smooth_images(batch, model.config)
    threads, isa = cpu.threads_of(settings), cpu.isa_of(settings)
    bytes_per_image = cpu.packed(schedule, precision, isa).bytes_per_image

    def decode() -> None:
        chosen.decode(schedule, images, Greedy(EPS), precision=precision, settings=settings)

    def plain_timer(function: Callable[[], None]) -> float:
        times = []
        for _ in range(rounds):
            before = time.perf_counter()
            function()
            times.append(time.perf_counter() - before)
        return statistics.median(times)

    before = matrix_rate(precision, threads)
    seconds = (timer or plain_timer)(decode)
    gflops = max(before, matrix_rate(precision, threads))
    rate = batch / seconds
    return Row(
        network=name,
        engine=chosen.name,
        isa=isa,
        precision=precision,
        batch=batch,
        threads=threads,
        images_per_second=rate,
        matrix_gflops=gflops,
        fraction_of_limit=rate * forward_flops(model.config) * 1e-9 / gflops,
        bytes_per_image=bytes_per_image,
    )


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| network | engine | ISA | precision | batch | threads | images/s | matrix GFLOP/s | of limit | MB/image |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.network} | {row.engine} | {row.isa} | {row.precision} | {row.batch} | {row.threads} "
            f"| {row.images_per_second:.2f} | {row.matrix_gflops:.0f} | {100 * row.fraction_of_limit:.0f} % "
            f"| {row.bytes_per_image / 1e6:.2f} |"
        )
    return "\n".join(lines)
