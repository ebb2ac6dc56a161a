"""The networks that are measured, by name."""

from __future__ import annotations

import torch
from torch import Tensor

from pxfast import load
from pxfast.pixelcnn import PixelCNN, PixelCNNConfig
from pxfast.weights import shipped_path

PAPER = {
    "paper-cifar10": PixelCNNConfig((32, 32), channels=3, filters=160, resnets=5),
    "paper-fashion-mnist": PixelCNNConfig((28, 28), channels=1, filters=40, resnets=5),
}
SHIPPED = {"shipped-fashion-mnist": "fashion-mnist"}
NAMES = (*PAPER, *SHIPPED)


def smooth_images(count: int, channels: int, size: tuple[int, int]) -> Tensor:
    """Images (count, channels, H, W) uint8 with the smoothness of real ones: noise on four scales, always the same."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(count, channels, *size)
    for divisor in (1, 2, 4, 8):
        coarse = torch.randn(count, channels, -(-size[0] // divisor), -(-size[1] // divisor), generator=generator)
        total += divisor * torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return (127.5 + 16 * total).clamp(0, 255).to(torch.uint8)


def network(name: str) -> PixelCNN:
    """The network called ``name``. FileNotFoundError when a shipped one isn't in the package yet.

    The paper's networks have random weights: speed does not depend on their values, as long as these are ordinary
    numbers, which data-dependent initialisation sees to.
    """
    if name in SHIPPED:
        if not shipped_path(SHIPPED[name]).is_file():
            raise FileNotFoundError(f"this checkout has no {SHIPPED[name]} model")
        return load(SHIPPED[name])
    config = PAPER[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PixelCNN(config).eval()
    model.initialise(smooth_images(4, config.channels, config.image_size))
    return model
