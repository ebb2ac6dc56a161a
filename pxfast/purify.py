"""Purification: PixelDefend's Algorithm 1 (Song et al., ICLR 2018, section 4.2) over a batch of images."""

from __future__ import annotations

import contextlib
import dataclasses
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import engines
from .density import bits_per_dim, score
from .images import Images, to_grid
from .models import Model, model_for, resolve_model
from .pixelcnn import PixelCNN
from .schedule import PRECISIONS, schedule_for
from .score_weights import Scorer
from .straight_through import check_backward, with_backward

# Adaptive purification: bits/dim by channels (the paper, section 4.2: Fashion-MNIST, CIFAR-10), bits of a sub-pixel
IMAGE_THRESHOLD = {1: 1.8, 3: 3.2}
SUB_PIXEL_THRESHOLD = 3.0
DEFAULT_EPS = 16
METHODS = ("pixeldefend", "adp")


def check_integer(name: str, value: int, limit: int) -> int:
    """``value`` as a Python int. TypeError unless an integer (bool is not one), ValueError outside 0..limit - 1."""
    message = f"{name} must be an integer in 0..{limit - 1}, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(message)
    if not 0 <= value < limit:
        raise ValueError(message)
    return int(value)


def check_eps(eps: int) -> int:
    """``eps``, in steps of the 0..255 grid, as a Python int; raises what :func:`check_integer` does."""
    return check_integer("eps", eps, 256)


def check_precision(precision: str) -> str:
    """``precision`` itself. ValueError unless 'auto', 'fp32' or 'bf16'."""
    if precision != "auto" and precision not in PRECISIONS:
        raise ValueError(f"precision must be one of auto, {', '.join(PRECISIONS)}, got {precision!r}")
    return precision


def check_adaptive(adaptive: str | None, threshold: float | None) -> None:
    """ValueError unless ``adaptive`` is None, 'image' or 'sub-pixel' and ``threshold`` None or bits, at least 0."""
    if adaptive not in (None, "image", "sub-pixel"):
        raise ValueError(f"adaptive must be None, 'image' or 'sub-pixel', got {adaptive!r}")
    if threshold is None:
        return
    if adaptive is None:
        raise ValueError(f"threshold={threshold!r} means nothing without adaptive='image' or 'sub-pixel'")
    if isinstance(threshold, bool) or not isinstance(threshold, numbers.Real) or not threshold >= 0:
        raise ValueError(f"threshold must be a number of bits, at least 0, got {threshold!r}")


def greedy(grid: Tensor, model: PixelCNN, eps: int, adaptive: str | None, threshold: float | None) -> engines.Greedy:
    """The chooser that purifies uint8 images (N, C, H, W) under these settings, which :func:`purify` explains."""
    if adaptive == "image":
        if threshold is None:
            threshold = IMAGE_THRESHOLD[grid.shape[1]]
        suspicious = bits_per_dim(grid, model=model) >= threshold
        return engines.Greedy(suspicious.to(torch.uint8) * eps)
    if adaptive == "sub-pixel":
        return engines.Greedy(eps, keep_bits=SUB_PIXEL_THRESHOLD if threshold is None else float(threshold))
    return engines.Greedy(eps)


