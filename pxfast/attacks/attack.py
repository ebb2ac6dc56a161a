"""What every attack has in common: floats inside, the integer grid at the door, and the count of what rounding cost."""

from __future__ import annotations

import abc
import dataclasses
import inspect
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..base.checks import check_eps, check_flag, check_instance, check_progress, check_seed
from ..base.extras import require
from ..base.progress import reporting
from ..classifiers.contract import Labels, checked_logits, class_labels
from ..classifiers.inspection import is_probability
from ..data.images import TORCH_DTYPES, ImageForm
from ..data.images import to_grid as grid_of
from ..defences.defended import Defended, unwrapped
from ..tensors.ambient import in_plain_torch
from ..tensors.batches import FIXED_BATCH, in_fixed_batches
from ..tensors.floating import in_type_of
from ..tensors.seeds import image_key
from .gradients import predicted
from .result import AttackResult, join
from .rounding import reached, rearm, to_grid

BATCH = FIXED_BATCH
BLOCK = 4 * BATCH  # images attacked at once: those that are done make room for others in the classifier's batches


class FixedBatch(nn.Module):
    """A classifier that always sees batches of one size: see :func:`pxfast.tensors.batches.in_fixed_batches`.

    It sees copies of the images, which it may change, in the type of its weights, and its modules keep their modes.
    What it gives is checked (:func:`pxfast.classifiers.contract.checked_logits`).
    """

    def __init__(self, classifier: nn.Module, size: int = BATCH) -> None:
        super().__init__()
        self.classifier = classifier
        self.size = size
        self.training = False  # of this module alone: a classifier may have parts that stay in training mode

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of floating images (N, C, H, W), N > 0."""
        return in_fixed_batches(self._logits, images, self.size)

    def _logits(self, images: Tensor) -> Tensor:
        return checked_logits(self.classifier(in_type_of(self.classifier, images.clone())), len(images))


def fix_batches(classifier: nn.Module, size: int) -> FixedBatch | Defended:
    """The classifier in batches of one size. Its purifiers depend on no batch, and get all images at once."""
    classifier = unwrapped(classifier)
    if isinstance(classifier, Defended):
        return classifier.around(FixedBatch(classifier.classifier, size))
    return FixedBatch(classifier, size)


def image_generators(x: Tensor, seed: int) -> list[np.random.Generator]:
    """A random generator per floating image (N, C, H, W) on the grid, seeded by its own values and ``seed``.

    So an image's random numbers are the same in every batch, in every order, and on every device.
    """
    images = (x * 255.0).round().to(torch.uint8)
    return [np.random.Generator(np.random.Philox(key=image_key(image, seed))) for image in images]


class Attack(abc.ABC):
    """An attack on a classifier: made with its options, and called with images as often as one likes.

    ``Attack(...)(classifier, images, labels, eps=8, seed=0)`` gives images of the type that it was given, uint8 or
    floating; :meth:`run` takes the same, and also says which images are misclassified before and after rounding to the
    grid.

    A subclass takes its options as keywords, checks them in its constructor (TypeError, ValueError), keeps each in an
    attribute of the same name, and has the method :meth:`perturb`. What is true of all its instances are attributes of
    the class:

    name: in ``ATTACKS`` and on the command line. source: where it was published, and what differs here. bounded:
    whether it stays within ±eps. needs_gradient: whether the classifier must be differentiable. on_grid: its results
    are grid values but for rounding errors. random: they depend on the seed. batch: how many images the classifier
    sees at once. block: how many images are attacked at once. targeted: whether :meth:`perturb` also takes
    ``targets``, int64 (N,). knows_defences: whether it is one on the defences in front of a classifier. alone:
    whether an image's result depends on no other of its block. library: the module of the extra ``attacks`` that it
    calls, or None.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    bounded: ClassVar[bool] = True
    needs_gradient: ClassVar[bool] = True
    on_grid: ClassVar[bool] = False
    random: ClassVar[bool] = False
    batch: ClassVar[int] = BATCH
    block: ClassVar[int] = BLOCK
    targeted: ClassVar[bool] = False
    knows_defences: ClassVar[bool] = False
    alone: ClassVar[bool] = True
    library: ClassVar[str | None] = None

    @abc.abstractmethod
    def perturb(self, classifier: nn.Module, x: Tensor, labels: Tensor, eps: float = 1.0, *, seed: int = 0) -> Tensor:
        """The attack itself, on floats: images (N, C, H, W) in [0, 1] of x's type and device.

        x: such images, on the grid. labels: int64 (N,). eps: in [0, 1]; 1, which bounds nothing, where the attack is
        not bounded. seed: of the random numbers. Raises NoGradient where the classifier has no gradient and needs one.
        """

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of the constructor, by name: JSON-able, and ``type(attack)(**attack.options)`` is the same."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"

    def __call__(
        self,
        classifier: nn.Module,
        images: Tensor,
        labels: Labels | None,
        eps: int | None = None,
        *,
        seed: int = 0,
        targets: Labels | None = None,
        clip: bool = False,
        progress: bool | Callable[[int], None] = False,
    ) -> Tensor:
        """The attacked images (N, C, H, W), as :meth:`run` gives them, with the same arguments and errors."""
        judge = not self.on_grid
        return self._whole(classifier, images, labels, eps, seed, targets, clip, progress, judge=judge).images

    def run(
        self,
        classifier: nn.Module,
        images: Tensor,
        labels: Labels | None,
        eps: int | None = None,
        *,
        seed: int = 0,
        targets: Labels | None = None,
        clip: bool = False,
        progress: bool | Callable[[int], None] = False,
    ) -> AttackResult:
        """Attack images, and say which ones are misclassified before and after rounding.

        classifier: in eval mode, takes floating images (N, C, H, W) in [0, 1], gives finite logits (N, classes), at
        least two; on the images' device. Its modules keep their modes, and it runs without autocast. images:
        (N, C, H, W), uint8, or floating in [0, 1], which are rounded to the nearest multiple of 1/255 first.
        labels: integers (N,), the true ones, by which success is counted; None: the classifier's own. eps: an integer
        in 0..255, in steps of the grid (8 is 8/255 of [0, 1]); None for attacks that are not bounded. seed: of the
        random numbers. targets: integers (N,), the classes to reach, for attacks that are ``targeted``; None: any wrong
        one. clip: as :func:`pxfast.purify` has it. progress: True shows a bar; a function is called with the number of
        images done.

        The result has the given images' type and device. It stays on the grid, and within ±eps of the images on the
        grid if the attack is bounded.
        An image's result depends on no other image, unless the attack says so.
        Raises TypeError or ValueError for bad input and for logits or gradients that are not finite, NoGradient (a
        ValueError) for a classifier without a gradient.
        """
        return self._whole(classifier, images, labels, eps, seed, targets, clip, progress, judge=True)

    @in_plain_torch
    @torch.no_grad()
    def in_pieces(
        self,
        take: Callable[[Tensor, AttackResult], object],
        classifier: nn.Module,
        images: Tensor,
        labels: Labels | None,
        eps: int | None = None,
        *,
        seed: int = 0,
        targets: Labels | None = None,
        clip: bool = False,
        progress: bool | Callable[[int], None] = False,
        judge: bool = True,
    ) -> None:
        """What :meth:`run` gives, piece by piece, so that it can be kept.

        take: is called with the places of images that are finished, int64 (n,), on the CPU, and their result, whose
        images are uint8; every image comes once, in any order. judge: False: nobody asks which images are
        misclassified, and the result says none. The rest is as in :meth:`run`.
        """
        self.check_installed()
        eps = self.check_eps(eps)
        seed = check_seed(seed)
        check_progress(progress)
        grid, _ = attackable(classifier, images, clip)
        fixed, known, aims = prepared(classifier, grid, labels, targets, self.batch)
        if aims is not None and not self.targeted:
            raise ValueError(f"{self.name} leads to any wrong class: it takes no targets")
        done = 0
        with reporting(len(grid), progress) as report:
            for places, result in self._pieces(fixed, grid, known, aims, eps, seed, judge):
                take(places, result)
                done += len(places)
                report(done)

    def check_installed(self) -> None:
        """ImportError, naming the extra, where the library that this attack calls is not there."""
        if self.library is not None:
            require(self.library, "attacks")

    def _left(self, classifier: nn.Module, x: Tensor) -> Tensor | None:
        """The labels that the attack leads away from, int64 (N,), of images x as ``perturb`` takes them; None: those
        that it is given.
        """
        return None

    def hidden_networks(self, image_shape: tuple[int, ...]) -> list[nn.Module]:
        """Networks of the attack's own that its results depend on, such as a density model. image_shape: (C, H, W)."""
        return []

    def check_defences(self, defences: Sequence[nn.Module]) -> None:
        """ValueError where this attack can't be one on a classifier behind these ``defences``."""
        if self.knows_defences and not len(defences):
            raise ValueError(f"{self.name} attacks a purifier and the classifier behind it: it needs a defence")

    def check_eps(self, eps: int | None) -> int | None:
        """``eps`` as this attack takes it. TypeError or ValueError when it is none."""
        if self.bounded:
            if eps is None:
                raise ValueError(f"{self.name} needs eps, an integer in 0..255")
            return check_eps(eps)
        if eps is not None:
            raise ValueError(f"{self.name} is not bounded: it takes no eps, got {eps!r}")
        return None

    @in_plain_torch
    def _whole(
        self,
        classifier: nn.Module,
        images: Tensor,
        labels: Labels | None,
        eps: int | None,
        seed: int,
        targets: Labels | None,
        clip: bool,
        progress: bool | Callable[[int], None],
        *,
        judge: bool,
    ) -> AttackResult:
        """All pieces, in the images' order, in the form of the images."""
        places, pieces = [torch.zeros(0, dtype=torch.int64)], []

        def take(own: Tensor, piece: AttackResult) -> None:
            places.append(own)
            pieces.append(piece)

        self.in_pieces(
            take,
            classifier,
            images,
            labels,
            eps,
            seed=seed,
            targets=targets,
            clip=clip,
            progress=progress,
            judge=judge,
        )
        grid, form = attackable(classifier, images, clip)
        found = join([nothing(grid), *pieces]).ordered(torch.cat(places))
        return dataclasses.replace(found, images=form.images(found.images))

    def _pieces(
        self,
        classifier: FixedBatch | Defended,
        images: Tensor,
        labels: Tensor | None,
        targets: Tensor | None,
        eps: int | None,
        seed: int,
        judge: bool,
    ) -> Iterator[tuple[Tensor, AttackResult]]:
        """Places and results of images, uint8 (N, C, H, W), as they are finished; the arguments are checked."""
        for places in blocks(len(images), self.block):
            block = images[places]
            x = to_float(block)
            given = None if labels is None else labels[places]
            clean = None
            if given is None or judge:
                prediction = predicted(classifier, x)
                given = prediction if given is None else given
                clean = prediction != given if judge else None
            aims = {} if targets is None else {"targets": targets[places]}
            started = time.perf_counter()
            moved = self.perturb(classifier, x, given, 1.0 if eps is None else eps / 255.0, seed=seed, **aims)
            seconds = time.perf_counter() - started
            result = settled(classifier, block, x, moved.detach(), given, clean, eps, self._left(classifier, x), **aims)
            yield torch.arange(len(images))[places], dataclasses.replace(result, seconds=seconds)


