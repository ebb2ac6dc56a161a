"""What every attack has in common: floats inside, the integer grid at the door, and the count of what rounding cost."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..purify import check_eps

BATCH = 32  # images that the classifier always sees at once
BLOCK = 4 * BATCH  # images attacked at once: those that are done make room for others in the classifier's batches

# A perturbation that rounding disarmed is stretched step by step, to at most 9.4 times its length.
STRETCHES = tuple(1.15**k for k in range(1, 17))


class FixedBatch(nn.Module):
    """A classifier that always sees batches of one size, the last one filled up with copies of its first image.

    Libraries choose their convolution by the batch's size, and its rounding can turn a tiny gradient: without this an
    image's attack would depend on how many others are attacked beside it.
    """

    def __init__(self, classifier: nn.Module, size: int = BATCH) -> None:
        super().__init__()
        self.classifier = classifier
        self.size = size
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of floating images (N, C, H, W), N > 0."""
        logits = []
        for part in images.split(self.size):
            missing = self.size - len(part)
            filled = torch.cat((part, part[:1].expand(missing, -1, -1, -1))) if missing else part
            logits.append(self.classifier(filled)[: len(part)])
        return torch.cat(logits)


NO_GRADIENT = (
    "the classifier gives no gradient with respect to its images (a purifier in front of it gives one only with a "
    "backward pass of its own); use an attack that needs none, or attack the classifier behind it"
)


class NoGradient(ValueError):
    """The classifier gives no gradient with respect to its images, which the attack needs."""


def input_gradient(objective: Tensor, x: Tensor, *, keep: bool = False) -> Tensor:
    """The gradient of a scalar with respect to the images that it was computed from. keep: the graph is needed again.

    Raises NoGradient when there is none.
    """
    if objective.requires_grad:
        (gradient,) = torch.autograd.grad(objective, x, retain_graph=keep, allow_unused=True)
        if gradient is not None:
            return gradient
    raise NoGradient(NO_GRADIENT)


def differentiable(logits: Tensor) -> Tensor:
    """The logits themselves; NoGradient where they have none, which other terms of a loss would hide."""
    if not logits.requires_grad:
        raise NoGradient(NO_GRADIENT)
    return logits


def loss_gradient(classifier: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the cross-entropy, summed over the batch so that no image's depends on the batch's size.

    x: floating (N, C, H, W). labels: int64 (N,). Returns a tensor of x's shape.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return input_gradient(F.cross_entropy(classifier(x), labels, reduction="sum"), x)


@torch.no_grad()
def predicted(classifier: nn.Module, x: Tensor) -> Tensor:
    """The classifier's labels (N,) int64 of floating images (N, C, H, W)."""
    return classifier(x).argmax(1)


def image_generators(images: Tensor, seed: int) -> list[np.random.Generator]:
    """A random generator per uint8 image (N, C, H, W), seeded by the image's own values and ``seed``.

    So an image's random numbers are the same in every batch, in every order, and on every device.
    """
    generators = []
    for image in images.cpu().contiguous():
        key = hashlib.blake2b(image.numpy().tobytes(), digest_size=16, key=str(seed).encode()).digest()
        generators.append(np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))))
    return generators


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """Attacked images, and which of them the classifier gets wrong: before the attack, and before and after rounding.

    images: uint8 (N, C, H, W). The rest are bool (N,), true where the classifier's label is not the given one:
    clean: of the images as they came; unrounded: of the attack's floating-point result; nearest: of that result
    rounded to the nearest grid values; rounded: of ``images``, where perturbations that rounding had disarmed were
    stretched until they worked again.
    """

    images: Tensor
    clean: Tensor
    unrounded: Tensor
    nearest: Tensor
    rounded: Tensor

    def rates(self) -> dict[str, float]:
        """The fractions in [0, 1] of images that are misclassified, by stage; NaN without images."""
        return {stage: float(getattr(self, stage).double().mean()) for stage in STAGES}

    def __str__(self) -> str:
        rates = {stage: f"{100 * rate:.1f} %" for stage, rate in self.rates().items()}
        return (
            f"misclassified of {len(self.images)} images: {rates['clean']} before the attack, {rates['unrounded']} "
            f"after it, {rates['nearest']} rounded to the nearest grid values, {rates['rounded']} as returned"
        )


