"""Adversarial examples for training (PixelDefend, appendix B; Kurakin et al. 2017), made anew for every batch.

Unlike the attacks of :mod:`pxfast.attacks` these have an eps of their own for every image, which is no integer, and
stay floating point, as in the authors' code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ADVERSARIAL_WEIGHT = 0.3  # of an adversarial example's loss, relative to a clean one's: the authors' choice

Logits = Callable[[Tensor], Tensor]


def draw_eps(count: int, delta: float, generator: torch.Generator) -> Tensor:
    """(count,) fp32 values in [0, 2 delta], in grey levels: |N(0, delta)| given that it is at most 2 delta."""
    below_two = torch.special.ndtr(torch.tensor(2.0, dtype=torch.float64)) - 0.5
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    drawn: Tensor = delta * torch.special.ndtri(0.5 + uniform * below_two)
    return drawn.clamp(0.0, 2.0 * delta).float()


def bim_iterations(eps: Tensor) -> Tensor:
    """How many steps of one grey level BIM takes: floor(min(eps + 4, 1.25 eps)), int64."""
    return torch.minimum(eps + 4.0, 1.25 * eps).floor().long()


@contextlib.contextmanager
def attacked(model: nn.Module) -> Iterator[None]:
    """The model as an attack sees it: in eval mode, and without gradients of its parameters."""
    was_training = model.training
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        model.train(was_training)


def _ascend(logits: Logits, x: Tensor, labels: Tensor | None, step: Tensor | float) -> tuple[Tensor, Tensor]:
    """x + step * sign(gradient of the cross-entropy), with the labels; None: the prediction at x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        scores = logits(x)
        if labels is None:
            labels = scores.detach().argmax(1)
        (gradient,) = torch.autograd.grad(F.cross_entropy(scores, labels, reduction="sum"), x)
    return x.detach() + step * gradient.sign(), labels


def fgsm_examples(logits: Logits, images: Tensor, eps: Tensor) -> Tensor:
    """images + eps * sign(gradient), away from the model's own predictions, clipped to [0, 1].

    logits: of images in [0, 1]. images: fp32 (N, C, H, W) in [0, 1]. eps: (N,), in grey levels.
    The prediction takes the label's place so that the label does not leak into the perturbation.
    """
    moved, _ = _ascend(logits, images, None, eps[:, None, None, None] / 255.0)
    return moved.clamp(0.0, 1.0)


def bim_examples(logits: Logits, images: Tensor, eps: Tensor) -> Tensor:
    """As :func:`fgsm_examples`, in ``bim_iterations(eps)`` steps of one grey level that stay within eps of the image.

    The labels are the predictions at the images, for all steps.
    """
    iterations = bim_iterations(eps)
    radius = eps[:, None, None, None] / 255.0
    lowest, highest = (images - radius).clamp_min(0.0), (images + radius).clamp_max(1.0)
    result, labels = images.clone(), torch.zeros(len(images), dtype=torch.int64, device=images.device)
    for step in range(int(iterations.max()) if len(images) else 0):
        (left,) = torch.nonzero(iterations > step, as_tuple=True)  # fewer and fewer images have steps left
        known = None if step == 0 else labels[left]
        moved, labels[left] = _ascend(logits, result[left], known, 1.0 / 255.0)
        result[left] = torch.minimum(torch.maximum(moved, lowest[left]), highest[left])
    return result
