"""Everything that docs/cpu.md says about the CPU engine's speed, measured in one run and printed as Markdown.

    python bench/cpu_report.py --json bench/results/NAME.json
    python bench/cpu_report.py --part throughput --part profiles --isa avx2 --network shipped-cifar10

All of it takes more than an hour on two cores, of which the paper's CIFAR-10 network on the lesser instruction sets
takes most; it wants an otherwise idle machine. Every ratio is of two rates of this run. On a machine that does other
work, --threads 1 --cpu-time gives ratios of the processor's own time.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from one_image import single_images, single_images_lines

from pxfast.base.files import output_files, refuse_existing
from pxfast.base.machine import processor_name
from pxfast.engines import benchmark, compiled, cpu
from pxfast.engines.choosers import Greedy
from pxfast.engines.schedule import schedule_for
from pxfast.engines.settings import DEFAULTS, DecodeSettings
from pxfast.engines.yardstick import torch_threads
from pxfast.pixelcnn.network import forward_flops

BATCHES = {"paper-cifar10": 64}  # 128 of the other networks
PARTS = ("row_products", "pixel_products", "gather", "elementwise", "head")


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is to be measured of throughput and profiles."""

    networks: tuple[str, ...]
    isas: tuple[str, ...]
    threads: int
    cpu_time: bool


def decode_seconds(name: str, precision: str, batch: int, threads: int, order: str, rounds: int) -> float:
    """Median seconds of decoding ``batch`` images."""
    settings = DecodeSettings(threads=threads, order=order)
    model = benchmark.network(name)
    schedule, images = schedule_for(model), benchmark.smooth_images(batch, model.config)
    times = []
    for _ in range(rounds + 1):  # the first one packs the weights, and tries what is faster
        started = time.perf_counter()
        cpu.decode(schedule, images, Greedy(benchmark.EPS), precision=precision, settings=settings)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def profile(name: str, *, precision: str, batch: int, order: str = "auto", isa: str | None = None) -> dict[str, float]:
    """Seconds per image of one thread by kind of work, and speculative sweeps per image, for the CPU engine.

    Keys: row_products, pixel_products, gather, elementwise, head, sweeps. order: auto, sequential or speculative. isa:
    the best one here unless another is named.
    """
    model = benchmark.network(name)
    engine = cpu.packed(schedule_for(model), precision, cpu.isa_of(DecodeSettings(isa=isa)))
    images = benchmark.smooth_images(batch, model.config)
    chooser = compiled.chooser_for(Greedy(benchmark.EPS), images)
    spent = engine.profile(images.numpy(), chooser, compiled.ORDERS[order])
    return {part: value / batch for part, value in spent.items()}


def count(name: str, block: int = 64) -> dict[str, float]:
    """What one decoded image costs by arithmetic alone, in bf16: GFLOP and MB, from the schedule's steps.

    Keys: row_gflop, pixel_gflop; row_weight_mb, pixel_weight_mb: weights streamed per image when ``block`` images are
    decoded together; activation_mb: cells read by all taps.
    """
    schedule = schedule_for(benchmark.network(name))
    H, W = schedule.config.image_size
    found = dict.fromkeys(("row_gflop", "pixel_gflop", "row_weight_mb", "pixel_weight_mb", "activation_mb"), 0.0)
    for step in schedule.steps:
        rows, columns = H >> step.level, W >> step.level
        kind = "row" if step.per_row else "pixel"
        for tap in step.taps:
            share = (0.5 if tap.row_parity >= 0 else 1.0) * (0.5 if tap.column_parity >= 0 else 1.0)
            positions = rows * columns * share
            found[f"{kind}_gflop"] += 2e-9 * tap.matrix.numel() * positions
            streamed = rows * share if step.per_row else positions
            found[f"{kind}_weight_mb"] += 2e-6 * tap.matrix.numel() * streamed / block
            found["activation_mb"] += 2e-6 * tap.matrix.shape[0] * positions
    return found


def plain_torch_rate(name: str) -> float:
    """Images/s of uncached decoding in plain PyTorch, one whole bf16 forward pass per pixel, from a few of them."""
    model = benchmark.network(name)
    images = benchmark.smooth_images(8, model.config)
    times = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), torch_threads(cpu.threads_of()):
        for _ in range(4):
            before = time.perf_counter()
            model(images)
            times.append(time.perf_counter() - before)
    height, width = model.config.image_size
    return len(images) / (min(times) * height * width)


def machine(wish: Wish) -> dict[str, Any]:
    """What the rows were measured on."""
    return {
        "processor": processor_name(),
        "isa": cpu.isa_of(),
        "instruction_sets": list(wish.isas),
        "torch": torch.__version__,
        "threads of throughput": wish.threads,
        "seconds of throughput": "of the processors, per thread" if wish.cpu_time else "of the clock",
    }


