"""Networks and settings by name."""

from __future__ import annotations

import dataclasses

from ...base.checks import check_text
from ...data.datasets import DATASETS, image_shape, is_mirrored
from ..network import PixelCNNConfig
from .settings import TrainingSettings

PAPER_FILTERS = {"fashion-mnist": 40, "cifar10": 160}


@dataclasses.dataclass(frozen=True)
class Preset:
    """A network's size, and how to train it. ``filters``: by data set."""

    filters: dict[str, int]
    resnets: int
    dropout: float
    settings: TrainingSettings


PRESETS = {
    # Song et al. 2018, as the authors' code has it: train_pxpp_softmax.py, 12 images on each of 4 GPUs, TensorFlow's
    # fp32, no warm-up, no clipping, no flips. (Their averaged weights have the full decay from the first step on; ours
    # reach it after 18,000 steps, and then agree.)
    "paper": Preset(
        PAPER_FILTERS,
        resnets=5,
        dropout=0.5,
        settings=TrainingSettings(
            batch_size=48,
            epochs=5000.0,
            learning_rate=1e-3,
            schedule="exponential",
            decay=0.999995,
            warmup=0,
            gradient_clip=0.0,
            ema_decay=0.9995,
            precision="fp32",
        ),
    ),
    # the paper's network by this package's own recipe, for a GPU and hours instead of weeks
    "full": Preset(PAPER_FILTERS, resnets=5, dropout=0.0, settings=TrainingSettings(optimiser="muon")),
    # what a CPU trains in hours; compiling costs minutes at first, and makes up for them in a run that is long enough
    "small": Preset(
        {"fashion-mnist": 32, "cifar10": 32},
        resnets=2,
        dropout=0.0,
        settings=TrainingSettings(batch_size=16, learning_rate=3e-3, optimiser="muon", compile=None),
    ),
}


def preset(name: str, dataset: str) -> tuple[PixelCNNConfig, TrainingSettings]:
    """The network and settings of a preset for a data set.

    dataset: a known name, or a folder of images. The network is as wide as for Fashion-MNIST or CIFAR-10, whichever has
    as many channels. CIFAR-10's and CIFAR-100's images are flipped but for the paper's preset. ValueError for an
    unknown preset or data set.
    """
    if check_text("a preset", name) not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    chosen, (channels, H, W) = PRESETS[name], image_shape(dataset)
    like = next(known for known in chosen.filters if DATASETS[known][0] == channels)
    config = PixelCNNConfig((H, W), channels, chosen.filters[like], chosen.resnets, dropout=chosen.dropout)
    flips = is_mirrored(dataset) and name != "paper"
    return config, dataclasses.replace(chosen.settings, horizontal_flips=flips)
