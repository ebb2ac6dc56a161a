"""Whether a purifier keeps the protocol: looked at before hours are spent on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..defences.protocol import is_stochastic
from ..tensors.seeds import image_seeds

SAME = 0.5 / 255.0  # half a grid level
SLACK = 1e-6  # beyond [0, 1], which is rounding


@torch.no_grad()
def check_purifier(purifier: nn.Module, images: Tensor) -> Tensor:
    """What the purifier gives of uint8 images (N, C, H, W), N > 0: floating ones of the shape, in [0, 1].

    Raises ValueError for a purifier in training mode, for a result of another shape, outside [0, 1] or not finite, for
    one that differs from call to call or depends on its batch, and TypeError for no floating tensor and for one
    that says it is random and lacks what such need.
    """
    what = f"purifier {type(purifier).__name__}"
    if purifier.training:
        raise ValueError(f"{what} must be in eval mode, got training mode")
    device = next((each.device for each in purifier.parameters()), images.device)
    x = images.to(device).float() / 255.0
    seeds = image_seeds(x, 0)

    def once(count: int) -> Tensor:
        given = x[:count].clone()
        found = purifier.draw(given, seeds[:count]) if is_stochastic(purifier) else purifier(given)
        if not isinstance(found, Tensor) or not found.is_floating_point():
            kind = found.dtype if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(f"{what}: expected floating images, got {kind}")
        if found.shape != given.shape:
            raise ValueError(f"{what}: expected images of shape {tuple(given.shape)}, got {tuple(found.shape)}")
        return found

    found = once(len(x))
    if not torch.isfinite(found).all():
        raise ValueError(f"{what}: expected finite images, got NaN or infinity")
    if found.min() < -SLACK or found.max() > 1.0 + SLACK:
        raise ValueError(f"{what}: expected values in [0, 1], got {float(found.min()):g} to {float(found.max()):g}")
    if not torch.equal(found, once(len(x))):
        raise ValueError(
            f"{what} gives other images at a second call: a random one needs stochastic = True, runs and "
            "draw(images, seeds), whose random numbers come from the seeds alone"
        )
    if len(x) > 1 and float((found[:1] - once(1)).abs().max()) > SAME:
        raise ValueError(f"{what}: an image's result depends on the others in its batch")
    return found
