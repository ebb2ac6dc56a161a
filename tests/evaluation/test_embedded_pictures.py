"""Pictures inside the report: smaller, and the same."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image
from support.helpers import bundled_images

from pxfast.evaluation.report import embedded as embedded_pictures


def png_of(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def embedded(png: bytes) -> tuple[str, bytes]:
    kind, _, data = embedded_pictures.data_uri("image/png", png).partition(";base64,")
    return kind, base64.b64decode(data)


def test_pictures_are_embedded_without_loss_and_large_ones_smaller(monkeypatch):
    photograph = Image.fromarray(bundled_images(3)[:4].permute(0, 2, 3, 1).reshape(-1, 32, 3).numpy()).resize(
        (96, 384), 0
    )
    png = png_of(photograph)
    kind, data = embedded(png)
    assert kind == "data:image/webp"
    assert len(data) < len(png)
    assert (np.asarray(Image.open(io.BytesIO(data))) == np.asarray(photograph)).all()
    monkeypatch.setattr(embedded_pictures, "LARGE_BYTES", len(data) // 2)
    kind, smaller = embedded(png)
    assert kind == "data:image/webp"
    assert len(smaller) < len(data)
    changed = np.asarray(Image.open(io.BytesIO(smaller))).astype(int) - np.asarray(photograph)
    assert 0 < np.abs(changed).mean() < 8  # grey levels
    clear = Image.new("RGBA", (200, 100), (255, 0, 0, 0))
    assert Image.open(io.BytesIO(embedded(png_of(clear))[1])).mode == "RGBA"


@pytest.mark.parametrize("damaged", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_damaged_picture_stays_as_it_is(damaged):
    assert embedded(damaged) == ("data:image/png", damaged)
