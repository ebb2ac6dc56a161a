"""Training images/s as a fraction of what the machine's own matrix products would allow.

A training step is counted as three forward passes (Kaplan et al. 2020: the backward pass does every product twice), so
    fraction = images/s x 3 x forward_flops / matrix rate,
with both rates measured in the same run, and the matrix rate on both sides of the training steps.

python bench/training_rate.py                          # the network of the preset 'small' on CIFAR-10, CPU or GPU
python bench/training_rate.py --preset full --filters 64 --resnets 2 --batch-size 128 --device cuda --json FILE
python bench/training_rate.py --compile no --optimiser muon --profile 12    # and the operations that take longest
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pxfast.base.memory import keep_freed_memory
from pxfast.data.datasets import DATASETS
from pxfast.engines.benchmark import smooth_images
from pxfast.engines.yardstick import matrix_rate
from pxfast.pixelcnn.network import forward_flops
from pxfast.pixelcnn.training import PRESETS, Trainer, preset
from pxfast.training.processes import Processes, join

BATCHES = 4  # different ones, taken in turn
PROFILED_STEPS = 3


def step_seconds(trainer: Trainer, steps: int, clock: Callable[[], float]) -> tuple[list[float], float]:
    """Seconds of every one of ``steps`` steps, each to its end, after two that warm up, and the last one's bits/dim."""
    for _ in range(2):
        trainer.train_step()
    seconds, bits_per_dim = [], math.nan
    for _ in range(steps):
        started = clock()
        bits_per_dim = trainer.train_step()
        if trainer.processes.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - started)
    return seconds, bits_per_dim


def operations(trainer: Trainer, count: int) -> list[dict[str, Any]]:
    """The ``count`` operations that took longest in three more steps, with their own share of all operations' time."""
    on_gpu = trainer.processes.device.type == "cuda"
    kinds = [ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
    with profile(activities=kinds, acc_events=True) as profiled:
        for _ in range(PROFILED_STEPS):
            trainer.train_step()
    found = {
        event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count)
        for event in profiled.key_averages()
    }
    whole = sum(seconds for seconds, _ in found.values())
    longest = sorted(found.items(), key=lambda each: -each[1][0])[:count]
    return [
        {"operation": name, "share": seconds / whole, "calls": calls // PROFILED_STEPS}
        for name, (seconds, calls) in longest
    ]


def measure(
    name: str,
    dataset: str,
    size: dict[str, int],
    changes: dict[str, object],
    processes: Processes,
    steps: int,
    clock: Callable[[], float],
    profiled: int = 0,
) -> dict[str, Any]:
    """A row of the table. size: filters and layers a level, where they are not the preset's. profiled: how many
    operations to name.
    """
    config, settings = preset(name, dataset)
    config, settings = dataclasses.replace(config, **size), dataclasses.replace(settings, **changes)
    trainer = Trainer(config, settings, smooth_images(BATCHES * settings.batch_size, config), processes)
    settings = trainer.settings  # with the precision that 'auto' is here
    trainer.initialise()
    threads, device = torch.get_num_threads(), processes.device
    torch.backends.cudnn.benchmark = device.type == "cuda"  # as in training
    before = matrix_rate(settings.precision, threads, device=device, clock=clock)
    seconds, bits_per_dim = step_seconds(trainer, steps, clock)
    seconds.sort()
    gflops = max(before, matrix_rate(settings.precision, threads, device=device, clock=clock))
    gflop = 3e-9 * forward_flops(config) * settings.batch_size
    best, median = seconds[0], seconds[len(seconds) // 2]
    longest = {"operations": operations(trainer, profiled)} if profiled > 0 else {}
    return {
        "filters": config.filters,
        "resnets": config.resnets,
        "image": (*config.image_size, config.channels),
        "batch": settings.batch_size,
        "precision": settings.precision,
        "compiled": settings.compile,
        "cuda_graphs": settings.cuda_graphs,
        "optimiser": settings.optimiser,
        "images_per_second": settings.batch_size / median,
        "matrix_gflops": gflops,
        "of_it": gflop / median / gflops,
        "at_best": gflop / best / gflops,
        "bits_per_dim": bits_per_dim,
        **longest,
    }


def line(row: dict[str, Any]) -> str:
    """The row in Markdown."""
    cells = (
        f"{row['filters']}, {row['resnets']}",
        "x".join(map(str, row["image"])),
        row["batch"],
        row["precision"],
        "yes" if row["compiled"] else "no",
        row["optimiser"],
        f"{row['images_per_second']:.1f}",
        f"{row['matrix_gflops']:.0f}",
        f"{100 * row['of_it']:.0f} %",
        f"{100 * row['at_best']:.0f} %",
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--dataset", choices=sorted(DATASETS), default="cifar10")
    parser.add_argument("--filters", type=int)
    parser.add_argument("--resnets", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--optimiser", choices=("adam", "muon"), nargs="+", default=["adam", "muon"])
    parser.add_argument("--compile", choices=("no", "yes"), nargs="+", default=["no", "yes"])
    parser.add_argument("--cuda-graphs", action="store_true", help="replay eager steps")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--profile", type=int, default=0, help="name so many operations, those that take longest")
    parser.add_argument("--json", type=Path, help="a file that each row is appended to, as a line")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count the process's time on the CPU instead of the clock's: one thread, on a machine with other work",
    )
    arguments = parser.parse_args()
    if arguments.cpu_time and (arguments.threads != 1 or arguments.device != "cpu"):
        parser.error("--cpu-time goes with --threads 1 --device cpu")
    keep_freed_memory()  # as the command line does
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    torch.set_num_threads(arguments.threads)
    columns = "filters, resnets|image|batch|precision|compiled|optimiser|images/s|matrix GFLOP/s|of it|at best"
    print(f"| {columns.replace('|', ' | ')} |\n|---|---|---:|---|---|---|---:|---:|---:|---:|")
    with join(arguments.device) as processes:
        for compiled in arguments.compile:
            for optimiser in arguments.optimiser:
                changes = {
                    "batch_size": arguments.batch_size or preset(arguments.preset, arguments.dataset)[1].batch_size,
                    "precision": arguments.precision,
                    "compile": compiled == "yes",
                    "cuda_graphs": arguments.cuda_graphs and compiled == "no",
                    "optimiser": optimiser,
                }
                given = {"filters": arguments.filters, "resnets": arguments.resnets}
                size = {key: value for key, value in given.items() if value is not None}
                row = measure(
                    arguments.preset,
                    arguments.dataset,
                    size,
                    changes,
                    processes,
                    arguments.steps,
                    clock,
                    arguments.profile,
                )
                print(line(row), flush=True)
                for each in row.get("operations", ()):
                    print(f"    {100 * each['share']:5.1f} %  {each['calls']:6}  {each['operation']}", flush=True)
                if arguments.json is not None:
                    with arguments.json.open("a") as file:
                        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
