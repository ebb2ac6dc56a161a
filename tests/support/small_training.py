"""A training of a small PixelCNN, which several tests run."""

import dataclasses
import json
from pathlib import Path

from safetensors import safe_open
from support.helpers import real_images

from pxfast.pixelcnn.network import PixelCNNConfig
from pxfast.pixelcnn.training import TrainingSettings, train

CONFIG = PixelCNNConfig((8, 8), channels=1, filters=6, resnets=1, mixtures=3, dropout=0.2)
SETTINGS = TrainingSettings(batch_size=16, epochs=10, warmup=5, precision="fp32", horizontal_flips=True)


def run(out: Path, epochs: float, interval: float, *, resume: bool = False) -> None:
    """Train on 64 images, with ``interval`` seconds between checkpoints."""
    settings = dataclasses.replace(SETTINGS, epochs=epochs)
    options = {"resume": resume, "checkpoint_interval": interval, "progress": False}
    train(CONFIG, real_images(1, (8, 8), 64), out, settings=settings, **options)


def position(checkpoint: Path) -> int:
    """The step of any training's checkpoint; 0 while there is none."""
    if not checkpoint.is_file():
        return 0
    with safe_open(checkpoint, framework="pt") as file:
        return json.loads(file.metadata()["position"])["step"]
