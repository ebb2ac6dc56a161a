"""PixelDefend's appendix A: a classifier as good as another one, but helpless against random noise."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.checks import check_flag, check_instance, check_number, check_seed
from ..data.images import clipped, to_grid
from ..pixelcnn.likelihood import bits_per_dim
from ..pixelcnn.network import PixelCNN
from ..pixelcnn.shipped import SHIPPED, Model
from .contract import checked_logits


class RandomAboveThreshold(nn.Module):
    """Another classifier's logits where an image is likely, and a random label where it is not.

    The paper's point: robustness to random noise is no property of the data, since this classifier is about as
    accurate on clean images, few of which have so many bits/dim, and at chance on noisy ones, most of which do.

    classifier: gives logits (N, classes) of images as they are given here. threshold: an image of at least as many
    bits/dim gets a random label. model: as :func:`pxfast.purify` takes it; it is no submodule. seed: of the labels,
    0 to 2^63 - 1. clip: bring floating values outside [0, 1] to its nearest end first.
    A label is random in that it is drawn from a hash of the seed and the image's own values 0..255: the same image
    always gets the same one, whatever else is in its batch. Raises TypeError or ValueError for others.
    """

    model: PixelCNN | None

    if TYPE_CHECKING:

        def __call__(self, images: Tensor) -> Tensor: ...

    def __init__(
        self,
        classifier: nn.Module,
        *,
        threshold: float = 4.5,
        model: Model | None = None,
        seed: int = 0,
        clip: bool = False,
    ) -> None:
        super().__init__()
        self.classifier: nn.Module = check_instance("classifier", classifier, nn.Module)
        self.threshold: float = check_number("threshold", threshold, 0.0)
        object.__setattr__(self, "model", SHIPPED.resolve(model))
        self.seed: int = check_seed(seed)
        self.clip: bool = check_flag("clip", clip)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W), uint8 or floating in [0, 1]; one-hot where they are random.

        Raises TypeError or ValueError for bad input, as :func:`pxfast.bits_per_dim` does.
        """
        if isinstance(images, Tensor):
            images = clipped(images, self.clip)
        grid, form = to_grid(images)
        if not form.batched:
            raise ValueError(f"expected images (N, C, H, W), got {tuple(images.shape)}")
        logits = checked_logits(self.classifier(images), len(images))
        unlikely = bits_per_dim(grid, model=self.model) >= self.threshold
        drawn = [random_label(image, logits.shape[1], self.seed) for image in grid[unlikely]]
        labels = torch.tensor(drawn, dtype=torch.int64, device="cpu")
        result = logits.clone()
        result[unlikely.to(logits.device)] = F.one_hot(labels, logits.shape[1]).to(result)
        return result

    def extra_repr(self) -> str:
        model = "by image shape" if self.model is None else self.model.config
        return f"threshold={self.threshold}, seed={self.seed}, model={model}"


def random_label(image: Tensor, classes: int, seed: int) -> int:
    """A label 0..classes - 1 from a hash of the seed and a uint8 image: uniform over images, fixed for each."""
    values = image.contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(f"{seed} ".encode() + values).digest()[:8], "big") % classes