def throughput(wish: Wish) -> list[dict[str, Any]]:
    rows = []
    for name, isa, precision in itertools.product(wish.networks, wish.isas, ("bf16", "fp32")):
        settings = DecodeSettings(threads=wish.threads, isa=isa)
        row = benchmark.measure(
            name, precision=precision, batch=BATCHES.get(name, 128), settings=settings, cpu_time=wish.cpu_time
        )
        rows.append(dataclasses.asdict(row))
    return rows


def profiles(wish: Wish) -> list[dict[str, Any]]:
    rows = []
    for name, isa, precision in itertools.product(wish.networks, wish.isas, ("bf16", "fp32")):
        spent = profile(name, precision=precision, batch=64, order="sequential", isa=isa)
        rows.append({"network": name, "isa": isa, "precision": precision, **spent})
    return rows


def small_batches(threads: int) -> list[dict[str, Any]]:
    """Seconds per image in both orders, by images per thread: where speculation stops paying."""
    rows = []
    for name in ("paper-fashion-mnist", "shipped-fashion-mnist"):
        for each in (1, 2, 3, 4, 8):
            row: dict[str, Any] = {"network": name, "images_per_thread": each}
            for order in ("sequential", "speculative"):
                row[order] = decode_seconds(name, "bf16", each * threads, threads, order, 5) / (each * threads)
            rows.append(row)
    return rows


def counts() -> list[dict[str, Any]]:
    return [{"network": name, **count(name)} for name in benchmark.NETWORKS]


def scaling() -> list[dict[str, Any]]:
    rows = []
    for name in ("paper-cifar10", "paper-fashion-mnist"):
        batch = 32 if name == "paper-cifar10" else 128
        ratios = []
        for _ in range(5):  # in turns, so that both have the same clock
            one, two = (decode_seconds(name, "bf16", batch, threads, "auto", 1) for threads in (1, 2))
            ratios.append(one / two)
        rows.append({"network": name, "batch": batch, "speedup": statistics.median(ratios)})
    return rows


FLAT = """
import json, sys, time
import torch

from pxfast.base.machine import processor_name
from pxfast.engines import benchmark, compiled, cpu
from pxfast.engines.choosers import Greedy
from pxfast.engines.schedule import schedule_for
name, count = sys.argv[1], int(sys.argv[2])
model = benchmark.network(name)
schedule = schedule_for(model)
images = benchmark.smooth_images(256, model.config).repeat(-(-count // 256), 1, 1, 1)[:count]
cpu.decode(schedule, images[:128], Greedy(benchmark.EPS), precision="bf16")  # packs the weights, warms up
open("/proc/self/clear_refs", "w").write("5")  # forget the peak of importing torch
started = time.perf_counter()
cpu.decode(schedule, images, Greedy(benchmark.EPS), precision="bf16")
seconds = time.perf_counter() - started
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) / 1024
print(json.dumps({"images": count, "seconds_per_image": seconds / count, "peak_mb": peak}))
"""


def flatness(name: str = "shipped-fashion-mnist") -> list[dict[str, Any]]:
    """Time per image and peak memory of a process, for 256 and for 10,000 images."""
    rows = []
    for count in (256, 10_000):
        done = subprocess.run(
            [sys.executable, "-c", FLAT, name, str(count)], capture_output=True, text=True, check=True
        )
        rows.append({"network": name, **json.loads(done.stdout)})
    return rows


def plain_torch(name: str = "paper-cifar10") -> dict[str, Any]:
    """The engine against one whole bf16 forward pass per pixel in plain PyTorch, both for a batch of 8."""
    plain = plain_torch_rate(name)
    engine = 8 / decode_seconds(name, "bf16", 8, cpu.threads_of(), "auto", 3)
    return {
        "network": name,
        "plain_images_per_second": plain,
        "engine_images_per_second": engine,
        "ratio": engine / plain,
    }


def markdown(results: dict[str, Any]) -> str:
    """The tables of the parts that were measured."""
    machine = results["machine"]
    lines = [
        f"Measured on {machine['processor']}, torch {machine['torch']}, by `python bench/cpu_report.py`; throughput "
        f"with {machine['threads of throughput']} threads, in seconds {machine['seconds of throughput']}.",
    ]
    for part, lines_of in TABLES.items():
        if part in results:
            lines += ["", *lines_of(results[part])]
    return "\n".join(lines)


def throughput_lines(rows: list[dict[str, Any]]) -> list[str]:
    return ["### Throughput", "", benchmark.table([benchmark.Row(**row) for row in rows])]


def counts_lines(rows: list[dict[str, Any]]) -> list[str]:
    return [
        "### What an image costs, counted",
        "",
        "In bf16, 64 images decoded together: floating-point operations, weights streamed, and cells read by the taps.",
        "",
        "| network | row GFLOP | pixel GFLOP | row weights MB | pixel weights MB | activations MB |",
        "|---|---:|---:|---:|---:|---:|",
        *(
            f"| {row['network']} | {row['row_gflop']:.2f} | {row['pixel_gflop']:.2f} | {row['row_weight_mb']:.1f} "
            f"| {row['pixel_weight_mb']:.1f} | {row['activation_mb']:.1f} |"
            for row in rows
        ),
    ]