def purify(
    images: Images,
    eps: int | None = None,
    *,
    method: str = "pixeldefend",
    adaptive: str | None = None,
    threshold: float | None = None,
    model: Model | Scorer | None = None,
    engine: str = "auto",
    precision: str = "auto",
    sigma: float | None = None,
    steps: int | None = None,
    seed: int | None = None,
    progress: bool | Callable[[int], None] = False,
) -> Images:
    """Move every sub-pixel, in raster and channel order, to its likeliest value within ±eps of what was given.

    Or, with method='adp', add noise and follow a score network back (Yoon et al., ICML 2021): one run of
    :class:`pxfast.ADPPurifier`.

    images: torch tensor (any device) or NumPy array, (N, C, H, W) or (C, H, W), uint8, or floating point in [0, 1],
    which is rounded to the nearest multiple of 1/255 first. eps: in steps of the 0..255 grid, by default 16; 0 changes
    nothing, 255 leaves the values unconstrained.

    adaptive: None, or PixelDefend's adaptive purification (section 4.2), which spares what is likely already. 'image':
    images of fewer bits/dim than ``threshold`` stay as they are (default 1.8 for one channel, 3.2 for three: the
    paper's, for its models on Fashion-MNIST and CIFAR-10). 'sub-pixel': so do the sub-pixels that cost at most
    ``threshold`` bits given what was decoded before them (default 3.0, as in the authors' code, which takes the mean
    over a pixel's channels instead).

    model: a PixelCNN, a shipped model's name, the path of a model file, or None
    for the shipped model of the images' shape. engine: 'auto', or a name that ``pxfast info`` lists. precision:
    'fp32', 'bf16' or 'auto', the engine's fastest. progress: True shows a bar; a function is called now and then with
    the number of images finished so far.

    sigma, steps, seed: of method='adp' alone, as :class:`pxfast.ADPPurifier` takes them, and ``model`` is then a score
    network; eps, adaptive, threshold, engine and precision are PixelDefend's alone.

    Returns a new tensor or array of the same type, shape, dtype and device; floats are multiples of 1/255. Each
    image's result is independent of its batch. There is no gradient: inputs that require one are detached.

    Raises TypeError or ValueError for bad input (see :func:`pxfast.images.to_grid`), an eps that is not an integer in
    0..255, an unknown method, engine, model or adaptive rule, or an option of another method; RuntimeError for an
    engine that can't run here.
    """
    adp_options = {"sigma": sigma, "steps": steps, "seed": seed}
    if method != "pixeldefend" or set(adp_options.values()) != {None}:
        purifier = purifier_for(
            method,
            eps=eps,
            adaptive=adaptive,
            threshold=threshold,
            model=model,
            engine=engine,
            precision=precision,
            progress=progress,
            **adp_options,
        )
        grid, form = to_grid(images, keep_device=True)
        return form.images(purifier(grid))
    eps = check_eps(DEFAULT_EPS if eps is None else eps)
    check_adaptive(adaptive, threshold)
    check_precision(precision)
    chosen = engines.select(engine)
    grid, form = to_grid(images, keep_device=chosen.gpu)
    model = model_for(model, grid.shape[1:])
    if precision == "auto":
        precision = chosen.best_precision()
    chooser = greedy(grid, model, eps, adaptive, threshold)
    with reporting(len(grid), progress) as report:
        result = _decode_suspicious(chosen, model, grid, chooser, precision, report)
    return form.images(result)


@contextlib.contextmanager
def reporting(total: int, progress: bool | Callable[[int], None]) -> Iterator[Callable[[int], None]]:
    """What to call with the number of images finished: ``progress`` itself, or a bar's update, shown if it is True."""
    with tqdm(total=total, unit="image", disable=progress is not True) as bar:

        def advance(finished: int) -> None:
            bar.update(finished - bar.n)

        yield progress if callable(progress) else advance


def _decode_suspicious(
    engine: engines.Engine,
    model: PixelCNN,
    grid: Tensor,
    chooser: engines.Greedy,
    precision: str,
    report: Callable[[int], None],
) -> Tensor:
    """Decode the images whose eps is not 0; the others are their own result."""
    result = grid.clone()
    eps = chooser.eps_of(len(grid))
    suspicious = eps.nonzero()[:, 0]
    spared = len(grid) - len(suspicious)
    if spared:
        report(spared)
    if len(suspicious):
        chooser = dataclasses.replace(chooser, eps=eps[suspicious])
        decoded = engine.decode(
            schedule_for(model),
            grid[suspicious],
            chooser,
            precision=precision,
            report=lambda finished: report(spared + finished),
        )
        result[suspicious] = decoded.to(result.device)
    return result


