"""A classifier behind its defences, as one module that attack libraries take as it stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..base.checks import check_choice, check_flag, check_seed, check_seeds
from ..base.records import shown
from ..data.images import TORCH_DTYPES, clipped
from ..tensors.floating import floating_type, in_type_of
from ..tensors.opaque import Opaque, compiled_derived_seeds, compiled_image_seeds
from ..tensors.seeds import derived_seeds, image_seeds
from .protocol import is_stochastic

DRAWN_AT_ONCE = 512  # images that a random purifier gets at once
VIEWS = ("one", "flip")


def averaged(logits: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean of the probabilities that several logits (N, classes) give; a single one as it is.

    TypeError where one of several is no floating tensor (N, classes).
    """
    if len(logits) == 1:
        return logits[0]
    for each in logits:
        if not isinstance(each, Tensor) or not each.is_floating_point() or each.dim() != 2:
            got = f"{each.dtype} {tuple(each.shape)}" if isinstance(each, Tensor) else type(each).__name__
            raise TypeError(f"expected logits (N, classes) from the classifier, a single floating tensor, got {got}")
    return torch.stack([each.log_softmax(dim=1) for each in logits]).logsumexp(dim=0) - math.log(len(logits))


def unwrapped(module: nn.Module) -> nn.Module:
    """The ``Defended`` that torch.compile, DataParallel or DistributedDataParallel wrap; any other module as it is."""
    inner: object = module
    while isinstance(inner, nn.Module) and not isinstance(inner, Defended):
        parallel = isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        inner = inner.module if parallel else getattr(inner, "_orig_mod", None)
    return inner if isinstance(inner, Defended) else module


