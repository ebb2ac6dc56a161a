"""What the steps of all trainings share: their fp32, and random numbers that are not the caller's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from support.helpers import real_images
from torch import nn

from pxfast.adp.score_network import ScoreNetworkConfig
from pxfast.adp.training import ScoreSettings, ScoreTrainer
from pxfast.classifiers import ClassifierSettings, ResNetConfig, accuracy
from pxfast.classifiers.training import ClassifierTrainer
from pxfast.pixelcnn.network import PixelCNNConfig
from pxfast.pixelcnn.training import Trainer, TrainingSettings
from pxfast.training.run import TrainingRun

IMAGES = real_images(1, (8, 8), 16)
CONFIG = PixelCNNConfig((8, 8), 1, 4, 1, dropout=0.5)


def of_score(precision: str) -> ScoreTrainer:
    return ScoreTrainer(ScoreNetworkConfig((8, 8), 1, 2), ScoreSettings(batch_size=4, precision=precision), IMAGES)


def of_classifier(precision: str) -> ClassifierTrainer:
    settings = ClassifierSettings(batch_size=4, precision=precision)
    return ClassifierTrainer(
        ResNetConfig((8, 8), 1, (4, 6, 8), units=1, classes=2), settings, IMAGES, torch.arange(16) % 2
    )


def of_density(precision: str) -> Trainer:
    return Trainer(CONFIG, TrainingSettings(batch_size=4, precision=precision), IMAGES)


TRAINERS: dict[str, Callable[[str], TrainingRun]] = {
    "train": of_density,
    "train-classifier": of_classifier,
    "train-adp": of_score,
}


@pytest.fixture(params=TRAINERS)
def trainer(request) -> Callable[[str], TrainingRun]:
    return TRAINERS[request.param]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_in_fp32_has_no_tf32(trainer, precision):
    """Neither forward nor back; all else of cuDNN is as it was."""
    run, found = trainer(precision), []

    def look(*_: object) -> None:
        cudnn = torch.backends.cudnn
        found.append((cudnn.allow_tf32, cudnn.enabled, cudnn.benchmark))

    parameter = next(run.model.parameters())
    parameter.register_hook(look)
    for module in run.model.modules():
        module.register_forward_pre_hook(look)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
        run.train_step()
        assert torch.backends.cudnn.allow_tf32
    assert len(found) > 1
    assert set(found) == {(precision == "bf16", True, True)}


def test_accuracy_has_no_tf32():
    found = []

    class Looking(nn.Module):
        def forward(self, images):
            found.append(torch.backends.cudnn.allow_tf32)
            return images.float().flatten(1)[:, :2]

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        accuracy(Looking(), IMAGES, torch.zeros(16, dtype=torch.int64))
    assert set(found) == {False}


def test_a_training_leaves_the_callers_random_numbers_alone(trainer):
    """Those of the steps are as before: the same whatever the caller draws."""
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        run = trainer("fp32")
        if isinstance(run, Trainer):
            run.initialise()
        losses.append([run.train_step() for _ in range(2)])
        assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[1]


def test_a_network_is_grown_by_the_runs_own_random_numbers():
    larger, found = dataclasses.replace(CONFIG, filters=6), []
    start = of_density("fp32")
    start.initialise()
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        run = Trainer(larger, TrainingSettings(batch_size=4), IMAGES)
        run.initialise(start.model)
        assert torch.equal(torch.get_rng_state(), before)
        found.append([parameter.detach().clone() for parameter in run.model.parameters()])
    assert all(map(torch.equal, *found))