@torch.no_grad()
def prepared(
    classifier: nn.Module, images: Tensor, labels: Labels | None, targets: Labels | None, batch: int
) -> tuple[FixedBatch | Defended, Tensor | None, Tensor | None]:
    """The classifier in batches of one size, and labels and targets as int64 (N,) of its classes, None where not given.

    images: uint8, as :func:`attackable` gives them. TypeError or ValueError unless an attack can take the labels.
    A UserWarning where the classifier gives probabilities.
    """
    fixed = fix_batches(classifier, batch)
    inner = fixed.classifier if isinstance(fixed, Defended) else fixed
    known = {"labels": labels, "targets": targets}
    classes = None
    if len(images):
        logits = inner(to_float(images[:1]))
        classes = logits.shape[1]
        if is_probability(logits):
            warnings.warn(
                "the classifier gives probabilities, which sum to 1 for each image, in place of logits: gradients "
                "vanish through a softmax that is sure, and an attack that fails for it shows no robustness",
                stacklevel=2,
            )
    found = {
        what: None
        if value is None
        else class_labels(value, len(images), classes=classes, device=images.device, what=what)
        for what, value in known.items()
    }
    return fixed, found["labels"], found["targets"]


def attackable(classifier: nn.Module, images: Tensor, clip: bool) -> tuple[Tensor, ImageForm[Tensor]]:
    """The images as uint8, where they are, and how they came. TypeError or ValueError unless an attack can take them.

    The classifier is looked at, too: an attack needs it in eval mode.
    """
    clip = check_flag("clip", clip)
    if not isinstance(images, Tensor) or images.dtype not in TORCH_DTYPES:
        what = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"expected a tensor of uint8 images, or of floating ones in [0, 1], got {what}")
    if images.dim() != 4:
        raise ValueError(f"expected images (N, C, H, W), got {tuple(images.shape)}")
    check_instance("classifier", classifier, nn.Module)
    if classifier.training:
        raise ValueError("the classifier must be in eval mode; in training mode each image depends on its batch")
    return grid_of(images, keep_device=True, clip=clip)