class Purifier(nn.Module):
    """:func:`purify` as a module that holds the model and the settings, to put in front of a classifier.

    The density model is no submodule: ``to``, ``half``, ``train`` and ``parameters`` of a network that contains the
    purifier leave it alone. ``model=None`` picks the shipped model of the images' shape at every call.

    In pipelines whose batches are mappings, such as Ray Data's, ``column`` names the images in them, and everything
    else is passed on.

    Purification has no gradient. backward: 'straight-through' puts the identity's in its place, so that gradient
    attacks on a network behind the purifier are BPDA (Athalye et al. 2018); with 'error', asking for the gradient
    raises RuntimeError. Raises what :func:`purify` raises for these settings, and ValueError for another ``backward``.
    """

    def __init__(
        self,
        eps: int = DEFAULT_EPS,
        *,
        adaptive: str | None = None,
        threshold: float | None = None,
        model: Model | None = None,
        engine: str = "auto",
        precision: str = "auto",
        backward: str = "straight-through",
        column: str | None = None,
        progress: bool | Callable[[int], None] = False,
    ) -> None:
        super().__init__()
        engines.select(engine)
        self.eps = check_eps(eps)
        check_adaptive(adaptive, threshold)
        self.adaptive, self.threshold = adaptive, threshold
        object.__setattr__(self, "model", resolve_model(model))
        self.engine = engine
        self.precision = check_precision(precision)
        self.backward = check_backward(backward)
        self.column = column
        self.progress = progress

    def forward(self, images: Images | Mapping[str, Any]) -> Images | dict[str, Any]:
        """Purify images, (N, C, H, W) or (C, H, W): same type, shape, dtype and device; or those of a mapping.

        ValueError for a mapping that has no ``column``.
        """
        if isinstance(images, Mapping):
            if self.column not in images:
                raise ValueError(
                    f"a mapping needs column= of its images, got {self.column!r} for one of {list(images)}"
                )
            # not by self(...): Ray Data makes a call wait for its only thread, which is this one
            return {**images, self.column: self.forward(images[self.column])}
        purified = purify(
            images,
            self.eps,
            adaptive=self.adaptive,
            threshold=self.threshold,
            model=self.model,
            engine=self.engine,
            precision=self.precision,
            progress=self.progress,
        )
        if isinstance(images, Tensor) and images.is_floating_point():
            return with_backward(images, purified, self.backward)
        return purified

    def score(self, images: Tensor) -> Tensor:
        """The gradient of the model's log p(X) with respect to the image, as :func:`pxfast.density.score` has it."""
        return score(images, model=self.model)

    def extra_repr(self) -> str:
        model = "by image shape" if self.model is None else self.model.config
        adaptive = "" if self.adaptive is None else f"adaptive={self.adaptive!r}, threshold={self.threshold}, "
        backward = "" if self.backward == "straight-through" else f"backward={self.backward!r}, "
        column = "" if self.column is None else f"column={self.column!r}, "
        settings = f"{adaptive}{backward}{column}engine={self.engine!r}, precision={self.precision!r}"
        return f"eps={self.eps}, {settings}, model={model}"


def purifier_for(method: str, *, model: Model | Scorer | None, progress: Any = False, **options: Any) -> nn.Module:
    """The module that purifies by a method, 'pixeldefend' or 'adp'; ``options`` of None, or 'auto', are its defaults.

    options: those of :func:`purify`. ValueError for another method, and for an option that the method has no use for;
    and what :class:`Purifier` or :class:`pxfast.ADPPurifier` raise.
    """
    from .adp import ADPPurifier

    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    known = (
        ("eps", "adaptive", "threshold", "engine", "precision")
        if method == "pixeldefend"
        else ("sigma", "steps", "seed")
    )
    given = {name: value for name, value in options.items() if value not in (None, "auto")}
    for name in given.keys() - set(known):
        raise ValueError(f"method={method!r} has no use for {name}={given[name]!r}; it takes {', '.join(known)}, model")
    return (Purifier if method == "pixeldefend" else ADPPurifier)(**given, model=model, progress=progress)
