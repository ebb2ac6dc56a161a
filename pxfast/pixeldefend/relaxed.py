"""A differentiable relaxation of PixelDefend: the purification of small images, unrolled (section 4.4).

Where Algorithm 1 puts the likeliest value in range into a sub-pixel, this puts the mean of the values in range, each
weighted by its probability to the power 1 / temperature. Later sub-pixels see these real numbers, and autograd follows
the whole sequence. As the temperature falls the values become Algorithm 1's. Every pixel is a pass of the whole
network, all of which autograd keeps for the way back: time and memory grow with the square of the number of pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..base.checks import check_eps, check_flag, check_instance, check_number
from ..data.images import clipped, to_grid
from ..pixelcnn.heads import LogisticHead, log_bin_mass
from ..pixelcnn.likelihood import relaxable
from ..pixelcnn.oracle import oracle
from ..pixelcnn.shipped import SHIPPED, Model, model_for
from ..tensors.ambient import in_plain_torch
from .purify import Purifier

TOLERANCE = 1e-3  # levels by which 255 / 255 may miss 255
COLDEST = 1e-10  # below it nothing changes: fp32 has no two log-probabilities so near; a quotient would be infinite


class RelaxedPurifier(nn.Module):
    """Floating images (N, C, H, W) in [0, 1] to softly purified ones, real numbers in [0, 1], with their own gradient.

    The values in range of a sub-pixel v are v + d for the integers d in -eps..eps with v + d in 0..255; the network and
    the mixture's likelihood are taken at real numbers as :func:`pxfast.pixeldefend.lbfgs.lbfgs_purify` does. An image
    need not be on the grid, and its result depends on no other image, but for rounding.

    eps: in steps of the grid. model: a PixelCNN with a mixture of logistics as its head, a shipped model's name or a
    path. temperature: positive. clip: bring values outside [0, 1] to its nearest end first. Raises TypeError or
    ValueError for other ones.
    """

    model: Model

    if TYPE_CHECKING:

        def __call__(self, images: Tensor) -> Tensor: ...

    def __init__(self, eps: int, model: Model, *, temperature: float = 1.0, clip: bool = False) -> None:
        super().__init__()
        self.eps: int = check_eps(eps)
        self.temperature: float = check_number("temperature", temperature, 0.0, ends="()")
        self.clip: bool = check_flag("clip", clip)
        if model is None:
            raise TypeError("model must be a PixelCNN, a shipped model's name or a path, got None")
        object.__setattr__(self, "model", SHIPPED.resolve(model))

    @classmethod
    def of(cls, purifier: Purifier, image_shape: tuple[int, int, int], *, temperature: float = 1.0) -> RelaxedPurifier:
        """The relaxation of a purifier without an adaptive rule, for images (C, H, W). ValueError for another."""
        check_instance("purifier", purifier, Purifier)
        if purifier.adaptive is not None:
            raise ValueError(f"expected a purifier without an adaptive rule, got adaptive={purifier.adaptive!r}")
        model = model_for(purifier.model, image_shape)
        return cls(purifier.eps, model, temperature=temperature, clip=purifier.clip)

    @in_plain_torch
    def forward(self, images: Tensor) -> Tensor:
        grid, _ = to_grid(images, clip=self.clip)  # its checks
        model = relaxable(model_for(self.model, grid.shape[1:]))
        network = oracle(model, "fp32", images.device)
        head = network.head
        assert isinstance(head, LogisticHead)  # relaxable's
        given = 255.0 * clipped(images, self.clip).float()
        _, C, H, W = given.shape
        temperature = max(self.temperature, COLDEST)
        offsets = torch.arange(-self.eps, self.eps + 1, device=given.device, dtype=given.dtype)
        done = given
        for i in range(H):
            for j in range(W):
                features = network(done)[:, :, i : i + 1, j : j + 1]  # depend on earlier pixels only
                for k in range(C):
                    values = given[:, k, i, j, None] + offsets
                    log_probs = log_prob_of(head, features, done[:, :, i : i + 1, j : j + 1], values, k)
                    outside = (values < -TOLERANCE) | (values > 255.0 + TOLERANCE)
                    weights = (log_probs / temperature).masked_fill(outside, -torch.inf).softmax(dim=1)
                    place = torch.zeros_like(given[:1])
                    place[:, k, i, j] = 1.0
                    mean = (weights * offsets).sum(dim=1) + given[:, k, i, j]
                    done = torch.where(place.bool(), mean[:, None, None, None], done)
        return done.to(images.dtype) / 255.0

    def differentiate(self, images: Tensor, seeds: object = None) -> Tensor:
        """The same as ``forward``: see :class:`pxfast.defences.protocol.DifferentiablePurifier`."""
        return self(images)

    def extra_repr(self) -> str:
        return f"eps={self.eps}, temperature={self.temperature}"


def log_prob_of(head: LogisticHead, features: Tensor, pixel: Tensor, values: Tensor, channel: int) -> Tensor:
    """Log-probabilities in nats of real values 0..255 of one channel of one pixel: (N, V).

    features: (N, head.features, 1, 1). pixel: (N, C, 1, 1), its earlier channels are given. values: (N, V).
    """
    log_weights, means, log_scales = head.mixture(features, pixel)
    own = channel if log_weights.shape[1] > 1 else 0  # (N, K) of this channel each
    log_weights, means, log_scales = (
        log_weights[:, own, :, 0, 0],
        means[:, channel, :, 0, 0],
        log_scales[:, channel, :, 0, 0],
    )
    mass = log_bin_mass(values[:, None], means[:, :, None], log_scales[:, :, None], head.bins_per_unit)
    return torch.logsumexp(log_weights[:, :, None] + mass, dim=1)
