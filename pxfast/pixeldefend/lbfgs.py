"""Purification by L-BFGS-B: the baseline of the paper's Figure 5 (section 4.1), which greedy decoding beats there.

It is slower by orders of magnitude: every image and every start is an optimisation of its own, and every step of it a
forward and a backward pass. What it finds depends on the model: with the shipped Fashion-MNIST model greedy decoding
finds likelier images by far, as in the paper; with the shipped CIFAR-10 model it is L-BFGS-B that does, given enough
iterations. ``pxfast figures density`` measures both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Generic

import numpy as np
import torch
from torch import Tensor

from ..base.checks import check_count, check_eps, check_progress, check_seed
from ..base.extras import require
from ..base.progress import reporting
from ..data.images import Array, ImagesT, to_grid
from ..pixelcnn.likelihood import bits_per_dim, relaxable
from ..pixelcnn.network import PixelCNN
from ..pixelcnn.oracle import oracle
from ..pixelcnn.shipped import Model, model_for
from ..tensors.ambient import in_plain_torch
from ..tensors.seeds import image_key


@dataclasses.dataclass(frozen=True)
class LBFGSPurification(Generic[ImagesT]):
    """What :func:`lbfgs_purify` found for N images from S starts each.

    images: per image the likeliest of its S results, rounded to the grid; in the form in which the images were given.
    input_bits_per_dim: (N,) of the images given. relaxed_bits_per_dim: (N, S) where each optimisation ended.
    bits_per_dim: (N, S) of the same, rounded to the grid. All float32.
    """

    images: ImagesT
    input_bits_per_dim: Tensor
    relaxed_bits_per_dim: Tensor
    bits_per_dim: Tensor


@in_plain_torch
def lbfgs_purify(
    images: ImagesT,
    eps: int = 16,
    *,
    model: Model | None = None,
    starts: int = 1,
    max_iterations: int = 100,
    seed: int = 0,
    clip: bool = False,
    progress: bool | Callable[[int], None] = False,
) -> LBFGSPurification[ImagesT]:
    """Look for the likeliest image within ±eps by SciPy's L-BFGS-B, which follows the gradient of log p(X).

    The relaxation: sub-pixels are real numbers. The network reads them as it reads the integers, and the probability
    of a value v is the mixture's mass of the bin from half a step below v to half a step above it; between 0 and 1, and
    254 and 255, see :func:`pxfast.pixelcnn.heads.log_bin_mass`. At integers this is log p(X) itself, in between it is
    continuous but no probability of anything. The bounds are v - eps and v + eps within 0..255, each start is uniform
    in them, and the end is rounded to the nearest integers, which are within them too.

    images, eps, model, clip: as :func:`pxfast.purify` takes them; the head must be a mixture of logistics. starts:
    random starts per image (the paper: 100). max_iterations: of L-BFGS-B, which ends earlier where it converges or
    finds no better point; each costs a forward and a backward pass or a few. seed: of the starts, 0 to 2^63 - 1.
    progress: as :func:`pxfast.purify` takes it, but what is counted is starts, ``starts`` an image.

    Needs the extra 'evaluate'. Raises TypeError or ValueError for bad input, ImportError without the extra.
    """
    optimize = require("scipy.optimize", "evaluate")
    eps = check_eps(eps)
    starts = check_count("starts", starts, 1)
    max_iterations = check_count("max_iterations", max_iterations, 1)
    seed, progress = check_seed(seed), check_progress(progress)
    grid, form = to_grid(images, clip=clip)
    model = relaxable(model_for(model, grid.shape[1:]))
    network = oracle(model, "fp32")
    relaxed = torch.empty(len(grid), starts)
    results = torch.empty(starts, *grid.shape, dtype=torch.uint8)
    with reporting(len(grid) * starts, progress, "start") as report:
        for i, image in enumerate(grid.numpy()):
            key = image_key(grid[i], seed)
            lowest, highest = (np.clip(image.astype(np.float64) + move, 0, 255).ravel() for move in (-eps, eps))
            for start in range(starts):
                found = optimize.minimize(
                    relaxed_bits_per_dim,
                    np.random.default_rng((key, start)).uniform(lowest, highest),
                    args=(network, image.shape),
                    method="L-BFGS-B",
                    jac=True,
                    bounds=optimize.Bounds(lowest, highest),
                    options={"maxiter": max_iterations},
                )
                relaxed[i, start] = float(found.fun)
                results[start, i] = torch.from_numpy(np.rint(found.x).astype(np.uint8).reshape(image.shape))
                report(i * starts + start + 1)
    rounded = torch.stack([bits_per_dim(result, model=model) for result in results], dim=1)
    best = results[rounded.argmin(dim=1), torch.arange(len(grid))] if len(grid) else grid
    return LBFGSPurification(form.images(best), bits_per_dim(grid, model=model), relaxed, rounded)


def relaxed_bits_per_dim(values: Array, network: PixelCNN, shape: tuple[int, ...]) -> tuple[float, Array]:
    """Relaxed bits/dim of one image, given as its values 0..255 (C * H * W,) float64, and their gradient."""
    x = torch.tensor(values, dtype=torch.float32).reshape(1, *shape).requires_grad_()
    with torch.enable_grad():
        bits = -network.log_prob(x).double().sum() / (x.numel() * np.log(2.0))
    (gradient,) = torch.autograd.grad(bits, x)
    return float(bits.detach()), gradient.double().flatten().numpy()
