"""The Triton part on a GPU: images/s of the engine, the fused likelihood against its twin, a training step.

    python bench/gpu_triton.py [--images 1024] [--json FILE]

Prints a line per measurement and then the targets that the project set itself, each with what was reached; the figures
go into docs/gpu.md. The JSON file is written after every measurement, so that a run that is stopped leaves some.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton

from pxfast.engines.benchmark import EPS, network, smooth_images
from pxfast.engines.choosers import Greedy
from pxfast.engines.registry import select
from pxfast.engines.schedule import schedule_for
from pxfast.kernels.mixture import mixture_log_prob
from pxfast.kernels.tiles import architecture
from pxfast.pixelcnn import heads
from pxfast.pixelcnn.heads import LogisticHead
from pxfast.pixelcnn.network import forward_flops
from pxfast.pixeldefend.verify import verify

TARGETS = {  # measurement and its figure: at least
    ("paper-cifar10 bf16", "images_per_second"): 1500.0,
    ("likelihood", "speed"): 3.0,
    ("likelihood", "memory"): 5.0,
    ("training step", "speed"): 1.3,
}


def seconds(function: Callable[[], Any], rounds: int) -> float:
    """Median time of a call, the device's work included; the first two calls don't count."""
    times = []
    for i in range(rounds + 2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        function()
        torch.cuda.synchronize()
        if i >= 2:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def peak_memory(function: Callable[[], Any], forget: Callable[[], Any]) -> int:
    """Bytes that a call takes beyond what is there before it; ``forget`` drops what the last one left."""
    forget()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def decoding(name: str, precision: str, images: int) -> dict[str, Any]:
    """Images/s of the engine, checked by a teacher-forced pass over some of its result."""
    model, batch = network(name), smooth_images(images, network(name).config)
    engine, schedule = select("triton"), schedule_for(model)

    def run() -> torch.Tensor:
        return engine.decode(schedule, batch, Greedy(EPS), precision=precision)

    verdict = verify(batch[:16], run()[:16], EPS, model=model, precision=precision)
    rate = images / seconds(run, 3)
    tflops = rate * forward_flops(model.config) * 1e-12
    return {"images_per_second": rate, "tflops": tflops, "regret": verdict.mean_regret, "passed": verdict.passed}


def likelihood(batch: int) -> dict[str, float]:
    """The fused log-likelihood and the twin, forward and backward on features of the CIFAR-10 network."""
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, device="cuda")
    features = torch.randn(batch, 100, 32, 32, device="cuda").to(memory_format=torch.channels_last).requires_grad_()

    def forget() -> None:
        features.grad = None

    def run(log_prob: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def once() -> None:
            forget()
            log_prob().mean().backward()

        return once

    head = LogisticHead(3)
    each = [
        run(lambda: mixture_log_prob(features, images, head.bins_per_unit, False)),
        run(lambda: head.plain_log_prob(features, images)),
    ]
    return compared([seconds(one, 20) for one in each], [peak_memory(one, forget) for one in each])


def training_step(batch: int) -> dict[str, float]:
    """Forward and backward of the CIFAR-10 network under autocast, with the fused likelihood and without."""
    model = network("paper-cifar10").cuda().to(memory_format=torch.channels_last).train()
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, device="cuda")

    def run() -> None:
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = -model.log_prob(images).mean()
        loss.backward()

    times, peaks = [], []
    for devices in (("cuda",), ()):
        heads.FUSED_DEVICES = devices
        times.append(seconds(run, 10))
        peaks.append(peak_memory(run, model.zero_grad))
    heads.FUSED_DEVICES = ("cuda",)
    model.zero_grad()
    model.cpu().eval()
    return compared(times, peaks)


def compared(times: list[float], peaks: list[int]) -> dict[str, float]:
    """Seconds and bytes with the fused likelihood and in plain torch, and how many times less the former takes."""
    return {
        "fused_ms": 1e3 * times[0],
        "plain_ms": 1e3 * times[1],
        "speed": times[1] / times[0],
        "fused_mb": 1e-6 * peaks[0],
        "plain_mb": 1e-6 * peaks[1],
        "memory": peaks[1] / peaks[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "architecture": architecture(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "targets": {", ".join(key): target for key, target in TARGETS.items()},
    }
    print(f"{found['device']}, torch {found['torch']}, Triton {found['triton']}")

    def keep(name: str, figures: dict[str, Any]) -> None:
        found[name] = figures
        print(f"{name}:", figures, flush=True)
        if options.json is not None:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(found, indent=2) + "\n")

    keep("likelihood", likelihood(256))
    keep("training step", training_step(64))
    for name in ("paper-cifar10", "paper-fashion-mnist", "shipped-fashion-mnist"):
        for precision in ("bf16", "fp32"):
            keep(f"{name} {precision}", decoding(name, precision, options.images))
    for (name, figure), target in TARGETS.items():
        reached = found[name][figure]
        print(f"{name}, {figure}: {reached:.2f}, target {target:g}: {'reached' if reached >= target else 'MISSED'}")


if __name__ == "__main__":
    main()
