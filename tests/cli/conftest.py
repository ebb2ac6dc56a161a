"""What the tests of commands share: a small model in a file, images for it, options that make results reproducible."""

from pathlib import Path

import pytest
import torch
from support.engines import QUICK

from pxfast.pixelcnn.files import save


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save(tiny_model, path)
    return path


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def reference(model):
    """Options that make a purification small and reproducible everywhere."""
    return ["--model", model, "--engine", QUICK, "--precision", "fp32", "--eps", 16]
