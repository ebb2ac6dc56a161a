"""What several modules here take."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from support.helpers import real_images
from support.small_training import CONFIG, SETTINGS

from pxfast.pixelcnn.training import train


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "model.safetensors"
    settings = dataclasses.replace(SETTINGS, epochs=1)
    train(CONFIG, real_images(1, (8, 8), 64), out, settings=settings, progress=False)
    return out


@pytest.fixture
def finished(finished_once, tmp_path) -> Path:
    """A finished run of one epoch, which the test may spoil: its model, beside the checkpoint."""
    shutil.copytree(finished_once.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / finished_once.name
