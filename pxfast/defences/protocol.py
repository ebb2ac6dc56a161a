"""What a purifier is to defended classifiers and to the attacks that know it: one protocol, and how it is called.

A *purifier* is any ``nn.Module`` that takes floating images (N, C, H, W) in [0, 1] and gives such images, each
independently of the others in its batch, bit for bit. That is all that most attacks need. What else one may have:

* ``stochastic = True``, ``runs`` and ``draw(images, seeds)``: its result depends on random numbers, and all of them
  come from the seeds, one an image. Its own ``forward(images)`` is ``draw(images, image_seeds(images, self.seed))``.
* ``log_prob_gradient(images)``: the direction in which it thinks an image becomes likelier.
* ``differentiate(images, seeds)``: what ``draw`` gives (or ``forward``, if it is not stochastic), with its own
  gradient, whatever its ``backward`` says.
* ``hidden_networks(image_shape)``: the networks that it holds without their being submodules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeGuard, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class StochasticPurifier(Protocol):
    """A purifier whose result is random.

    stochastic: True. runs: how many draws' logits a defended classifier averages. draw: one run over floating images
    (N, C, H, W) in [0, 1], all of whose random numbers for image i are a function of ``seeds[i]``, an integer in
    0..2^63 - 1; differentiable or straight-through, as ``forward`` is.
    """

    stochastic: bool
    runs: int

    def draw(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """One run over the images, with the random numbers of the seeds."""
        ...


@runtime_checkable
class ScoredPurifier(Protocol):
    """A purifier with a score: (an estimate of) the gradient of log p with respect to the image.

    log_prob_gradient: floating images (N, C, H, W) in [0, 1] to a tensor of that shape, without a gradient of its own;
    each image's independent of its batch.
    """

    def log_prob_gradient(self, images: Tensor) -> Tensor:
        """The score at the images, of their shape."""
        ...


@runtime_checkable
class DifferentiablePurifier(Protocol):
    """A purifier that can be differentiated from end to end.

    differentiate: floating images (N, C, H, W) in [0, 1] and a seed each to the purified ones, by way of operations
    that autograd follows. seeds: ignored unless the purifier is stochastic.
    """

    def differentiate(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """The purified images, with a gradient."""
        ...


@runtime_checkable
class HidesNetworks(Protocol):
    """A purifier with networks that are no submodules of it, so that they escape ``parameters`` and ``to``.

    hidden_networks: those that it uses for images of shape (C, H, W). Its results depend on their weights.
    """

    def hidden_networks(self, image_shape: tuple[int, ...]) -> list[nn.Module]:
        """The networks for images of shape ``image_shape`` = (C, H, W)."""
        ...


def is_stochastic(purifier: object) -> TypeGuard[StochasticPurifier]:
    """Whether a purifier's result is random. TypeError where it says so and has no ``draw`` or no ``runs``."""
    if not getattr(purifier, "stochastic", False):
        return False
    # not isinstance(), which a strict torch.export can't ask under some releases of Python and of torch
    if getattr(purifier, "draw", None) is None or getattr(purifier, "runs", None) is None:
        raise TypeError(f"a stochastic purifier needs draw(images, seeds) and runs, which {purifier!r} lacks")
    return True
