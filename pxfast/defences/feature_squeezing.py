"""Feature squeezing (Xu et al. 2017): fewer colours, then a 2x2 median filter, as PixelDefend's appendix B has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.checks import check_between, check_choice, check_flag
from ..data.images import TORCH_DTYPES, as_kind_of, clipped, plain
from ..tensors.straight_through import check_backward, with_backward

MOST_COLOURS = 1 << 16
COLOURS = {1: 8, 3: 32}  # by channels; the paper's, for Fashion-MNIST and CIFAR-10
PADDINGS = {"symmetric": "replicate", "reflect": "reflect"}  # torch's names, which for one pixel mean the same


def reduce_colours(images: Tensor, colours: int) -> Tensor:
    """Floating images in [0, 1] to the nearest of ``colours`` evenly spaced values, 0 and 1 among them."""
    return torch.round(images * (colours - 1)) / (colours - 1)


def median_2x2(images: Tensor, padding: str = "symmetric") -> Tensor:
    """The median of each pixel (N, C, H, W), the one above, the one to the left and the one between these two.

    Of the four values it is the second largest, as in scipy.ndimage.median_filter. padding: what lies beyond the first
    row and column, in NumPy's words: 'symmetric' is the image mirrored with its edge repeated, which SciPy's own mode
    'reflect' means and Xu et al. use; 'reflect' is mirrored without it, as in PixelDefend's authors' code.
    """
    padded = F.pad(images, (1, 0, 1, 0), mode=PADDINGS[padding])
    above, here = padded[..., :-1, :], padded[..., 1:, :]
    pairs = [(rows[..., :-1], rows[..., 1:]) for rows in (above, here)]
    (low1, high1), (low2, high2) = ((torch.minimum(a, b), torch.maximum(a, b)) for a, b in pairs)
    return torch.maximum(torch.minimum(high1, high2), torch.maximum(low1, low2))


class FeatureSqueezing(nn.Module):
    """Images with fewer colours and a 2x2 median filter over them; same shape, dtype and device.

    colours: evenly spaced values per channel, 2 to 65536; None: 8 for images of one channel, 32 for three. padding: of
    the median filter, see :func:`median_2x2`. backward: the gradient of the colours' reduction, which has none,
    'straight-through' (the identity's) or 'error' (asking for it raises RuntimeError); the median passes the gradient
    on to the value it picked. clip: bring floating values outside [0, 1] to its nearest end first. Raises TypeError or
    ValueError for other settings.
    """

    if TYPE_CHECKING:

        def __call__(self, images: Tensor) -> Tensor: ...

    def __init__(
        self,
        colours: int | None = None,
        *,
        padding: str = "symmetric",
        backward: str = "straight-through",
        clip: bool = False,
    ) -> None:
        super().__init__()
        self.eval()  # as all defences: it does the same in training
        self.colours: int | None = None if colours is None else check_between("colours", colours, 2, MOST_COLOURS)
        self.padding: str = check_choice("padding", padding, PADDINGS)
        self.backward: str = check_backward(backward)
        self.clip: bool = check_flag("clip", clip)

    def forward(self, images: Tensor) -> Tensor:
        """Squeeze images (N, C, H, W), uint8, or floating point in [0, 1].

        Floating results are multiples of 1 / (colours - 1); uint8 ones are those rounded to the nearest of 0..255.
        Raises TypeError for another type or dtype, ValueError for another shape.
        """
        if not isinstance(images, Tensor) or images.dtype not in TORCH_DTYPES:
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"expected a tensor of uint8 images, or of floating ones in [0, 1], got {kind}")
        if images.dim() != 4 or (self.colours is None and images.shape[1] not in COLOURS):
            raise ValueError(f"expected images (N, C, H, W) of 1 or 3 channels, got {tuple(images.shape)}")
        colours = COLOURS[images.shape[1]] if self.colours is None else self.colours
        # in fp32 for the short types: the levels are not numbers that bfloat16 has
        given, images = images, clipped(plain(images), self.clip)
        wide = torch.promote_types(images.dtype, torch.float32)
        x = images.to(wide) / 255 if images.dtype == torch.uint8 else images.to(wide)
        squeezed = median_2x2(with_backward(x, reduce_colours(x.detach(), colours), self.backward), self.padding)
        if images.dtype == torch.uint8:
            squeezed = (squeezed * 255).round()
        return as_kind_of(given, squeezed.to(images.dtype))

    def extra_repr(self) -> str:
        clip = ", clip=True" if self.clip else ""
        return f"colours={self.colours}, padding={self.padding!r}, backward={self.backward!r}{clip}"