class Chain(nn.Sequential):
    """Defences, one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        for defence in self:
            x = applied(defence, x)
        return x


def applied(defence: nn.Module, x: Tensor, seeds: Any = None) -> Tensor:
    """What a defence makes of floating images (N, C, H, W); with the seeds of a stochastic one's draw.

    A module of a user's gets a copy, which it may change. TypeError or ValueError unless it gives floating images of
    the shape that it got.
    """
    own = isinstance(defence, Opaque)
    given = x if own else x.clone()
    draw: Any = defence if seeds is None else defence.draw
    found = draw(given) if seeds is None else draw(given, seeds)
    if own:
        return found  # type: ignore[no-any-return]
    expected = f"expected floating images {tuple(x.shape)} from the defence {type(defence).__name__}"
    if not isinstance(found, Tensor):
        raise TypeError(f"{expected}, got {type(found).__name__}")
    if not found.is_floating_point():
        raise TypeError(f"{expected}, got {found.dtype}")
    if found.shape != x.shape:
        raise ValueError(f"{expected}, got {tuple(found.shape)}")
    return found


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

    views: 'one', or 'flip': an image and its mirror image go through the defences, the classifier sees both as they
    are and mirrored, and the logits are the logarithm of the mean of the four probabilities. It doubles the work.
    alternatives: other lists of defences, such as purifiers of other eps. The classifier then sees what each of them
    makes of the image as well, and all probabilities are averaged. An attack that knows the defences knows the views.

    Raises TypeError when one of the parts is no module, or a stochastic one lacks what such need, and TypeError or
    ValueError for another seed or other views.
    """

    if TYPE_CHECKING:

        def __call__(self, images: Tensor) -> Tensor: ...

    def __init__(
        self,
        classifier: nn.Module,
        defences: Iterable[nn.Module] = (),
        *,
        seed: int = 0,
        clip: bool = False,
        views: str = "one",
        alternatives: Iterable[Iterable[nn.Module]] = (),
    ) -> None:
        super().__init__()
        expected = "expected a classifier and a list of defences, all nn.Module"
        if not isinstance(defences, Iterable):
            raise TypeError(f"{expected}, got defences={shown(defences)}")
        if not isinstance(alternatives, Iterable):
            raise TypeError(f"expected lists of defences, got alternatives={shown(alternatives)}")
        chains = [tuple(defences)]
        for given in alternatives:
            if not isinstance(given, Iterable):
                raise TypeError(f"expected lists of defences, got alternatives=[{shown(given)}]")
            chains.append(tuple(given))
        parts = [part for chain in chains for part in chain]
        for part in (classifier, *parts):
            if not isinstance(part, nn.Module):
                raise TypeError(f"{expected}, got {shown(part)}")
        self.runs: int = max((part.runs for part in parts if is_stochastic(part)), default=0)
        self.defences: Chain = Chain(*chains[0])
        others = [Chain(*chain) for chain in chains[1:]]
        self.alternatives: nn.ModuleList | None = nn.ModuleList(others) if others else None
        self.classifier = classifier
        self.seed: int = check_seed(seed)
        self.clip: bool = check_flag("clip", clip)
        self.views: str = check_choice("views", views, VIEWS)
        self.training: bool = classifier.training  # the parts themselves keep their modes
        for chain in self.chains:
            chain.training = classifier.training

    def around(self, classifier: nn.Module, seed: int | None = None) -> Defended:
        """The same defences and settings in front of another classifier. seed: None: this one's."""
        seed = self.seed if seed is None else seed
        first, *others = self.chains
        return Defended(classifier, first, seed=seed, clip=self.clip, views=self.views, alternatives=others)

    @property
    def chains(self) -> tuple[Chain, ...]:
        """The defences, and the alternatives to them: each gives the classifier a view, or two."""
        return (self.defences, *(self.alternatives or ()))

    def defend(self, images: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """What the defences make of the images: floating (N, C, H, W) in [0, 1]; of several views the first.

        seeds: of the stochastic defences' random numbers, an integer in 0..2^63 - 1 for each image; None: the first
        of the draws over which the logits are averaged.
        """
        x = self._floating(images)
        if not self.runs:
            defended: Tensor = self.defences(x)
            return defended
        given = derived_seeds(image_seeds(x, self.seed), 0) if seeds is None else check_seeds(seeds, len(x))
        (defended,) = self._draws(self.defences, x, [given])
        return defended

    def _draws(self, chain: Chain, x: Tensor, seeds: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """What a chain of defences makes of floating images with each of several lists of seeds, in their order.

        Draws of few images run as one batch, and have the same bits and gradients. What stands before the first
        stochastic defence runs once for all draws, where no gradient is asked for.
        """
        defences = list(enumerate(chain))
        if not (torch.is_grad_enabled() and x.requires_grad):
            while defences and not is_stochastic(defences[0][1]):
                x = applied(defences.pop(0)[1], x)
        together = max(1, DRAWN_AT_ONCE // max(1, len(x)))
        for first in range(0, len(seeds), together):
            group = [check_seeds(given, len(x)) for given in seeds[first : first + together]]
            # the last draw comes first: autograd then sums their gradients in the order of separate draws
            drawn, given = torch.cat([x] * len(group)), [seed for each in reversed(group) for seed in each]
            for place, defence in defences:
                drawn = applied(defence, drawn, derived_seeds(given, place) if is_stochastic(defence) else None)
            yield from reversed(drawn.chunk(len(group)) if len(x) else [drawn] * len(group))

    def seen(self, images: Tensor, purify: Callable[[Chain, Tensor], Tensor]) -> tuple[Tensor, ...]:
        """The views of floating images that ``purify`` gives in the place of each chain of defences.

        A view is turned as the images are, and the first one is that of the images as they are. All of a chain are one
        batch of ``purify``.
        """
        x = self._oriented(images)
        return tuple(view for chain in self.chains for view in self._turned_back(purify(chain, x), len(images)))

    def seen_draws(self, images: Tensor, seeds: Sequence[Sequence[int]]) -> Iterator[tuple[Tensor, ...]]:
        """The views with each of several lists of seeds, in their order, as :meth:`defend` gives the first ones.

        All views of an image have the same random numbers.
        """
        x = self._floating(images)
        oriented, own = self._oriented(x), [list(given) * self.orientations for given in seeds]
        for drawn in zip(*(self._draws(chain, oriented, own) for chain in self.chains), strict=True):
            yield tuple(view for each in drawn for view in self._turned_back(each, len(x)))

    @property
    def orientations(self) -> int:
        """How many of an image and its mirror image go through each chain of defences."""
        return 2 if self.views == "flip" else 1

    @property
    def view_count(self) -> int:
        """How many views of an image the classifier gets."""
        return self.orientations * len(self.chains)

    def _oriented(self, x: Tensor) -> Tensor:
        """The views of the images before the defences, one after the other in one batch."""
        return torch.cat([x, x.flip(3)]) if self.views == "flip" else x

    def _turned_back(self, defended: Tensor, count: int) -> tuple[Tensor, ...]:
        """The views of ``count`` images, which are one batch, turned as the images are."""
        if self.views == "flip":
            return defended[:count], defended[count:].flip(3)
        return (defended,)

    def classify(self, defended: Tensor) -> Tensor:
        """The classifier's logits (N, classes) of defended images, or of one view of them: floating (N, C, H, W) in
        [0, 1], of any type.

        They are brought to the type of the classifier's weights, if these are of one. Where there are several views,
        the logits are those of the mean probability of the images and their mirror images. The classifier gets copies,
        which it may change, as normalisation in place does.
        """
        return averaged(self.classify_each(defended))

    def classify_each(self, defended: Tensor) -> list[Tensor]:
        """The classifier's logits (N, classes) of one view as it is and, where mirror images are seen, of its mirror
        image: those that :meth:`classify` averages.
        """
        x = in_type_of(self.classifier, defended)
        return [self.classifier(each) for each in ([x.clone()] if self.views == "one" else [x.clone(), x.flip(3)])]

    def forward(self, images: Tensor) -> Tensor:
        x = self._floating(images)
        if not self.runs:
            return averaged([self.classify(view) for view in self.seen(x, lambda chain, views: chain(views))])
        if torch.compiler.is_compiling():
            return self._compiled_mean(x)
        seeds = image_seeds(x, self.seed)
        draws = self.seen_draws(x, [derived_seeds(seeds, run) for run in range(self.runs)])
        return torch.stack([averaged([self.classify(view) for view in views]) for views in draws]).mean(dim=0)

    def _compiled_mean(self, x: Tensor) -> Tensor:
        """The mean of the logits for torch.compile: all draws in one batch, and their seeds as tensors."""
        seeds, views = compiled_image_seeds(x, self.seed), self.orientations
        given = torch.cat([compiled_derived_seeds(seeds, run) for run in range(self.runs) for _ in range(views)])
        every = torch.cat([self._oriented(x)] * self.runs)
        logits = [self._compiled_runs(chain, every, given) for chain in self.chains]
        runs = torch.cat([each.reshape(self.runs, views, len(x), *each.shape[1:]) for each in logits], dim=1)
        return torch.stack([averaged(list(run)) for run in runs]).mean(dim=0)

    def _compiled_runs(self, chain: Chain, drawn: Tensor, given: Tensor) -> Tensor:
        """The logits of all views and draws of a chain, for torch.compile."""
        for place, defence in enumerate(chain):
            seeds: Any = None
            if is_stochastic(defence):
                own: Any = compiled_derived_seeds(given, place)
                seeds = own if isinstance(defence, Opaque) else own.tolist()
            drawn = applied(defence, drawn, seeds)
        if self.classifier.training:  # it may look at its batch
            return torch.cat([self.classify(view) for view in drawn.chunk(self.runs * self.orientations)])
        return self.classify(drawn)  # which way a view is turned does not matter, since its mirror image is seen too

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
        shown += [f"views={self.views}"] if self.views != "one" else []
        return ", ".join([*shown, "clip=True"] if self.clip else shown)
