"""How long one image takes on the CPU: the decode in each order, and a whole call of ``purify``, as users make it.

``cpu_report.py --part single_images`` measures it. The weights are trained and the images are real, with noise of ±8:
with random weights a row settles at once. A call also follows an operation of torch on all cores, as one follows a
classifier's: torch's threads keep their cores busy for some milliseconds after it. And it stands beside a process that
never rests. Medians; the ways take turns.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from noisy_images import noisy_images
from torch import Tensor

import pxfast
from pxfast.engines import benchmark, cpu
from pxfast.engines.choosers import Greedy
from pxfast.engines.schedule import schedule_for
from pxfast.engines.settings import DecodeSettings

NETWORKS = ("shipped-cifar10", "shipped-fashion-mnist")
IMAGES = 5
REST = 0.015  # seconds before each, in which torch's threads fall asleep


def single_images(threads: int, rounds: int = 8) -> list[dict[str, Any]]:
    """Seconds of one image alone by way, the median of ``rounds`` decodes of each of a few images; a row a network."""
    return [_row(name, threads, rounds) for name in NETWORKS]


def _row(name: str, threads: int, rounds: int) -> dict[str, Any]:
    model = benchmark.network(name)
    schedule, precision = schedule_for(model), cpu.best_precision()
    images = noisy_images(model.config.channels, IMAGES)

    def decode(threads: int, order: str) -> Callable[[Tensor], object]:
        settings = DecodeSettings(threads=threads, order=order)
        return lambda image: cpu.decode(schedule, image, Greedy(benchmark.EPS), precision=precision, settings=settings)

    def call(image: Tensor) -> object:
        return pxfast.purify(image, benchmark.EPS, model=model, threads=threads)

    ways = {
        "one thread": decode(1, "sequential"),
        **{order: decode(threads, order) for order in ("sequential", "speculative", "auto")},
        "call": call,
    }
    row: dict[str, Any] = {"network": name, "precision": precision, "threads": threads}
    row.update(_medians(ways, images, rounds, lambda: time.sleep(REST)))
    row.update(_medians({"call after torch": call}, images, rounds, _torch_on_all_cores))
    with _busy_neighbour():
        row.update(_medians({"call beside a process": call}, images, rounds, lambda: time.sleep(REST)))
    return row


def _medians(
    ways: dict[str, Callable[[Tensor], object]], images: Tensor, rounds: int, before_each: Callable[[], object]
) -> dict[str, float]:
    times: dict[str, list[float]] = {way: [] for way in ways}
    for done in range(rounds + 1):  # the first one packs the weights
        for way, function in ways.items():
            for image in images.split(1):
                before_each()
                started = time.perf_counter()
                function(image)
                if done:
                    times[way].append(time.perf_counter() - started)
    return {way: statistics.median(seconds) for way, seconds in times.items()}


def _torch_on_all_cores() -> None:
    torch.ones(1_000_000).add_(1.0)


@contextlib.contextmanager
def _busy_neighbour() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def single_images_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as a table in Markdown, in milliseconds."""
    ways = [way for way in rows[0] if way not in ("network", "precision", "threads")]
    return [
        "### One image",
        "",
        f"Milliseconds, trained weights, medians over {IMAGES} real images; {rows[0]['threads']} threads, but for one.",
        "",
        f"| network | precision | {' | '.join(ways)} |",
        f"|---|---|{'---:|' * len(ways)}",
        *(
            f"| {row['network']} | {row['precision']} | {' | '.join(f'{1e3 * row[way]:.1f}' for way in ways)} |"
            for row in rows
        ),
    ]
