"""Where the tests of the Triton kernels run: on a GPU, or in Triton's interpreter.

Triton decides at its import whether kernels are compiled or interpreted, so one process does one of the two.
``tests/kernels/test_kernels.py`` runs the modules in ``tests/kernels/interpreted`` in processes of their own under
TRITON_INTERPRET=1. Without that variable they need a GPU, and are not collected where there is none.
"""

import importlib.util
import os

import hypothesis
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"


def few_examples(count: int) -> hypothesis.settings:
    """So many examples, always the same, and reported as they are: to shrink one takes minutes in the interpreter."""
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    return hypothesis.settings(max_examples=count, deadline=None, derandomize=True, phases=phases)


def can_run() -> bool:
    """Whether kernels can run in this process."""
    return importlib.util.find_spec("triton") is not None and (INTERPRETED or torch.cuda.is_available())


on_device = pytest.mark.interpret if INTERPRETED else [pytest.mark.gpu, pytest.mark.engine("triton")]
