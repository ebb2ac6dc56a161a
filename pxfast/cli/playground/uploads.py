"""A user's picture as an image that a model takes: its middle square, shrunk, in the model's colours."""

from __future__ import annotations

import os

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...data.image_decoding import read_image


def read_upload(path: str | os.PathLike[str], image_shape: tuple[int, int, int]) -> tuple[Tensor, str]:
    """The picture in a file as uint8 (C, H, W) of a model's shape, and a note that says what was done to it.

    ValueError names the file, by its last part alone, where :func:`pxfast.data.image_decoding.read_image` refuses it.
    """
    name = os.path.basename(path)
    try:
        pixels = torch.from_numpy(read_image(path).copy())  # Pillow's own is not to be written to
    except ValueError as error:  # it names the server's own copy, which means nothing to the user
        raise ValueError(str(error).replace(os.fspath(path), name)) from None
    image, changes = fit(pixels, image_shape)
    size = f"{pixels.shape[2]} \u00d7 {pixels.shape[1]} pixels, {colours(len(pixels))}"
    return image, f"{name} ({size}) {changes}"


def colours(channels: int) -> str:
    """What an image of so many channels is called."""
    return "grey" if channels == 1 else "colour"


def fit(pixels: Tensor, image_shape: tuple[int, int, int]) -> tuple[Tensor, str]:
    """Any uint8 picture (1 or 3, h, w) as (C, H, W), and what that took in words.

    Its largest middle part of the right proportions is kept, then resized (bicubic, with antialiasing). Colour becomes
    grey by ITU-R 601's weights, grey becomes three equal channels.
    """
    C, H, W = image_shape
    if tuple(pixels.shape) == image_shape:
        return pixels, "is used as it is."
    changes = []
    h, w = pixels.shape[1:]
    side = min(h / H, w / W)
    height, width = max(1, round(side * H)), max(1, round(side * W))
    top, left = (h - height) // 2, (w - width) // 2
    if (height, width) != (h, w):
        changes.append(f"cropped to its middle {width} \u00d7 {height} pixels")
    array = pixels[:, top : top + height, left : left + width].permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[:, :, 0] if len(pixels) == 1 else array)
    if (height, width) != (H, W):
        picture = picture.resize((W, H), Image.Resampling.BICUBIC)
        changes.append(f"{'shrunk' if height > H else 'enlarged'} to {W} \u00d7 {H}")
    if len(pixels) != C:
        picture = picture.convert("L" if C == 1 else "RGB")
        changes.append("made grey" if C == 1 else "given three equal channels")
    image = torch.from_numpy(np.array(picture)).reshape(H, W, C).permute(2, 0, 1).contiguous()
    listed = " and ".join(filter(None, (", ".join(changes[:-1]), changes[-1])))
    return image, f"was {listed}, because the model takes nothing else."
