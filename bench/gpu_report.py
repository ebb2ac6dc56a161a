"""Measures the CUDA engine on this machine's GPU, beside plain PyTorch and the GPU's own matrix products.

Usage: python bench/gpu_report.py throughput|teams|latency|crossover|memory|all [--out FILE] [--repeats 3]

Each part appends its rows to FILE (default: bench/results/<gpu>.json), replacing its own of an earlier run, and prints
them. Rows of ``throughput`` are those of ``pxfast bench --json``. Before it is timed, a decode is checked with
``pxfast.verify``. Times are host times around a decode that is finished on return, medians over the repeats.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch_cached import DTYPES, TorchDecoder

from pxfast.base.files import whole_file
from pxfast.engines import benchmark, cuda
from pxfast.engines.choosers import Greedy
from pxfast.engines.registry import select
from pxfast.engines.schedule import schedule_for
from pxfast.engines.settings import DecodeSettings
from pxfast.pixelcnn.network import forward_flops
from pxfast.pixeldefend.verify import verify

EPS = benchmark.EPS
# network, precision, batch, and the batch of plain PyTorch, whose graphs hold their own intermediates
THROUGHPUT = (
    ("paper-cifar10", "bf16", 2048, 1024),
    ("paper-cifar10", "bf16", 64, 64),
    ("paper-cifar10", "fp32", 1024, 1024),
    ("paper-fashion-mnist", "bf16", 4096, 2048),
    ("shipped-fashion-mnist", "bf16", 4096, 2048),
)
CROSSOVER = (1, 2, 4, 8, 16, 32, 64, 128)
# rows, inner, columns: as benchmark.MATRIX_SHAPES, at sizes that fill a GPU
MATRIX_SHAPES = ((16384, 1920, 320), (65536, 1280, 160), (8192, 8192, 8192))


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Of ``repeats`` calls after one that warms up, each waited for."""
    function()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        function()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def matrix_gflops(precision: str) -> float:
    """torch's best matrix product on random data; in fp32 with tf32 off."""
    best = 0.0
    for rows, inner, columns in MATRIX_SHAPES:
        a = torch.randn(rows, inner, device="cuda", dtype=DTYPES[precision])
        b = torch.randn(inner, columns, device="cuda", dtype=DTYPES[precision])
        seconds = median_seconds(lambda a=a, b=b: a @ b, 10)
        best = max(best, 2e-9 * rows * inner * columns / seconds)
    return best


def checked(name: str, precision: str) -> None:
    """Stop unless a few images decode exactly."""
    model = benchmark.network(name)
    images = benchmark.smooth_images(4, model.config)
    decoded = select("cuda").decode(schedule_for(model), images, Greedy(EPS), precision=precision)
    verdict = verify(images, decoded, EPS, model=model, precision=precision)
    if not verdict.passed:
        raise SystemExit(f"{name}, {precision}: what would be measured is wrong: {verdict}")


def decode_seconds(name: str, precision: str, batch: int, repeats: int, **settings: Any) -> float:
    """Median seconds of a decode. settings: those of a DecodeSettings."""
    model = benchmark.network(name)
    schedule, images = schedule_for(model), benchmark.smooth_images(batch, model.config).cuda()
    way = DecodeSettings(**settings)
    return median_seconds(
        lambda: cuda.decode(schedule, images, Greedy(EPS), precision=precision, settings=way), repeats
    )


def throughput(repeats: int) -> list[dict[str, Any]]:
    rows = []
    for name, precision, batch, plain_batch in THROUGHPUT:
        checked(name, precision)
        model = benchmark.network(name)
        schedule = schedule_for(model)
        limit = matrix_gflops(precision)
        rate = batch / decode_seconds(name, precision, batch, repeats)
        gflops = rate * forward_flops(model.config) * 1e-9
        limit = max(limit, matrix_gflops(precision))
        engine = cuda.packed(schedule, precision, torch.device("cuda", torch.cuda.current_device())).engine
        row = benchmark.Row(
            network=name,
            engine="cuda",
            isa="sm_{}{}".format(*torch.cuda.get_device_capability()),
            precision=precision,
            batch=batch,
            threads=0,
            images_per_second=rate,
            gflops=gflops,
            matrix_gflops=limit,
            matrix_precision=precision,
            fraction_of_limit=gflops / limit,
            bytes_per_image=engine.bytes_per_image(),
        )
        beside = plain(name, precision, plain_batch, rate, repeats)
        rows.append({"part": "throughput", **dataclasses.asdict(row), **beside})
    return rows


