"""Purification: PixelDefend's Algorithm 1 (Song et al., ICLR 2018, section 4.2) over a batch of images."""

from __future__ import annotations

import numbers
from collections.abc import Callable

from torch import nn
from tqdm import tqdm

from . import engines
from .images import Images, to_grid
from .models import Model, model_for, resolve_model
from .schedule import PRECISIONS, schedule_for


def check_eps(eps: int) -> int:
    """``eps`` as a Python int. TypeError unless an integer (bool is not one), ValueError outside 0..255."""
    if isinstance(eps, bool) or not isinstance(eps, numbers.Integral):
        raise TypeError(f"eps must be an integer in 0..255, in steps of the 0..255 grid, got {eps!r}")
    if not 0 <= eps <= 255:
        raise ValueError(f"eps must be an integer in 0..255, got {eps}")
    return int(eps)


def check_precision(precision: str) -> str:
    """``precision`` itself. ValueError unless 'auto', 'fp32' or 'bf16'."""
    if precision != "auto" and precision not in PRECISIONS:
        raise ValueError(f"precision must be one of auto, {', '.join(PRECISIONS)}, got {precision!r}")
    return precision


def purify(
    images: Images,
    eps: int = 16,
    *,
    model: Model | None = None,
    engine: str = "auto",
    precision: str = "auto",
    progress: bool | Callable[[int], None] = False,
) -> Images:
    """Move every sub-pixel, in raster and channel order, to its likeliest value within ±eps of what was given.

    images: torch tensor (any device) or NumPy array, (N, C, H, W) or (C, H, W), uint8, or floating point in [0, 1],
    which is rounded to the nearest multiple of 1/255 first. eps: in steps of the 0..255 grid; 0 changes nothing,
    255 leaves the values unconstrained. model: a PixelCNN, a shipped model's name, the path of a model file, or None
    for the shipped model of the images' shape. engine: 'auto', or a name that ``pxfast info`` lists. precision:
    'fp32', 'bf16' or 'auto', the engine's fastest. progress: True shows a bar; a function is called now and then with
    the number of images finished so far.

    Returns a new tensor or array of the same type, shape, dtype and device; floats are multiples of 1/255. Each
    image's result is independent of its batch. There is no gradient: inputs that require one are detached.

    Raises TypeError or ValueError for bad input (see :func:`pxfast.images.to_grid`), an eps that is not an integer in
    0..255, an unknown engine or model; RuntimeError for an engine that can't run here.
    """
    eps = check_eps(eps)
    check_precision(precision)
    chosen = engines.select(engine)
    grid, form = to_grid(images)
    model = model_for(model, grid.shape[1:])
    if len(grid) == 0:
        return form.images(grid)
    if precision == "auto":
        precision = chosen.best_precision()
    with tqdm(total=len(grid), unit="image", disable=progress is not True) as bar:

        def advance(finished: int) -> None:
            bar.update(finished - bar.n)

        report = progress if callable(progress) else advance
        schedule, chooser = schedule_for(model), engines.Greedy(eps)
        result = chosen.decode(schedule, grid, chooser, precision=precision, report=report)
    return form.images(result)


class Purifier(nn.Module):
    """:func:`purify` as a module that holds the model and the settings, to put in front of a classifier.

    The density model is no submodule: ``to``, ``half``, ``train`` and ``parameters`` of a network that contains the
    purifier leave it alone. There is no gradient through a purifier. ``model=None`` picks the shipped model of the
    images' shape at every call. Raises what :func:`purify` raises for these settings.
    """

    def __init__(
        self,
        eps: int = 16,
        *,
        model: Model | None = None,
        engine: str = "auto",
        precision: str = "auto",
        progress: bool | Callable[[int], None] = False,
    ) -> None:
        super().__init__()
        engines.select(engine)
        self.eps = check_eps(eps)
        object.__setattr__(self, "model", resolve_model(model))
        self.engine = engine
        self.precision = check_precision(precision)
        self.progress = progress

    def forward(self, images: Images) -> Images:
        """Purify images, (N, C, H, W) or (C, H, W): same type, shape, dtype and device."""
        return purify(
            images,
            self.eps,
            model=self.model,
            engine=self.engine,
            precision=self.precision,
            progress=self.progress,
        )

    def extra_repr(self) -> str:
        model = "by image shape" if self.model is None else self.model.config
        return f"eps={self.eps}, engine={self.engine!r}, precision={self.precision!r}, model={model}"
