"""What several modules here take."""

import pytest
import torch
from support.small_classifiers import SMALL

from pxfast.classifiers import Classifier, build


@pytest.fixture(scope="module")
def model() -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(SMALL).eval()
