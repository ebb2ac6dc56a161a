"""Measuring the engines: images/s beside what the machine's own matrix products would allow.

Every row holds a ratio of two rates measured in the same run, since absolute timings of shared machines are noisy:
``fraction_of_limit`` is the engine's GFLOP/s, images/s times the network's forward FLOP, over torch's matrix rate on
the same instruction set, in the same precision and with as many threads. One is a decode that does nothing but matrix
products, as fast as torch's. bf16 on a set without bf16 instructions is held against fp32's rate.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..pixelcnn.network import PixelCNN, PixelCNNConfig, forward_flops
from ..pixelcnn.shipped import SHIPPED, load
from . import cpu
from .choosers import Greedy
from .registry import select
from .schedule import schedule_for
from .settings import DEFAULTS, DecodeSettings
from .yardstick import DTYPES, Yardstick, clock_of, matrix_precision

EPS = 16
PAPER_NETWORKS = {
    "paper-cifar10": PixelCNNConfig((32, 32), 3, filters=160, resnets=5),
    "paper-fashion-mnist": PixelCNNConfig((28, 28), 1, filters=40, resnets=5),
}
NETWORKS = (*PAPER_NETWORKS, *(f"shipped-{name}" for name in SHIPPED))


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement. Rates are medians over the rounds; ``matrix_gflops`` is torch's, in the same run.

    gflops: images/s times the forward FLOP. matrix_precision: that of torch's products.
    """

    network: str
    engine: str
    isa: str
    precision: str
    batch: int
    threads: int
    images_per_second: float
    gflops: float
    matrix_gflops: float
    matrix_precision: str
    fraction_of_limit: float
    bytes_per_image: int

    @property
    def of_limit(self) -> str:
        """The fraction in per cent. Above 100 it says that something kept the yardstick from its own rate."""
        percent = f"{100 * self.fraction_of_limit:.0f} %"
        return f"{percent}, yardstick disturbed" if self.fraction_of_limit > 1 else percent


def check_networks(names: Iterable[str]) -> None:
    """ValueError for a name that is none of ``NETWORKS``."""
    for name in names:
        if name not in NETWORKS:
            raise ValueError(f"unknown network {name!r}; known: {', '.join(NETWORKS)}")


@functools.cache
def network(name: str) -> PixelCNN:
    """A network of the benchmark: the paper's sizes with random weights, or a shipped model.

    Random weights are initialised from data, so that activations are of the size they have in a trained network.
    Raises ValueError for an unknown name.
    """
    check_networks([name])
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
    cpu_time: bool = False,
    timer: Callable[[Callable[[], None], Callable[[], None]], float] | None = None,
) -> Row:
    """Decode ``batch`` images ``rounds`` times on the CPU engine, with rounds of the yardstick between them.

    settings: threads, order and instruction set. cpu_time: seconds are those of the processors per thread, for a
    machine that does other work as well. timer: runs its first argument some times and its second one before each, and
    gives the median of the first one's seconds, in place of plain timings. Raises ValueError for an unknown network or
    precision, RuntimeError where the compiled module is missing or torch does not keep to the instruction set.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision must be one of {', '.join(DTYPES)}, got {precision!r}")
    chosen = select("cpu")
    model = network(name)
    threads, isa = cpu.threads_of(settings), cpu.isa_of(settings)
    clock = clock_of(threads, cpu_time)

    def plain_timer(function: Callable[[], None], before_each: Callable[[], None]) -> float:
        times = []
        for _ in range(rounds):
            before_each()
            before = clock()
            function()
            times.append(clock() - before)
        return statistics.median(times)

    matrix = matrix_precision(isa, precision)
    with Yardstick(isa, matrix, threads, cpu_time=cpu_time) as yardstick:
        schedule, images = schedule_for(model), smooth_images(batch, model.config)
        bytes_per_image = cpu.packed(schedule, precision, isa).bytes_per_image
        rates: list[float] = []

        def decode() -> None:
            chosen.decode(schedule, images, Greedy(EPS), precision=precision, settings=settings)

        def measure_torch() -> None:
            rates.append(yardstick.rate())

        seconds = (timer or plain_timer)(decode, measure_torch)
        measure_torch()
    images_per_second, matrix_gflops = batch / seconds, statistics.median(rates)
    gflops = images_per_second * forward_flops(model.config) * 1e-9
    return Row(
        network=name,
        engine=chosen.name,
        isa=isa,
        precision=precision,
        batch=batch,
        threads=threads,
        images_per_second=images_per_second,
        gflops=gflops,
        matrix_gflops=matrix_gflops,
        matrix_precision=matrix,
        fraction_of_limit=gflops / matrix_gflops,
        bytes_per_image=bytes_per_image,
    )


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| network | engine | ISA | precision | batch | threads | images/s | GFLOP/s | torch's GFLOP/s | of limit "
        "| MB/image |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.network} | {row.engine} | {row.isa} | {row.precision} | {row.batch} | {row.threads} "
            f"| {row.images_per_second:.2f} | {row.gflops:.0f} | {row.matrix_gflops:.0f} {row.matrix_precision} "
            f"| {row.of_limit} | {row.bytes_per_image / 1e6:.2f} |"
        )
    return "\n".join(lines)
