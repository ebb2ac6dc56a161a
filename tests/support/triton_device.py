"""Where the tests of the Triton kernels run: on a GPU, or in Triton's interpreter.

Triton decides at its import whether kernels are compiled or interpreted, so one process does one of the two.
``tests/test_kernels.py`` runs the modules ``test_kernels_*.py`` in processes of their own under TRITON_INTERPRET=1;
in a process without that variable they need a GPU.
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


def missing() -> str | None:
    """Why no kernel can run in this process, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not INTERPRETED and not torch.cuda.is_available():
        return "no GPU here; tests/test_kernels.py runs this module in Triton's interpreter"
    return None


_run = [pytest.mark.skipif(missing() is not None, reason=str(missing()))]
on_device = _run if INTERPRETED else [*_run, pytest.mark.gpu]
