"""Purification: PixelDefend's Algorithm 1 (Song et al., ICLR 2018, section 4.2) over a batch of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ..base.checks import check_eps, check_flag, check_precision, check_progress
from ..base.progress import reporting
from ..data.images import ImagesT, as_kind_of, plain, to_grid
from ..engines.choosers import Greedy, Ranges
from ..engines.registry import Engine, select
from ..engines.schedule import schedule_for
from ..engines.settings import DecodeSettings
from ..pixelcnn.likelihood import log_prob_gradient
from ..pixelcnn.network import PixelCNN
from ..pixelcnn.shipped import SHIPPED, Model, model_for
from ..tensors.ambient import in_plain_torch
from ..tensors.opaque import Opaque
from ..tensors.straight_through import check_backward, with_backward
from .rules import DEFAULT_EPS, Within, check_adaptive, check_within, greedy


@in_plain_torch
def purify(
    images: ImagesT,
    eps: int = DEFAULT_EPS,
    *,
    within: Within | None = None,
    adaptive: str | None = None,
    threshold: float | None = None,
    model: Model | None = None,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    clip: bool = False,
    progress: bool | Callable[[int], None] = False,
) -> ImagesT:
    """Move every sub-pixel, in raster and channel order, to its likeliest value within ±eps of what was given.

    images: torch tensor (any device) or NumPy array, (N, C, H, W) or (C, H, W), uint8, or floating point in [0, 1],
    which is rounded to the nearest multiple of 1/255 first. eps: in steps of the 0..255 grid, by default 16; 0 changes
    nothing, 255 leaves the values unconstrained.

    within: in the place of eps, the least and the greatest value that every sub-pixel may take: a pair of uint8 tensors
    or arrays, of the images' shape or broadcastable to it. The images lie in between. Without an adaptive rule they say
    nothing more: all images of the same ranges become the same. ±eps is the pair max(x - eps, 0) and min(x + eps, 255).

    adaptive: None, or PixelDefend's adaptive purification (section 4.2), which spares what is likely already. 'image':
    images of fewer bits/dim than ``threshold`` stay as they are (default 1.8 for one channel, 3.2 for three: the
    paper's, for its models on Fashion-MNIST and CIFAR-10). 'sub-pixel': so do the sub-pixels that cost at most
    ``threshold`` bits given what was decoded before them (default 3.0, as in the authors' code, which takes the mean
    over a pixel's channels instead; at most 99, beyond which fp32 can't tell probabilities apart).

    model: a PixelCNN, a shipped model's name, the path of a model file or of its folder, or None
    for the shipped model of the images' shape. engine: 'auto', or a name that ``pxfast info`` lists. precision:
    'fp32', 'bf16' or 'auto', the engine's fastest. threads: of the CPU engine, which change no bit of the result; by
    default one for each processor that this process may use. clip: floating values outside [0, 1] count as its nearest
    end, for pipelines that overshoot; otherwise they are a ValueError, unless by less than 1e-6, which is rounding.
    progress: True shows a bar; a function is called now and then with the number of images finished so far.

    Returns a new tensor or array of the same type, shape, dtype and device; floats are multiples of 1/255. Images of
    torchvision's class stay that. Other subclasses come back as plain tensors and arrays, and arrays in the machine's
    order of bytes. Each image's result is independent of its batch. There is no gradient: inputs that require one are
    detached.

    Raises TypeError for images of another type, dtype or layout, and within a transform of torch.func; ValueError for
    another shape, NaN, or values outside [0, 1]; either for an eps that is not an integer in 0..255, ranges that are no
    pair of uint8, do not broadcast, are empty somewhere or leave an image out, an unknown engine, model or adaptive
    rule; RuntimeError for an engine that can't run here.
    """
    eps = check_eps(eps)
    check_within(within, eps)
    check_adaptive(adaptive, threshold)
    check_precision(precision)
    check_progress(progress)
    settings = DecodeSettings(threads=threads)
    chosen = select(engine, device=images.device if isinstance(images, Tensor) else None)
    grid, form = to_grid(images, keep_device=chosen.gpu, clip=clip)
    model = model_for(model, grid.shape[1:])
    if precision == "auto":
        precision = chosen.best_precision(settings)
    chooser = greedy(grid, model, eps, adaptive, threshold, within)
    with reporting(len(grid), progress) as report:
        result = _decode_suspicious(chosen, model, grid, chooser, precision, settings, report)
    return form.images(result)


def _decode_suspicious(
    engine: Engine,
    model: PixelCNN,
    grid: Tensor,
    chooser: Greedy,
    precision: str,
    settings: DecodeSettings,
    report: Callable[[int], None],
) -> Tensor:
    """Decode the images that have a choice anywhere; the others are their own result."""

    def decode(images: Tensor, within: Ranges, spared: int) -> Tensor:
        decoded = engine.decode(
            schedule_for(model),
            images,
            dataclasses.replace(chooser, within=within),
            precision=precision,
            settings=settings,
            report=lambda finished: report(spared + finished),
        )
        return decoded.to(grid.device)

    lower, upper = chooser.ranges(grid)
    suspicious = (lower != upper).flatten(1).any(1)
    if len(grid) and suspicious.all():  # to pick images by index would wake torch's threads: see _round in data.images
        return decode(grid, (lower, upper), 0)
    spared = len(grid) - int(suspicious.sum())
    report(spared)
    result = grid.clone()
    if spared < len(grid):
        result[suspicious] = decode(grid[suspicious], (lower[suspicious], upper[suspicious]), spared)
    return result


class Purifier(Opaque):
    """:func:`purify` as a module that holds the model and the settings, to put in front of a classifier.

    The density model is no submodule: ``to``, ``half``, ``train`` and ``parameters`` of a network that contains the
    purifier leave it alone. ``model=None`` picks the shipped model of the images' shape at every call.

    In pipelines whose batches are mappings, :class:`pxfast.defences.OnColumn` applies it to the images in them.

    torch.compile takes it as one operator.

    Purification has no gradient. backward: 'straight-through' puts the identity's in its place, so that gradient
    attacks on a network behind the purifier are BPDA (Athalye et al. 2018); with 'error', asking for the gradient
    raises RuntimeError. clip: as :func:`purify` has it; the gradient is the identity's there, too. Raises what
    :func:`purify` raises for these settings, and TypeError or ValueError for another ``backward``.
    """

    model: PixelCNN | None
    without_effect: ClassVar[frozenset[str]] = frozenset({"handle", "threads", "progress"})

    if TYPE_CHECKING:

        def __call__(self, images: ImagesT) -> ImagesT: ...

    def __init__(
        self,
        eps: int = DEFAULT_EPS,
        *,
        adaptive: str | None = None,
        threshold: float | None = None,
        model: Model | None = None,
        engine: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        backward: str = "straight-through",
        clip: bool = False,
        progress: bool | Callable[[int], None] = False,
    ) -> None:
        super().__init__()
        select(engine)
        self.eps: int = check_eps(eps)
        check_adaptive(adaptive, threshold)
        self.adaptive = adaptive
        self.threshold = threshold
        self.engine = engine
        self.precision: str = check_precision(precision)
        self.threads: int | None = DecodeSettings(threads=threads).threads
        self.backward: str = check_backward(backward)
        self.clip: bool = check_flag("clip", clip)
        self.progress: bool | Callable[[int], None] = check_progress(progress)
        object.__setattr__(self, "model", SHIPPED.resolve(model))  # which may take a while: last

    def forward(self, images: ImagesT) -> ImagesT:
        """Purify images, (N, C, H, W) or (C, H, W): same type, shape, dtype and device; errors as :func:`purify`'s."""
        if torch.compiler.is_compiling() and isinstance(images, Tensor):
            return self._as_operator(images, None, self.backward)
        purified = self._purify(images)
        if isinstance(images, Tensor) and isinstance(purified, Tensor) and images.is_floating_point():
            return as_kind_of(images, with_backward(plain(images), plain(purified), self.backward))
        return purified

    def _purified(self, images: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """:meth:`forward` of tensors, without a gradient: see :class:`pxfast.tensors.opaque.Opaque`."""
        return self._purify(images)

    def _purify(self, images: ImagesT) -> ImagesT:
        return purify(
            images,
            self.eps,
            adaptive=self.adaptive,
            threshold=self.threshold,
            model=self.model,
            engine=self.engine,
            precision=self.precision,
            threads=self.threads,
            clip=self.clip,
            progress=self.progress,
        )

    def log_prob_gradient(self, images: Tensor) -> Tensor:
        """The gradient of the model's log p(X) with respect to the image, as
        :func:`pxfast.pixelcnn.likelihood.log_prob_gradient` has it.
        """
        return log_prob_gradient(images, model=self.model, clip=self.clip)

    def hidden_networks(self, image_shape: tuple[int, ...]) -> list[nn.Module]:
        """The density model for images of shape ``image_shape`` = (C, H, W), which is no submodule."""
        return [model_for(self.model, image_shape)]

    def extra_repr(self) -> str:
        model = "by image shape" if self.model is None else self.model.config
        adaptive = "" if self.adaptive is None else f"adaptive={self.adaptive!r}, threshold={self.threshold}, "
        backward = "" if self.backward == "straight-through" else f"backward={self.backward!r}, "
        clip = "clip=True, " if self.clip else ""
        settings = f"{adaptive}{backward}{clip}engine={self.engine!r}, precision={self.precision!r}"
        return f"eps={self.eps}, {settings}, model={model}"
