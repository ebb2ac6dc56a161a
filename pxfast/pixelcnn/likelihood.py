"""How likely images are under a PixelCNN: teacher-forced, in fp32, where the images are."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..base.checks import check_count, check_progress
from ..base.progress import reporting
from ..data.images import ImagesT, to_grid, widest
from ..tensors.ambient import in_plain_torch
from ..tensors.batches import FIXED_BATCH, in_fixed_batches
from .heads import LogisticHead
from .network import PixelCNN
from .oracle import oracle
from .shipped import Model, model_for

CPU_BATCH = 4  # images per pass where an image's result is to depend on no other: larger ones are hardly faster


def log_likelihood(log_prob: Tensor) -> Tensor:
    """log p of images in nats, (N,) float64, of the log-probabilities of their sub-pixels (N, C, H, W)."""
    return log_prob.double().sum(dim=(1, 2, 3))


@torch.no_grad()
def of_log_probs(
    grid: Tensor,
    model: PixelCNN,
    batch_size: int,
    progress: bool | Callable[[int], None],
    measure: Callable[[Tensor], Tensor],
) -> Tensor:
    """What ``measure`` makes of log p(x_i | x_<i) in nats, float64 (n, C, H, W), batch by batch: (N, ...) on the CPU.

    grid: uint8 images (N, C, H, W) on the CPU or on a GPU, which computes them then.
    """
    device = grid.device if grid.device.type == "cuda" else torch.device("cpu")
    network = oracle(model, "fp32", device)
    found = [measure(torch.zeros(1, *grid.shape[1:], dtype=torch.float64))[:0]]  # the form of what there may be none of
    finished = 0
    # cuDNN's convolutions would round to TF32, which costs a thousandth of a bit
    with (
        reporting(len(grid), progress) as report,
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
    ):
        for batch in grid.split(batch_size) if len(grid) else ():
            found.append(measure(network.log_prob(batch.to(device)).double()).cpu())
            finished += len(batch)
            report(finished)
    return torch.cat(found)


@torch.no_grad()
def bits_per_dim_alone(grid: Tensor, model: PixelCNN, size: int = CPU_BATCH) -> Tensor:
    """Bits/dim, float32 (N,) on the CPU, each of which depends on no other image, not even in its last digit.

    grid: as :func:`of_log_probs` takes it. size: images per pass; the last pass is filled up.
    """
    if not len(grid):
        return torch.zeros(0)
    device = grid.device if grid.device.type == "cuda" else torch.device("cpu")
    network = oracle(model, "fp32", device)

    def nats(part: Tensor) -> Tensor:
        return log_likelihood(network.log_prob(part).double())

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = in_fixed_batches(nats, grid.to(device), size).cpu()
    return (-found / (math.log(2.0) * grid[:1].numel())).float()


@in_plain_torch
def log_prob(
    images: ImagesT,
    *,
    model: Model | None = None,
    batch_size: int = 64,
    clip: bool = False,
    progress: bool | Callable[[int], None] = False,
) -> ImagesT:
    """log p(X) in nats of each image: (N,) float64, or 0-d for a single (C, H, W) image.

    images, model and clip: as :func:`pxfast.purify` takes them; the result is of the same library and on the same
    device, float32 on an Apple GPU, which has no float64. Images on a GPU of NVIDIA's or AMD's are judged there.
    batch_size: images per pass of the network. progress: as :func:`pxfast.purify` takes it. Raises TypeError or
    ValueError for bad input.
    """
    batch_size, progress = check_count("batch_size", batch_size, 1), check_progress(progress)
    grid, form = to_grid(images, keep_device=True, clip=clip)
    return form.per_image(of_log_probs(grid, model_for(model, grid.shape[1:]), batch_size, progress, log_likelihood))


@in_plain_torch
def bits_per_dim(
    images: ImagesT,
    *,
    model: Model | None = None,
    batch_size: int = 64,
    clip: bool = False,
    progress: bool | Callable[[int], None] = False,
) -> ImagesT:
    """-log2 p(X) / (C H W) of each image, its mean bits per sub-pixel: (N,) float32, or 0-d for one (C, H, W) image.

    An image drawn uniformly from the grid has 8 or more on average; the lower, the likelier. The arguments and errors
    are those of :func:`log_prob`.
    """
    batch_size, progress = check_count("batch_size", batch_size, 1), check_progress(progress)
    grid, form = to_grid(images, keep_device=True, clip=clip)
    nats = of_log_probs(grid, model_for(model, grid.shape[1:]), batch_size, progress, log_likelihood)
    return form.per_image((-nats / (math.log(2.0) * grid[:1].numel())).float() if len(grid) else nats.float())


@in_plain_torch
def surprise(
    images: ImagesT,
    *,
    model: Model | None = None,
    batch_size: int = 64,
    clip: bool = False,
    progress: bool | Callable[[int], None] = False,
) -> ImagesT:
    """-log2 p(x_i | x_<i), the bits of every sub-pixel: (N, C, H, W) float32, or (C, H, W) for a single image.

    It says where an image is unlikely. What comes earlier is the rows above, the pixels to the left and the earlier
    channels of the same pixel, so that a sub-pixel's surprise depends on nothing behind it. The mean over an image is
    :func:`bits_per_dim` of it: taken in float64, up to the rounding of float32 (one part in 2^23). The arguments and
    errors are those of :func:`log_prob`.
    """
    batch_size, progress = check_count("batch_size", batch_size, 1), check_progress(progress)
    grid, form = to_grid(images, keep_device=True, clip=clip)
    network = model_for(model, grid.shape[1:])
    return form.per_image(
        of_log_probs(grid, network, batch_size, progress, lambda nats: (-nats / math.log(2.0)).float())
    )


def relaxable(model: PixelCNN) -> PixelCNN:
    """The model itself. ValueError unless its likelihood has a gradient in the image's values: a mixture's has."""
    if not isinstance(model.head, LogisticHead):
        raise ValueError(f"expected a head whose likelihood has a gradient in the values, got {model.config.head!r}")
    return model


@in_plain_torch
def log_prob_gradient(images: Tensor, *, model: Model | None = None, clip: bool = False) -> Tensor:
    """The gradient of log p(X) with respect to the image: the direction in which it becomes likelier.

    images: floating (N, C, H, W) in [0, 1], not rounded to the grid; :func:`pxfast.pixeldefend.lbfgs.lbfgs_purify` says
    what log p is between the integers. model: as :func:`pxfast.purify` takes it, with a mixture of logistics as its
    head. clip: bring values outside [0, 1] to its nearest end. Returns nats per unit of [0, 1], of the images' shape,
    type and device; each image's independent of its batch. Raises TypeError or ValueError for bad input.
    """
    return log_prob_and_gradient(images, model=model, clip=clip)[1]


@in_plain_torch
def log_prob_and_gradient(
    images: Tensor, *, model: Model | None = None, clip: bool = False, size: int | None = None
) -> tuple[Tensor, Tensor]:
    """log p(X) and :func:`log_prob_gradient` of the same images, from one pass of the network.

    images, model, clip, errors and the gradient are those of :func:`log_prob_gradient`. size: images per pass, 4 on a
    CPU and 32 on a GPU unless it is given; the last pass is filled up, so that an image's result depends on no other.
    Returns log p in nats, (N,) float64, and the gradient, both on the images' device.
    """
    size = None if size is None else check_count("size", size, 1)
    network = _differentiated(images, model, clip)
    size = size or (CPU_BATCH if images.device.type == "cpu" else FIXED_BATCH)

    def both(batch: Tensor) -> Tensor:
        value, gradient = _value_and_gradient(network, batch)
        return torch.cat((value[:, None], gradient.to(value.dtype).flatten(1)), dim=1)  # which holds both exactly

    if not len(images):
        return images.new_zeros(0, dtype=widest(images.device)), torch.zeros_like(images)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = in_fixed_batches(both, images.detach().float(), size)
    return found[:, 0], found[:, 1:].reshape(images.shape).to(images.dtype)


def _differentiated(images: Tensor, model: Model | None, clip: bool) -> PixelCNN:
    """The network that log p of these images is differentiated through. TypeError or ValueError for bad input."""
    grid, _ = to_grid(images, clip=clip)  # its checks
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.dim() != 4:
        raise TypeError("expected a tensor of floating images (N, C, H, W) in [0, 1]")
    return oracle(relaxable(model_for(model, grid.shape[1:])), "fp32", images.device)


def _value_and_gradient(network: PixelCNN, batch: Tensor) -> tuple[Tensor, Tensor]:
    """log p in nats, (N,) float64, and its gradient, of fp32 images (N, C, H, W)."""
    with torch.enable_grad():
        x = batch.detach().clamp(0.0, 1.0).requires_grad_()
        nats = network.log_prob(255.0 * x)
        (found,) = torch.autograd.grad(nats.sum(), x)
    return nats.detach().to(widest(nats.device)).sum((1, 2, 3)), found
