"""Pictures inside the report's page: as small as they get, so that the page can be sent by mail."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

LARGE_BYTES = 100_000  # a picture that takes more without loss may lose what nobody sees; its own file stays as it is
QUALITY = 45  # of WebP, then
EFFORT = 90  # of WebP without loss, which calls it quality too: at 100 it searches far longer for hardly less


def data_uri(kind: str, data: bytes) -> str:
    """The URI of a picture's bytes of a MIME type. PNG becomes WebP, without loss where that is small enough."""
    if kind == "image/png":
        smaller = min(_as_webp(data), key=len, default=data)
        if len(smaller) < len(data):
            kind, data = "image/webp", smaller
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _as_webp(png: bytes) -> list[bytes]:
    """What may stand for a PNG file; nothing where that is damaged or huge, or Pillow or its WebP is missing."""
    try:
        from PIL import Image as pillow
    except ImportError:
        return []
    try:
        with pillow.open(io.BytesIO(png)) as opened:
            see_through = "A" in opened.getbands() or "transparency" in opened.info
            image = opened.convert("RGBA" if see_through else "RGB")
        found = [_saved(image, lossless=True, quality=EFFORT)]
        if min(len(found[0]), len(png)) > LARGE_BYTES:
            found.append(_saved(image, quality=QUALITY))
    except (OSError, ValueError, KeyError, SyntaxError, pillow.DecompressionBombError):  # as Pillow says "damaged"
        return []
    return found


def _saved(image: Image.Image, **settings: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "WEBP", method=6, **settings)
    return out.getvalue()