def plain(name: str, precision: str, batch: int, rate: float, repeats: int) -> dict[str, Any]:
    """The rate of torch_cached.py in the same run, and how many times it ``rate`` is."""
    model = benchmark.network(name)
    images = benchmark.smooth_images(batch, model.config).cuda()
    decoder = TorchDecoder(schedule_for(model), batch, EPS, precision, "cuda")
    found = batch / median_seconds(lambda: decoder.decode(images), repeats)
    return {"plain_batch": batch, "plain_images_per_second": found, "times_plain": rate / found}


def teams(repeats: int) -> list[dict[str, Any]]:
    """The two CIFAR-10 batches by blocks in a team (0: the engine's choice); on Hopper with weights shared in clusters,
    and either way with mma.sync instead of wgmma."""
    rows = []
    row: dict[str, Any]
    hopper = torch.cuda.get_device_capability() == (9, 0)
    for batch in (64, 2048):
        for team in (0, 1, 2, 3, 4, 6, 10, 20):
            rate = batch / decode_seconds("paper-cifar10", "bf16", batch, repeats, team=team or None)
            row = {"part": "teams", "batch": batch, "team": team, "clusters": 0, "wgmma": int(hopper)}
            rows.append({**row, "images_per_second": rate})
        for clusters, wgmma in ((1, 1), (1, 0), (0, 0)) if hopper else ():
            way = {"clusters": bool(clusters), "wgmma": bool(wgmma), "order": "sequential" if clusters else "auto"}
            rate = batch / decode_seconds("paper-cifar10", "bf16", batch, repeats, **way)
            row = {"part": "teams", "batch": batch, "team": clusters, "clusters": clusters, "wgmma": wgmma}
            rows.append({**row, "images_per_second": rate})
    return rows


def latency(repeats: int) -> list[dict[str, Any]]:
    rows = []
    for name in ("paper-cifar10", "paper-fashion-mnist", "shipped-fashion-mnist"):
        for order in ("sequential", "speculative"):
            row = {"part": "latency", "network": name, "precision": "bf16", "order": order}
            rows.append({**row, "milliseconds": 1e3 * decode_seconds(name, "bf16", 1, repeats, order=order)})
    return rows


def crossover(repeats: int) -> list[dict[str, Any]]:
    """Either order by the batch, and what the engine's own choice takes."""
    rows = []
    for name in ("paper-cifar10", "shipped-fashion-mnist"):
        for batch in CROSSOVER:
            row: dict[str, Any] = {"part": "crossover", "network": name, "precision": "bf16", "batch": batch}
            for order in ("auto", "sequential", "speculative"):
                row[f"{order}_milliseconds"] = 1e3 * decode_seconds(name, "bf16", batch, repeats, order=order)
            rows.append(row)
    return rows


def memory(repeats: int) -> list[dict[str, Any]]:
    """Device memory an image in flight takes beyond the weights, as torch's allocator counts it."""
    rows = []
    for precision in DTYPES:
        model = benchmark.network("paper-cifar10")
        images = benchmark.smooth_images(512, model.config).cuda()
        cuda.decode(schedule_for(model), images[:1], Greedy(EPS), precision=precision)  # packs the weights
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        cuda.decode(schedule_for(model), images, Greedy(EPS), precision=precision)
        used = (torch.cuda.max_memory_allocated() - before) / len(images)
        rows.append({"part": "memory", "network": "paper-cifar10", "precision": precision, "bytes_per_image": used})
    return rows


PARTS = {"throughput": throughput, "teams": teams, "latency": latency, "crossover": crossover, "memory": memory}


def keep(path: Path, rows: list[dict[str, Any]]) -> None:
    """Put the rows into the file, in the place of those of the same part."""
    facts: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"rows": []}
    parts = {row["part"] for row in rows}
    facts["machine"] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    facts["rows"] = [row for row in facts["rows"] if row["part"] not in parts] + rows
    with whole_file(path) as unfinished:
        Path(unfinished).write_text(json.dumps(facts, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "all"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    reason = cuda.unavailable()
    if reason is not None:
        raise SystemExit(f"nothing can be measured: {reason}")
    torch.backends.cuda.matmul.allow_tf32 = False
    gpu = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower())
    path = arguments.out or Path(__file__).parent / "results" / f"{gpu}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    for part in PARTS if arguments.part == "all" else [arguments.part]:
        rows = PARTS[part](arguments.repeats)
        keep(path, rows)
        for row in rows:
            print(json.dumps(row), file=sys.stdout, flush=True)


if __name__ == "__main__":
    main()
