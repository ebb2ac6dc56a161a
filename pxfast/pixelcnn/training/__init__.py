"""Training a PixelCNN: Adam or Muon, averaged weights, checkpoints that survive kill -9, one process or several."""

from .branch import branch_settings
from .loop import record_bits_per_dim, train
from .presets import PRESETS, Preset, preset
from .settings import TrainingSettings
from .trainer import Trainer, network_size, read_settings

__all__ = [
    "PRESETS",
    "Preset",
    "Trainer",
    "TrainingSettings",
    "branch_settings",
    "network_size",
    "preset",
    "read_settings",
    "record_bits_per_dim",
    "train",
]