STAGES = tuple(field.name for field in dataclasses.fields(AttackResult))[1:]


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack on a classifier, callable as ``attack(classifier, images, labels, eps)``.

    name: in ``ATTACKS`` and on the command line. perturb: the attack itself, on floats:
    ``perturb(classifier, x, labels, eps, **options)`` takes and gives floating images (N, C, H, W) in [0, 1], with eps
    in [0, 1] too (None where the attack is not bounded). bounded: whether it stays within ±eps. needs_gradient:
    whether the classifier must be differentiable. source: where it was published. on_grid: its results are grid
    values but for rounding errors. random: ``perturb`` also takes ``generators``, one for each image. batch: how many
    images the classifier sees at once. joint: its random numbers are drawn for a batch as a whole, so that a result
    may depend on which images are attacked together.
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
        fixed = FixedBatch(classifier, self.batch)
        results = [_nothing(images)]
        with torch.no_grad(), tqdm(total=len(images), unit="image", disable=progress is not True) as bar:
            for block, given in zip(images.split(BLOCK), _split(labels, images), strict=True):
                results.append(self._block(fixed, block, given, eps, seed, options, judge=judge))
                bar.update(len(block))
                if callable(progress):
                    progress(sum(len(result.images) for result in results))
        return join(results)

    def check_eps(self, eps: int | None) -> int | None:
        """``eps`` as this attack takes it. TypeError or ValueError when it is none."""
        if self.bounded:
            if eps is None:
                raise ValueError(f"{self.name} needs eps, an integer in 0..255")
            return check_eps(eps)
        if eps is not None:
            raise ValueError(f"{self.name} is not bounded: it takes no eps, got {eps!r}")
        return None

    def _block(
        self,
        classifier: FixedBatch,
        images: Tensor,
        labels: Tensor | None,
        eps: int | None,
        seed: int,
        options: dict[str, Any],
        *,
        judge: bool,
    ) -> AttackResult:
        if not len(images):
            return _nothing(images)
        x = images.contiguous().float() / 255.0
        unknown = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        clean = unknown
        if labels is None or judge:
            prediction = predicted(classifier, x)
            labels = prediction if labels is None else labels
            clean = prediction != labels
        if self.random:
            options = {**options, "generators": image_generators(images, seed)}
        elif self.joint:
            options = {**options, "seed": seed}
        moved = self.perturb(classifier, x, labels.long(), None if eps is None else eps / 255.0, **options).detach()
        grid = to_grid(images, moved, eps)
        if not judge:
            return AttackResult(grid, unknown, unknown, unknown, unknown)
        unrounded = predicted(classifier, moved) != labels
        nearest = predicted(classifier, grid.float() / 255.0) != labels
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


def to_grid(images: Tensor, moved: Tensor, eps: int | None) -> Tensor:
    """Floating images in [0, 1] to the nearest uint8 ones within ±eps of the given ones."""
    rounded = (moved.float() * 255.0).round().clamp(0, 255).to(torch.int16)
    if eps is not None:
        given = images.to(torch.int16)
        rounded = torch.minimum(torch.maximum(rounded, given - eps), given + eps)
    return rounded.to(torch.uint8)


def rearm(
    classifier: nn.Module,
    images: Tensor,
    moved: Tensor,
    grid: Tensor,
    labels: Tensor,
    eps: int | None,
    unrounded: Tensor,
    nearest: Tensor,
) -> tuple[Tensor, Tensor]:
    """Where rounding alone made an attack fail, stretch its perturbation until the rounded image is misclassified.

    moved: floating results of the attack on ``images``; grid: the same, rounded. unrounded, nearest: bool (N,), which
    of these are misclassified. Stretched images stay within ±eps and 0..255. Last of all, every changed value is
    rounded away from the given one. Returns the images, those that nothing helped rounded to nearest, and which ones
    are misclassified.
    """
    grid, fooled = grid.clone(), nearest.clone()
    given = images.float() / 255.0
    change = moved - given
    away = (change * 255.0).abs().sub(1e-3).ceil().clamp_min(0.0) * change.sign() / 255.0
    for candidate in (*(change * stretch for stretch in STRETCHES), away):
        disarmed = (unrounded & ~fooled).nonzero()[:, 0]
        if not len(disarmed):
            break
        tried = to_grid(images[disarmed], (given + candidate)[disarmed], eps)
        works = predicted(classifier, tried.float() / 255.0) != labels[disarmed]
        grid[disarmed[works]] = tried[works]
        fooled[disarmed[works]] = True
    return grid, fooled


def join(results: list[AttackResult]) -> AttackResult:
    """The results of consecutive images as one. At least one result."""
    fields = [field.name for field in dataclasses.fields(AttackResult)]
    return AttackResult(*(torch.cat([getattr(result, name) for result in results]) for name in fields))


def _nothing(images: Tensor) -> AttackResult:
    none = torch.zeros(0, dtype=torch.bool, device=images.device)
    return AttackResult(images[:0], none, none, none, none)


def _split(labels: Tensor | None, images: Tensor) -> list[Tensor | None]:
    blocks = -(-len(images) // BLOCK) or 1  # an empty tensor splits into one empty block
    return [None] * blocks if labels is None else list(labels.split(BLOCK))
