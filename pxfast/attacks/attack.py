"""What every attack has in common: floats inside, the integer grid at the door, and the count of what rounding cost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..base.checks import check_eps
from ..base.progress import reporting
from ..defences.defended import Defended
from ..tensors.batches import FIXED_BATCH, in_fixed_batches
from ..tensors.seeds import image_key, image_seeds
from .gradients import predicted
from .meter import LIMITS, Meter
from .result import COSTS, AttackResult, join
from .rounding import rearm, to_grid

BATCH = FIXED_BATCH
BLOCK = 4 * BATCH  # images attacked at once: those that are done make room for others in the classifier's batches


class FixedBatch(nn.Module):
    """A classifier that always sees batches of one size: see :func:`pxfast.tensors.batches.in_fixed_batches`."""

    def __init__(self, classifier: nn.Module, size: int = BATCH) -> None:
        super().__init__()
        self.classifier = classifier
        self.size = size
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of floating images (N, C, H, W), N > 0."""
        return in_fixed_batches(self.classifier, images, self.size)


def fix_batches(classifier: nn.Module, size: int) -> FixedBatch | Defended:
    """The classifier in batches of one size. Its purifiers depend on no batch, and get all images at once."""
    if isinstance(classifier, Defended):
        return Defended(FixedBatch(classifier.classifier, size), classifier.defences, seed=classifier.seed)
    return FixedBatch(classifier, size)


