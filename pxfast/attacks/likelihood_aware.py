"""An attack on a classifier and on a detector by likelihood at once."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from ..base.checks import check_choice, check_count, check_number, check_steps_of_grid
from ..pixelcnn.likelihood import log_prob_and_gradient, relaxable
from ..pixelcnn.shipped import SHIPPED, model_for
from .attack import BATCH, Attack, image_generators
from .carlini_wagner import margin
from .gradients import differentiable, input_gradient

STARTS = ("image", "random")


class LikelihoodAware(Attack):
    """Steps on the grid that lower the classifier's margin and bits/dim together, for images that are misclassified and
    not suspicious to a detector by likelihood.

    Each step goes by the sign of (1 - w) c + w p. c is the direction in which the label's logit loses its lead, p the
    gradient of log p, each divided by its own mean absolute value. Where an image is misclassified, w is 1 until it is
    right again. w is searched for each image by bisection, from 1/2 on: a search that found a misclassified image is
    followed by one with a larger w, any other by one with a smaller w. The result is the likeliest misclassified image
    of all searches, or else the one with the smallest margin.

    steps: of each search, at least 0. searches: how many weights are tried, at least 1. step: its size in grid levels,
    an integer of at least 1. share: of the sub-pixels, those of the largest absolute values, that a step moves, above
    0 and at most 1. start: 'image', as BIM, or 'random', as PGD: integers drawn uniformly from -eps..eps are added
    first. model: the density model's name or file; None: the shipped one of the images' shape. It needs a mixture of
    logistics as its head. TypeError or ValueError for others.

    Source: the likelihood that Song et al. 2018 (PixelDefend), section 3, detect by; the two gradients are combined as
    the joint attacks of Yoon et al. 2021 combine theirs.
    """

    name = "likelihood-aware"
    source = (
        "pxfast: the margin of Carlini and Wagner 2017 and the detector's statistic of Song et al. 2018, section 3, "
        "lowered together by sign steps on the grid; the weight between them searched for each image by bisection"
    )
    on_grid = True
    random = True
    block = BATCH

    def __init__(
        self,
        *,
        steps: int = 20,
        searches: int = 3,
        step: int = 1,
        share: float = 0.3,
        start: str = "image",
        model: str | os.PathLike[str] | None = None,
    ) -> None:
        self.steps: int = check_count("steps", steps)
        self.searches: int = check_count("searches", searches, 1)
        self.step: int = check_steps_of_grid("step", step)
        self.share: float = check_number("share", share, 0.0, 1.0, ends="(]")
        self.start: str = check_choice("start", start, STARTS)
        if model is not None:
            if not isinstance(model, (str, os.PathLike)):
                raise TypeError(f"model must be a shipped model's name, a path or None, got {type(model).__name__}")
            SHIPPED.read_config(SHIPPED.path(model))  # its checks
        self.model: str | None = None if model is None else os.fspath(model)

    def hidden_networks(self, image_shape: tuple[int, ...]) -> list[nn.Module]:
        """The density model. image_shape: (C, H, W)."""
        return [model_for(self.model, image_shape)]

    def perturb(self, classifier: nn.Module, x: Tensor, labels: Tensor, eps: float = 1.0, *, seed: int = 0) -> Tensor:
        density = relaxable(model_for(self.model, tuple(x.shape[1:])))
        given, radius = (255.0 * x).round().int(), round(255.0 * eps)
        lowest, highest = (given - radius).clamp(min=0), (given + radius).clamp(max=255)
        first = given
        if self.start == "random":
            for i, generator in enumerate(image_generators(x, seed)):
                noise = torch.from_numpy(generator.integers(-radius, radius + 1, tuple(x.shape[1:])))
                first = first.clone() if first is given else first
                first[i] += noise.to(given)
            first = torch.minimum(torch.maximum(first, lowest), highest)

        best, found = first.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        likeliest = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
        smallest = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        low, high = (torch.full((len(x),), end, dtype=x.dtype, device=x.device) for end in (0.0, 1.0))
        for _ in range(self.searches):
            weight, moved = (low + high) / 2.0, first.clone()
            succeeded = torch.zeros_like(found)
            for number in range(self.steps + 1):
                images = moved.float() / 255.0
                room, wrong, away = margin_and_descent(classifier, images, labels)
                log_p, likelier = log_prob_and_gradient(images, model=density)
                better = torch.where(wrong, ~found | (log_p > likeliest), ~found & (room < smallest))
                best[better] = moved[better]
                likeliest = torch.where(better & wrong, log_p, likeliest)
                smallest = torch.where(better, room, smallest)
                found, succeeded = found | wrong, succeeded | wrong
                if number == self.steps:
                    break
                share = torch.where(wrong, 1.0, weight)[:, None, None, None]
                way = (1.0 - share) * normalised(away) + share * normalised(likelier)
                change = self.step * largest(way, self.share).sign().int()
                moved = torch.minimum(torch.maximum(moved + change, lowest), highest)
            low, high = torch.where(succeeded, weight, low), torch.where(succeeded, high, weight)
        return best.float() / 255.0


def margin_and_descent(classifier: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The margins (N,) of images (N, C, H, W), which of them are misclassified, and the way down of each margin."""
    with torch.enable_grad():
        searched = x.detach().requires_grad_()
        logits = differentiable(classifier(searched))
        room = margin(logits, labels)
        away = input_gradient(-room.sum(), searched)
    return room.detach(), logits.argmax(1) != labels, away


def normalised(gradient: Tensor) -> Tensor:
    """Each image's gradient (N, C, H, W) divided by its mean absolute value; one of zeros stays."""
    return gradient / gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)


def largest(way: Tensor, share: float) -> Tensor:
    """``way`` (N, C, H, W) with zeros for all but this share of each image's values, the largest absolute ones."""
    if share == 1.0:
        return way
    sizes = way.abs().flatten(1)
    kept = max(1, round(share * sizes.shape[1]))
    threshold = sizes.kthvalue(sizes.shape[1] - kept + 1, dim=1).values
    return torch.where(way.abs() >= threshold[:, None, None, None], way, 0.0)
