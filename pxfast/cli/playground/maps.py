"""Pictures for the page: images, and surprise as colours with their legend."""

from __future__ import annotations

import base64
import functools
import io

import numpy as np
from PIL import Image
from torch import Tensor

from ...base.checks import check_choice
from ...data.images import Array

MOST_BITS = 12.0  # where the colours end: twice what three in four sub-pixels of a clean image stay below
COLOUR_MAP = "inferno"  # perceptually uniform; its lightness alone tells the order
CHANNELS = ("mean", "red", "green", "blue")  # what a map of a colour image may show


@functools.cache
def colour_table() -> Array:
    """The colours from 0 bits to ``MOST_BITS``: uint8 (256, 3)."""
    from matplotlib import colormaps

    table: Array = np.asarray(colormaps[COLOUR_MAP](np.arange(256), bytes=True))[:, :3]
    return table


def plane(bits: Tensor, channel: str = "mean") -> Tensor:
    """The bits of every pixel (H, W) from those of every sub-pixel (C, H, W): the channels' mean, or one of them.

    Of a grey image all choices are the same.
    """
    check_choice("channel", channel, CHANNELS)
    return bits.mean(0) if channel == "mean" or len(bits) == 1 else bits[CHANNELS.index(channel) - 1]


def coloured(bits: Tensor) -> Array:
    """Bits (H, W) as colours: uint8 (H, W, 3). What has more than ``MOST_BITS`` has the last colour."""
    steps = (bits.double() / MOST_BITS).clamp(0, 1).mul(255).round().long().numpy()
    found: Array = colour_table()[steps]
    return found


def legend() -> Array:
    """All colours in a row, from 0 bits on: uint8 (1, 256, 3)."""
    return colour_table()[None]


def picture_of(image: Tensor) -> Array:
    """An image (C, H, W) as PNG has it: uint8 (H, W) or (H, W, 3)."""
    pixels: Array = image.permute(1, 2, 0).contiguous().numpy()
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def data_url(pixels: Array) -> str:
    """A picture, uint8 (H, W) or (H, W, 3), as the address of a PNG that holds it."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
