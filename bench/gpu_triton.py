"""The Triton part on a GPU: images/s of the engine, the fused likelihood against its twin, a training step.

    python bench/gpu_triton.py [--images 1024] [--json FILE]

Prints a line per measurement beside the target that the project set itself; the figures go into bench/README.md.
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
from pxfast.kernels.mixture import mixture_log_prob, mixture_log_prob_twin
from pxfast.kernels.tiles import architecture

import pxfast.heads
from pxfast.benchmark import EPS, network, smooth_images
from pxfast.engines import Greedy, select
from pxfast.pixelcnn import forward_flops
from pxfast.schedule import schedule_for
from pxfast.verify import verify

TARGETS = {"paper-cifar10 bf16": 1500.0, "likelihood speed": 3.0, "likelihood memory": 5.0, "training step": 1.3}


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


def peak_memory(function: Callable[[], Any]) -> int:
    """Bytes that a call takes beyond what is there before it."""
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
    return {"images_per_second": rate, "tflops": tflops, "regret": verdict.mean, "passed": verdict.passed}


def likelihood(batch: int) -> dict[str, float]:
    """The fused log-likelihood and the twin, forward and backward on features of the CIFAR-10 network."""
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, device="cuda")
    features = torch.randn(batch, 100, 32, 32, device="cuda").to(memory_format=torch.channels_last).requires_grad_()

    def run(function: Callable[..., torch.Tensor]) -> Callable[[], None]:
        def once() -> None:
            features.grad = None
            function(features, images, 128.0, False).mean().backward()

        return once

    fused, twin = run(mixture_log_prob), run(mixture_log_prob_twin)
    times, bytes_ = [seconds(each, 20) for each in (fused, twin)], [peak_memory(each) for each in (fused, twin)]
    return {
        "fused_ms": 1e3 * times[0],
        "twin_ms": 1e3 * times[1],
        "speed": times[1] / times[0],
        "fused_mb": 1e-6 * bytes_[0],
        "twin_mb": 1e-6 * bytes_[1],
        "memory": bytes_[1] / bytes_[0],
    }


def training_step(batch: int) -> dict[str, float]:
    """Forward and backward of the CIFAR-10 network under autocast, with the fused likelihood and without."""
    model = network("paper-cifar10").cuda().to(memory_format=torch.channels_last).train()
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, device="cuda")

    def run() -> None:
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = -model.log_prob(images).mean()
        loss.backward()

    times = []
    for devices in (("cuda",), ()):
        pxfast.heads.FUSED_DEVICES = devices
        times.append(seconds(run, 10))
    pxfast.heads.FUSED_DEVICES = ("cuda",)
    model.cpu().eval()
    return {"fused_ms": 1e3 * times[0], "plain_ms": 1e3 * times[1], "speed": times[1] / times[0]}


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
        "targets": TARGETS,
    }
    print(f"{found['device']}, torch {found['torch']}, Triton {found['triton']}")
    for name in ("paper-cifar10", "paper-fashion-mnist", "shipped-fashion-mnist"):
        for precision in ("bf16", "fp32"):
            row = decoding(name, precision, options.images)
            found[f"{name} {precision}"] = row
            print(f"{name} {precision}, {options.images} images:", row, flush=True)
    for key, measure in (("likelihood", lambda: likelihood(256)), ("training step", lambda: training_step(64))):
        found[key] = measure()
        print(f"{key}:", found[key], flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