def settled(
    classifier: FixedBatch | Defended,
    images: Tensor,
    x: Tensor,
    moved: Tensor,
    labels: Tensor,
    clean: Tensor | None,
    eps: int | None,
    left: Tensor | None = None,
    targets: Tensor | None = None,
) -> AttackResult:
    """Floating results on the grid. clean: which images are misclassified; None: nobody asks, nothing is judged.

    left: the labels that the attack led away from, where these are not ``labels``. targets: the classes that it led to.
    What rounding undid of that is mended.
    """
    grid = to_grid(images, moved, eps)
    if clean is None:
        unknown = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        return AttackResult(grid, unknown, unknown, unknown, unknown)
    away = labels if left is None else left
    unrounded = predicted(classifier, moved)
    exact = torch.equal(moved, to_float(grid))
    nearest = unrounded if exact else predicted(classifier, to_float(grid))
    there, still = reached(unrounded, away, targets), reached(nearest, away, targets)
    grid, rounded = rearm(classifier, images, moved, grid, away, eps, there, still, targets)
    if left is not None or targets is not None:
        rounded = predicted(classifier, to_float(grid)) != labels
    return AttackResult(grid, clean, unrounded != labels, nearest != labels, rounded)


def nothing(images: Tensor) -> AttackResult:
    """The result of no images."""
    none = torch.zeros(0, dtype=torch.bool, device=images.device)
    return AttackResult(images[:0], none, none, none, none)


def to_float(images: Tensor) -> Tensor:
    """uint8 images as fp32 in [0, 1]."""
    return images.contiguous().float() / 255.0


def blocks(count: int, size: int) -> list[slice]:
    """The places of so many images, at most ``size`` at a time; none without images."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
