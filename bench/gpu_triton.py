"""The fused likelihood beside its twin in plain torch, alone and in a training step: a part of gpu_report.py."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from gpu_rows import alone, kept
from torch import Tensor

from pxfast.pixelcnn import heads
from pxfast.pixelcnn.heads import LogisticHead
from pxfast.pixelcnn.network import PixelCNN


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(function: Callable[[], Any], rounds: int, device: str) -> float:
    """Median time of a call, the device's work included; the first two calls don't count."""
    times = []
    for _ in range(rounds + 2):
        synchronize(device)
        started = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def peak_memory(function: Callable[[], Any], forget: Callable[[], Any], device: str) -> int:
    """Bytes that a call takes beyond what is there before it; ``forget`` drops what the last one left. On a GPU."""
    if device != "cuda":
        return 0
    forget()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def fused(model: PixelCNN, device: str, small: bool) -> None:
    """A row of each, which says how many times less time and memory the kernel takes. model: that is trained."""
    batches = (2, 1) if small else (256, 64)
    with kept(part="fused", what="likelihood", batch=batches[0]) as row, alone():
        likelihood(row, batches[0], device, 1 if small else 20)
    with kept(part="fused", what="training step", batch=batches[1]) as row, alone():
        training_step(row, model, batches[1], device, 1 if small else 10)


def likelihood(row: dict[str, Any], batch: int, device: str, rounds: int) -> None:
    """The fused log-likelihood and the twin, forward and backward on features of the CIFAR-10 network.

    Without a GPU the twin stands in for the kernel.
    """
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, device=device)
    features = torch.randn(batch, 100, 32, 32, device=device).to(memory_format=torch.channels_last).requires_grad_()
    head = LogisticHead(3)

    def kernel() -> Tensor:
        from pxfast.kernels.mixture import mixture_log_prob

        return mixture_log_prob(features, images, head.bins_per_unit, False)

    def twin() -> Tensor:
        return head.plain_log_prob(features, images)

    def forget() -> None:
        features.grad = None

    for name, log_prob in (("fused", kernel if device == "cuda" else twin), ("plain", twin)):

        def once(log_prob: Callable[[], Tensor] = log_prob) -> None:
            forget()
            log_prob().mean().backward()

        measure(row, name, once, forget, rounds, device)


def training_step(row: dict[str, Any], model: PixelCNN, batch: int, device: str, rounds: int) -> None:
    """Forward and backward of the CIFAR-10 network under autocast, with the fused likelihood and without."""
    model = model.to(device).to(memory_format=torch.channels_last).train()
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, device=device)

    def run() -> None:
        model.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            loss = -model.log_prob(images).mean()
        loss.backward()

    before = heads.FUSED_DEVICES
    try:
        for name, devices in (("fused", ("cuda",)), ("plain", ())):
            heads.FUSED_DEVICES = devices
            measure(row, name, run, model.zero_grad, rounds, device)
    finally:
        heads.FUSED_DEVICES = before


def measure(
    row: dict[str, Any], name: str, run: Callable[[], None], forget: Callable[[], Any], rounds: int, device: str
) -> None:
    """Milliseconds and bytes of a call go into the row, and after the second one what the first one spares."""
    row[f"{name}_ms"] = 1e3 * seconds(run, rounds, device)
    row[f"{name}_mb"] = 1e-6 * peak_memory(run, forget, device)
    if name == "plain":
        row["speed"] = row["plain_ms"] / row["fused_ms"]
        row["memory"] = row["plain_mb"] / row["fused_mb"] if row["fused_mb"] else None