def image_generators(images: Tensor, seed: int) -> list[np.random.Generator]:
    """A random generator per uint8 image (N, C, H, W), seeded by the image's own values and ``seed``.

    So an image's random numbers are the same in every batch, in every order, and on every device.
    """
    return [np.random.Generator(np.random.Philox(key=image_key(image, seed))) for image in images]


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack on a classifier, callable as ``attack(classifier, images, labels, eps)``.

    name: in ``ATTACKS`` and on the command line. perturb: the attack itself, on floats:
    ``perturb(classifier, x, labels, eps, **options)`` takes and gives floating images (N, C, H, W) in [0, 1], with eps
    in [0, 1] too (None where the attack is not bounded). bounded: whether it stays within ±eps. needs_gradient:
    whether the classifier must be differentiable. source: where it was published. on_grid: its results are grid
    values but for rounding errors. random: ``perturb`` also takes ``generators``, one for each image. batch: how many
    images the classifier sees at once. joint: its random numbers are drawn for a batch as a whole, so that a result
    may depend on which images are attacked together. clipped: it looks for its images without a bound, and eps only
    clips what it finds: ``perturb`` need not know of eps, and :meth:`unclipped` with :meth:`clip` gives the results
    for several eps at the price of one. metered: ``perturb`` also takes ``meter``, a :class:`Meter`, and the attack
    the options ``max_queries`` and ``max_gradients``, which it sets. block: how many images are attacked at once.
    """

    name: str
    perturb: Callable[..., Tensor]
    bounded: bool
    needs_gradient: bool
    source: str
    on_grid: bool = False
    random: bool = False
    batch: int = BATCH
    joint: bool = False
    clipped: bool = False
    metered: bool = False
    block: int = BLOCK

    def __call__(
        self,
        classifier: nn.Module,
        images: Tensor,
        labels: Tensor | None,
        eps: int | None = None,
        *,
        seed: int = 0,
        progress: bool | Callable[[int], None] = False,
        **options: Any,
    ) -> Tensor:
        """The attacked images: uint8 (N, C, H, W), as :meth:`run` gives them."""
        return self._run(classifier, images, labels, eps, seed, progress, options, judge=not self.on_grid).images

    def run(
        self,
        classifier: nn.Module,
        images: Tensor,
        labels: Tensor | None,
        eps: int | None = None,
        *,
        seed: int = 0,
        progress: bool | Callable[[int], None] = False,
        **options: Any,
    ) -> AttackResult:
        """Attack images, and say which ones are misclassified before and after rounding.

        classifier: in eval mode, takes floating images (N, C, H, W) in [0, 1], gives logits (N, classes); on the
        images' device. images: uint8 (N, C, H, W). labels: integers (N,), the true ones, by which success is counted;
        None: the classifier's own. eps: 0..255, in steps of the grid; None for attacks that are not bounded.
        seed: of the random numbers. progress: True shows a bar; a function is called with the number of images done.
        options: the attack's own, named in the signature of ``perturb``.

        The images stay on the grid, and within ±eps if the attack is bounded; they are on the given images' device.
        An image's result depends on no other image, unless ``joint``.
        Raises TypeError or ValueError for bad input, NoGradient (a ValueError) for a classifier without a gradient.
        """
        return self._run(classifier, images, labels, eps, seed, progress, options, judge=True)

    def unclipped(
        self,
        classifier: nn.Module,
        images: Tensor,
        labels: Tensor | None,
        *,
        seed: int = 0,
        progress: bool | Callable[[int], None] = False,
        **options: Any,
    ) -> Tensor:
        """What a ``clipped`` attack finds before eps clips it: fp32 (N, C, H, W) in [0, 1], for :meth:`clip`.

        The arguments and errors are those of :meth:`run`; ValueError for an attack that is not ``clipped``.
        """
        check_input(classifier, images, labels)
        self._check_clipped()
        fixed = fix_batches(classifier, self.batch)

        def find(block: Tensor, given: Tensor | None) -> Tensor:
            x = _to_float(block)
            given = predicted(fixed, x) if given is None else given
            return self._perturbed(fixed, block, x, given, None, seed, options).float()

        return torch.cat(
            [
                torch.zeros(0, *images.shape[1:]).to(images.device),
                *_by_block(find, images, labels, self.block, progress),
            ]
        )

    def clip(
        self, classifier: nn.Module, images: Tensor, labels: Tensor | None, found: Tensor, eps: int
    ) -> AttackResult:
        """What :meth:`run` gives with this eps, from what :meth:`unclipped` found for the same images and labels.

        found: fp32 of the images' shape. Raises what :meth:`run` raises, and ValueError for another shape.
        """
        check_input(classifier, images, labels)
        self._check_clipped()
        eps = self.check_eps(eps)
        if found.shape != images.shape or not found.is_floating_point():
            raise ValueError(f"expected floating images {tuple(images.shape)}, got {found.dtype} {tuple(found.shape)}")
        fixed = fix_batches(classifier, self.batch)
        parts = iter(found.split(self.block))

        def settle(block: Tensor, given: Tensor | None) -> AttackResult:
            x = _to_float(block)
            prediction = predicted(fixed, x)
            given = prediction if given is None else given
            return self._settled(fixed, block, x, next(parts), given, prediction != given, eps)

        return join([_nothing(images), *_by_block(settle, images, labels, self.block, False)])

    def _check_clipped(self) -> None:
        if not self.clipped:
            raise ValueError(f"{self.name} is not an attack whose result is clipped: it has to be run for each eps")

    def _run(
        self,
        classifier: nn.Module,
        images: Tensor,
        labels: Tensor | None,
        eps: int | None,
        seed: int,
        progress: bool | Callable[[int], None],
        options: dict[str, Any],
        *,
        judge: bool,
    ) -> AttackResult:
        check_input(classifier, images, labels)
        eps = self.check_eps(eps)
        fixed = fix_batches(classifier, self.batch)

        def attack(block: Tensor, given: Tensor | None) -> AttackResult:
            x = _to_float(block)
            clean = None
            if given is None or judge:
                prediction = predicted(fixed, x)
                given = prediction if given is None else given
                clean = prediction != given if judge else None
            chosen, costs = options, {}
            if self.metered:
                limits = {name: options[name] for name in LIMITS if name in options}
                meter = Meter(image_seeds(x, seed), **limits, progress=progress is True)
                chosen = {**{name: value for name, value in options.items() if name not in limits}, "meter": meter}
                costs = {name: getattr(meter, name) for name in COSTS}
            started = time.perf_counter()
            moved = self._perturbed(fixed, block, x, given, eps, seed, chosen)
            seconds = time.perf_counter() - started
            result = self._settled(fixed, block, x, moved, given, clean, eps)
            return dataclasses.replace(result, **costs, seconds=seconds)

        return join([_nothing(images), *_by_block(attack, images, labels, self.block, progress)])

    def check_eps(self, eps: int | None) -> int | None:
        """``eps`` as this attack takes it. TypeError or ValueError when it is none."""
        if self.bounded:
            if eps is None:
                raise ValueError(f"{self.name} needs eps, an integer in 0..255")
            return check_eps(eps)
        if eps is not None:
            raise ValueError(f"{self.name} is not bounded: it takes no eps, got {eps!r}")
        return None

    def _perturbed(
        self,
        classifier: FixedBatch | Defended,
        images: Tensor,
        x: Tensor,
        labels: Tensor,
        eps: int | None,
        seed: int,
        options: dict[str, Any],
    ) -> Tensor:
        """What ``perturb`` makes of uint8 images, which as floats are x; without a bound if eps is to clip it."""
        if self.random:
            options = {**options, "generators": image_generators(images, seed)}
        elif self.joint:
            options = {**options, "seed": seed}
        bound = None if eps is None or self.clipped else eps / 255.0
        return self.perturb(classifier, x, labels.long(), bound, **options).detach()

    def _settled(
        self,
        classifier: FixedBatch | Defended,
        images: Tensor,
        x: Tensor,
        moved: Tensor,
        labels: Tensor,
        clean: Tensor | None,
        eps: int | None,
    ) -> AttackResult:
        """Floating results on the grid. clean: which images are misclassified; None: nobody asks, nothing is judged."""
        if self.clipped and eps is not None:
            moved = x + (moved - x).clamp(-eps / 255.0, eps / 255.0)
        grid = to_grid(images, moved, eps)
        if clean is None:
            unknown = torch.zeros(len(images), dtype=torch.bool, device=images.device)
            return AttackResult(grid, unknown, unknown, unknown, unknown)
        unrounded = predicted(classifier, moved) != labels
        exact = torch.equal(moved, _to_float(grid))
        nearest = unrounded if exact else predicted(classifier, _to_float(grid)) != labels
        grid, rounded = rearm(classifier, images, moved, grid, labels, eps, unrounded, nearest)
        return AttackResult(grid, clean, unrounded, nearest, rounded)


def check_input(classifier: nn.Module, images: Tensor, labels: Tensor | None) -> None:
    """Raise TypeError or ValueError unless an attack can take these."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        what = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"expected a tensor of uint8 images, got {what}")
    if images.dim() != 4:
        raise ValueError(f"expected images (N, C, H, W), got {tuple(images.shape)}")
    if labels is not None and labels.shape != images.shape[:1]:
        raise ValueError(f"expected labels ({len(images)},), one per image, got {tuple(labels.shape)}")
    if labels is not None and (labels.dtype.is_floating_point or labels.dtype == torch.bool):
        raise TypeError(f"expected integer labels, got {labels.dtype}")
    if classifier.training:
        raise ValueError("the classifier must be in eval mode; in training mode each image depends on its batch")


def _nothing(images: Tensor) -> AttackResult:
    none = torch.zeros(0, dtype=torch.bool, device=images.device)
    return AttackResult(images[:0], none, none, none, none)


def _to_float(images: Tensor) -> Tensor:
    """uint8 images as fp32 in [0, 1]."""
    return images.contiguous().float() / 255.0


Part = TypeVar("Part")


@torch.no_grad()
def _by_block(
    function: Callable[[Tensor, Tensor | None], Part],
    images: Tensor,
    labels: Tensor | None,
    size: int,
    progress: bool | Callable[[int], None],
) -> list[Part]:
    """``function`` of ``size`` images at a time and their labels; none without images."""
    parts, done = [], 0
    with reporting(len(images), progress) as report:
        for start in range(0, len(images), size):
            block = images[start : start + size]
            parts.append(function(block, None if labels is None else labels[start : start + size]))
            done += len(block)
            report(done)
    return parts