def profiles_lines(rows: list[dict[str, Any]]) -> list[str]:
    def cells(row: dict[str, Any]) -> str:
        total = sum(row[part] for part in PARTS)
        return " | ".join(f"{1e3 * row[part]:.2f} ({100 * row[part] / total:.0f} %)" for part in PARTS)

    return [
        "### Where the time goes",
        "",
        "Milliseconds per image of one thread, batch 64, pixel by pixel.",
        "",
        f"| network | ISA | precision | {' | '.join(part.replace('_', ' ') for part in PARTS)} |",
        "|---|---|---|---:|---:|---:|---:|---:|",
        *(f"| {row['network']} | {row['isa']} | {row['precision']} | {cells(row)} |" for row in rows),
    ]


def small_batches_lines(rows: list[dict[str, Any]]) -> list[str]:
    return [
        "### Small batches",
        "",
        "Milliseconds per image in bf16, all threads, by images per thread.",
        "",
        "| network | images per thread | pixel by pixel | speculative |",
        "|---|---:|---:|---:|",
        *(
            f"| {row['network']} | {row['images_per_thread']} | {1e3 * row['sequential']:.1f} "
            f"| {1e3 * row['speculative']:.1f} |"
            for row in rows
        ),
    ]


def scaling_lines(rows: list[dict[str, Any]]) -> list[str]:
    return [
        "### Threads, batch size, plain PyTorch",
        "",
        *(
            f"- {row['network']}, batch {row['batch']}, bf16: 2 threads are {row['speedup']:.2f} times 1 thread."
            for row in rows
        ),
    ]


def flatness_lines(rows: list[dict[str, Any]]) -> list[str]:
    small, large = rows
    slowdown = large["seconds_per_image"] / small["seconds_per_image"]
    return [
        f"- {small['network']}: {large['images']} images take {slowdown:.3f} times the time per image of "
        f"{small['images']}; peak memory of the process {large['peak_mb']:.0f} MB against {small['peak_mb']:.0f} MB, "
        "images and results included."
    ]


def plain_torch_lines(row: dict[str, Any]) -> list[str]:
    return [
        f"- {row['network']}, batch 8, bf16: {row['engine_images_per_second']:.2f} images/s against "
        f"{row['plain_images_per_second']:.5f} of plain PyTorch, one forward pass per pixel: {row['ratio']:.0f} times."
    ]


TABLES: dict[str, Callable[[Any], list[str]]] = {
    "throughput": throughput_lines,
    "counts": counts_lines,
    "profiles": profiles_lines,
    "single_images": single_images_lines,
    "small_batches": small_batches_lines,
    "scaling": scaling_lines,
    "flatness": flatness_lines,
    "plain_torch": plain_torch_lines,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument("--part", choices=TABLES, action="append", help="only this part; can be given several times")
    parser.add_argument(
        "--network", choices=benchmark.NETWORKS, action="append", help="of throughput and profiles; default: all"
    )
    if reason := compiled.unavailable():
        raise SystemExit(f"the CPU engine can't run here: {reason}")
    parser.add_argument(
        "--isa", choices=compiled._C.cpu_isas(), action="append", help="of throughput and profiles; default: all here"
    )
    parser.add_argument("--threads", type=int, help="of throughput; default: the processors one may use")
    parser.add_argument("--cpu-time", action="store_true", help="throughput by the processors' own time")
    arguments = parser.parse_args()
    if arguments.json:
        refuse_existing(arguments.json, force=arguments.force)
    wish = Wish(
        networks=tuple(arguments.network or benchmark.NETWORKS),
        isas=tuple(arguments.isa or compiled._C.cpu_isas()),
        threads=cpu.threads_of(dataclasses.replace(DEFAULTS, threads=arguments.threads)),
        cpu_time=arguments.cpu_time,
    )
    threads = cpu.threads_of()
    results: dict[str, Any] = {"machine": machine(wish)}
    for part, run in {
        "counts": counts,
        "throughput": lambda: throughput(wish),
        "profiles": lambda: profiles(wish),
        "single_images": lambda: single_images(threads),
        "small_batches": lambda: small_batches(threads),
        "scaling": scaling,
        "flatness": flatness,
        "plain_torch": plain_torch,
    }.items():
        if arguments.part and part not in arguments.part:
            continue
        print(f"measuring {part} ...", file=sys.stderr, flush=True)
        results[part] = run()
    results["forward_gflop"] = {n: 1e-9 * forward_flops(benchmark.network(n).config) for n in wish.networks}
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        with output_files(arguments.json, force=arguments.force) as (temporary,):
            temporary.write_text(json.dumps(results, indent=2) + "\n")
    print(markdown(results))


if __name__ == "__main__":
    main()
