"""A classifier behind its defences, as one module that attack libraries take as it stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..base.checks import check_flag, check_seed, check_seeds
from ..base.records import shown
from ..data.images import TORCH_DTYPES, clipped
from ..tensors.floating import floating_type, in_type_of
from ..tensors.opaque import Opaque, compiled_derived_seeds, compiled_image_seeds
from ..tensors.seeds import derived_seeds, image_seeds
from .protocol import is_stochastic

DRAWN_AT_ONCE = 512  # images that a random purifier gets at once


class Defended(nn.Module):
    """Images (N, C, H, W), uint8 or floating in [0, 1], through the defences in their order, to logits (N, classes).

    classifier: takes floating images in [0, 1] and gives the logits. defences: modules that give images of
    the shape they got, such as :class:`pxfast.Purifier` and :class:`FeatureSqueezing`. uint8 images become fp32
    multiples of 1/255 first, so both forms of an image give the same logits. Nothing is rounded unless a defence does
    it: the purifier rounds to the nearest multiple of 1/255, feature squeezing to its own colours.

    ``double``, ``half``, ``bfloat16`` and ``to`` change the classifier; a purifier computes as before. The images may
    be of any floating type, in which their gradient comes; the classifier gets them in the type of its weights.
    torch.compile makes one graph of the classifier, in which each of pxfast's purifiers is one operator.

    Gradients are what the defences make of them, by default straight-through: a gradient-based attack on this module
    is then BPDA (Athalye et al. 2018). The module starts in the classifier's mode, training or eval. Values outside
    [0, 1] are an error of the purifier, unless by less than 1e-6, which is rounding. clip: they are brought to the
    nearest end first, where their gradient is zero; for pipelines that overshoot, such as preprocessing of Foolbox's.

    Where a defence is stochastic (see :mod:`pxfast.defences.protocol`), the logits are the mean over as many draws as
    it asks for. Their random numbers depend on the image's own values and on ``seed``, 0 to
    2^63 - 1, so that the logits of an image do not depend on its batch.
    Raises TypeError when one of the parts is no module, or a stochastic one lacks what such need, and TypeError or
    ValueError for another seed.
    """

    if TYPE_CHECKING:

        def __call__(self, images: Tensor) -> Tensor: ...

    def __init__(
        self, classifier: nn.Module, defences: Iterable[nn.Module] = (), *, seed: int = 0, clip: bool = False
    ) -> None:
        super().__init__()
        expected = "expected a classifier and a list of defences, all nn.Module"
        if not isinstance(defences, Iterable):
            raise TypeError(f"{expected}, got defences={shown(defences)}")
        defences = tuple(defences)
        for part in (classifier, *defences):
            if not isinstance(part, nn.Module):
                raise TypeError(f"{expected}, got {shown(part)}")
        self.runs: int = max((defence.runs for defence in defences if is_stochastic(defence)), default=0)
        self.defences: nn.Sequential = nn.Sequential(*defences)
        self.classifier = classifier
        self.seed: int = check_seed(seed)
        self.clip: bool = check_flag("clip", clip)
        self.training: bool = classifier.training  # the parts themselves keep their modes
        self.defences.training = classifier.training

    def defend(self, images: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """What the defences make of the images: floating (N, C, H, W) in [0, 1].

        seeds: of the stochastic defences' random numbers, an integer in 0..2^63 - 1 for each image; None: the first
        of the draws over which the logits are averaged.
        """
        x = self._floating(images)
        if not self.runs:
            defended: Tensor = self.defences(x)
            return defended
        given = derived_seeds(image_seeds(x, self.seed), 0) if seeds is None else check_seeds(seeds, len(x))
        (defended,) = self.draws(images, [given])
        return defended

    def draws(self, images: Tensor, seeds: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """What :meth:`defend` gives with each of several lists of seeds, in their order: the same bits and gradients.

        Draws of few images run as one batch. What stands before the first stochastic defence runs once for all draws,
        where no gradient is asked for.
        """
        x = self._floating(images)
        defences = list(enumerate(self.defences))
        if not (torch.is_grad_enabled() and x.requires_grad):
            while defences and not is_stochastic(defences[0][1]):
                x = defences.pop(0)[1](x)
        together = max(1, DRAWN_AT_ONCE // max(1, len(x)))
        for first in range(0, len(seeds), together):
            group = [check_seeds(given, len(x)) for given in seeds[first : first + together]]
            # the last draw comes first: autograd then sums their gradients in the order of separate draws
            drawn, given = torch.cat([x] * len(group)), [seed for each in reversed(group) for seed in each]
            for place, defence in defences:
                drawn = defence.draw(drawn, derived_seeds(given, place)) if is_stochastic(defence) else defence(drawn)
            yield from reversed(drawn.chunk(len(group)) if len(x) else [drawn] * len(group))

    def classify(self, defended: Tensor) -> Tensor:
        """The classifier's logits (N, classes) of defended images: floating (N, C, H, W) in [0, 1], of any type.

        They are brought to the type of the classifier's weights, if these are of one.
        """
        logits: Tensor = self.classifier(in_type_of(self.classifier, defended))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        if not self.runs:
            return self.classify(self.defend(images))
        x = self._floating(images)
        if torch.compiler.is_compiling():
            return self._compiled_mean(x)
        seeds = image_seeds(x, self.seed)
        logits = map(self.classify, self.draws(x, [derived_seeds(seeds, run) for run in range(self.runs)]))
        return torch.stack(list(logits)).mean(dim=0)

    def _compiled_mean(self, x: Tensor) -> Tensor:
        """The mean of the logits for torch.compile: all draws in one batch, and their seeds as tensors."""
        seeds = compiled_image_seeds(x, self.seed)
        given = torch.cat([compiled_derived_seeds(seeds, run) for run in range(self.runs)])
        drawn = torch.cat([x] * self.runs)
        for place, defence in enumerate(self.defences):
            if is_stochastic(defence):
                own: Any = compiled_derived_seeds(given, place)
                drawn = defence.draw(drawn, own if isinstance(defence, Opaque) else own.tolist())
            else:
                drawn = defence(drawn)
        if self.classifier.training:  # it may look at its batch
            return torch.stack([self.classify(draw) for draw in drawn.chunk(self.runs)]).mean(dim=0)
        logits = self.classify(drawn)
        return logits.reshape(self.runs, len(x), *logits.shape[1:]).mean(dim=0)

    def _floating(self, images: Tensor) -> Tensor:
        """The images as floating ones. TypeError or ValueError for others than the class takes."""
        if not isinstance(images, Tensor) or images.dtype not in TORCH_DTYPES:
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"expected a tensor of uint8 images, or of floating ones in [0, 1], got {kind}")
        if images.dim() != 4:
            raise ValueError(f"expected images (N, C, H, W), got {tuple(images.shape)}")
        if images.dtype != torch.uint8:
            return clipped(images, self.clip)
        wide = torch.promote_types(floating_type(self.classifier) or torch.float32, torch.float32)
        return images.to(wide) / 255

    def extra_repr(self) -> str:
        shown = [f"seed={self.seed}"] if self.runs else []
        return ", ".join([*shown, "clip=True"] if self.clip else shown)
