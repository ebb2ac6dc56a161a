"""The picture of many images."""

import numpy as np
import pytest
import torch
from support.helpers import bundled_images

from pxfast.data.image_decoding import read_image
from pxfast.data.image_files import write_png
from pxfast.data.image_grid import BACKGROUND, GAP, image_grid


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("enlarge", [1, 3])
def test_every_image_is_where_it_should_be(channels, enlarge, tmp_path):
    images = bundled_images(channels)[:7]
    _, C, H, W = images.shape
    picture = image_grid(images, 3, enlarge=enlarge)
    assert picture.dtype == torch.uint8
    assert picture.shape == (C, 3 * (enlarge * H + GAP) + GAP, 3 * (enlarge * W + GAP) + GAP)
    covered = torch.zeros(picture.shape[1:], dtype=torch.bool)
    for n, image in enumerate(images):
        top, left = GAP + n // 3 * (enlarge * H + GAP), GAP + n % 3 * (enlarge * W + GAP)
        cell = slice(top, top + enlarge * H), slice(left, left + enlarge * W)
        shown = picture[:, cell[0], cell[1]]
        for y in range(enlarge):
            for x in range(enlarge):
                assert torch.equal(shown[:, y::enlarge, x::enlarge], image)
        covered[cell] = True
    assert (picture[:, ~covered] == BACKGROUND).all()
    write_png(picture, tmp_path / "grid.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grid.png"), picture.numpy())


def test_columns():
    def shape(count: int, columns: int | None = None) -> tuple[int, int]:
        _, height, width = image_grid(torch.zeros(count, 1, 4, 8, dtype=torch.uint8), columns).shape
        return (height - GAP) // (4 + GAP), (width - GAP) // (8 + GAP)

    assert shape(1) == (1, 1)
    assert shape(9) == (3, 3)
    assert shape(10) == (3, 4)
    assert shape(10, 5) == (2, 5)
    assert shape(3, 8) == (1, 3)


def test_refusals():
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="at least one image"):
        image_grid(images[:0])
    with pytest.raises(ValueError, match="columns must be None or an integer of at least 1, got 0"):
        image_grid(images, 0)
    with pytest.raises(ValueError, match="enlarge must be an integer of at least 1, got -1"):
        image_grid(images, enlarge=-1)
    assert torch.equal(image_grid(images.float() / 255), image_grid(images.numpy()))
