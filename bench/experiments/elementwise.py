"""What elementwise work costs on a CPU: torch's ELU and var_mean beside what pxfast has in their place.

python bench/experiments/elementwise.py

Nanoseconds a value of processor time, one thread, the best of several turns taken one after the other. Prints Markdown.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pxfast.adp.score_network import mean_and_variance
from pxfast.base.memory import keep_freed_memory
from pxfast.tensors.activations import concat_elu, elu

TURNS = 15
SHAPES = ((8, 32, 32, 32), (64, 32, 32, 32))  # within the second-level cache, and past it


def torch_concat_elu(x: Tensor) -> Tensor:
    return F.elu(torch.cat((x, -x), dim=1))


def with_gradient(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], object]:
    """The function and its gradient, of the sum of its values."""

    def both(x: Tensor) -> object:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(function(x).sum(), x)

    return both


PAIRS: tuple[tuple[str, Callable[[Tensor], object], Callable[[Tensor], object]], ...] = (
    ("ELU", F.elu, elu),
    ("concat-ELU", torch_concat_elu, concat_elu),
    ("concat-ELU and its gradient", with_gradient(torch_concat_elu), with_gradient(concat_elu)),
    ("mean and variance of a map", lambda x: torch.var_mean(x, (2, 3), correction=0), mean_and_variance),
)


def nanoseconds(functions: tuple[Callable[[Tensor], object], ...], x: Tensor) -> list[float]:
    """Of each function, a value of x."""
    best = [float("inf")] * len(functions)
    for _ in range(TURNS):
        for i, function in enumerate(functions):
            started = time.process_time()
            function(x)
            best[i] = min(best[i], time.process_time() - started)
    return [seconds * 1e9 / x.numel() for seconds in best]


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    print("| | shape | torch's, ns | ours, ns | times |\n|---|---|---:|---:|---:|")
    for shape in SHAPES:
        x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        for name, theirs, ours in PAIRS:
            before, after = nanoseconds((theirs, ours), x)
            print(f"| {name} | {' x '.join(map(str, shape))} | {before:.2f} | {after:.2f} | {before / after:.1f} |")


if __name__ == "__main__":
    main()
