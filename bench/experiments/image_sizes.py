"""What larger images cost: arithmetic, time to purify, time and memory to train, of one image and one thread.

    python bench/experiments/image_sizes.py [--preset small] [--sides 32 64 128]

Seconds are the processor's, so that other work on the machine counts little; random weights. A training's memory is
what the backward pass keeps of one image, eager; a batch takes as often as much.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time

import torch
from torch import Tensor

from pxfast.engines import cpu
from pxfast.engines.benchmark import smooth_images
from pxfast.engines.registry import select
from pxfast.engines.schedule import schedule_for
from pxfast.engines.settings import DecodeSettings
from pxfast.pixelcnn.network import PixelCNN, PixelCNNConfig, forward_flops
from pxfast.pixelcnn.training import PRESETS, preset
from pxfast.pixeldefend.purify import purify

ONE_THREAD = DecodeSettings(threads=1)


def kept_bytes(model: PixelCNN, images: Tensor, precision: str) -> tuple[int, float]:
    """Bytes that a pass forward over the images keeps for the pass back, and the seconds that both take."""
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    started = time.process_time()
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        loss = -model.log_prob(images).mean()
    loss.backward()
    return sum(kept.values()), time.process_time() - started


def row(config: PixelCNNConfig, precision: str) -> str:
    """A row of the table, of a network with random weights."""
    torch.manual_seed(0)
    model = PixelCNN(config)
    images = smooth_images(1, config)
    model.initialise(images)
    kept, _ = kept_bytes(model, images, precision)
    training = min(kept_bytes(model, images, precision)[1] for _ in range(3))
    model.eval()
    seconds = math.inf
    for _ in range(3):
        started = time.process_time()
        purify(images, eps=16, model=model, engine="cpu", precision=precision, threads=1)
        seconds = min(seconds, time.process_time() - started)
    engine = cpu.packed(schedule_for(model), precision, cpu.isa_of(ONE_THREAD)).bytes_per_image
    H, W = config.image_size
    return (
        f"| {H} x {W} | {config.filters}, {config.resnets} | {forward_flops(config) / 1e9:.1f} | {seconds:.2f} "
        f"| {engine / 1e6:.1f} | {training:.2f} | {kept / 1e9:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="small")
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64, 128])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config, _ = preset(arguments.preset, "cifar10")
    precision = select("cpu").best_precision()
    print(f"{precision}, {cpu.isa_of(ONE_THREAD)}")
    print("| image | filters, resnets | GFLOP a pass | s to purify | MB to purify | s to train | GB to train |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for side in arguments.sides:
        print(row(dataclasses.replace(config, image_size=(side, side)), precision), flush=True)


if __name__ == "__main__":
    main()
