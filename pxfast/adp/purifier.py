"""Adaptive denoising purification, ADP (Yoon, Hwang and Lee, ICML 2021): noise, then a few steps along a score.

The constants are those of the authors' code. Two things of it are not reproduced. They undo a mapping of the grid to
[0, 1] after every step that they make only once, which raises the contrast by up to 3.6 % in ten steps. And where the
score grows along itself their step size is a negative number that is clamped to the smallest step, which ends the run;
here it is the largest. The shipped networks, which have seen clamped noise, have scores that grow in noise of 0.25, so
that nothing of it would ever be removed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..base.checks import check_between, check_flag, check_number, check_progress, check_seed, check_seeds, is_number
from ..base.progress import reporting
from ..data.images import ImagesT, as_kind_of, check_range, clipped, plain, to_grid
from ..tensors.ambient import in_plain_torch
from ..tensors.batches import FIXED_BATCH, EqualBatches, in_fixed_batches
from ..tensors.copies import Copies
from ..tensors.floating import fp32_convolutions
from ..tensors.opaque import Opaque
from ..tensors.seeds import image_seeds, standard_normal
from ..tensors.straight_through import check_backward, with_backward
from ..tensors.values import refuse_tracing
from .files import SHIPPED, Scorer
from .score_network import ScoreNetwork

SIGMA = 0.25
STEPS = 10
RUNS = 10
PROBE = 1e-3  # a step along the score, to see how the score changes
STEP_SCALE = 0.05  # times PROBE: the step where the score keeps nothing of its direction
SMALLEST_STEP, LARGEST_STEP = 1e-5, 0.1
STOPPING_STEP = 1e-3  # an image is done when its step is this small
_copies: Copies[ScoreNetwork] = Copies()  # of score networks in other types and places
_equal_batches = EqualBatches()  # of score networks

CPU_BATCH = 8  # images that the network sees at once; on a GPU FIXED_BATCH


def step_sizes(score: Tensor, ahead: Tensor) -> Tensor:
    """The adaptive step a (N,) of each image: 5e-5 / (1 - z) between 1e-5 and 0.1, z = <s(x), s(x')> / <s(x), s(x)>.

    score: s(x), (N, C, H, W). ahead: s(x') for x' = x + 1e-3 s(x). Long where the score changes little along itself,
    short where it shrinks: near a mode. Where it grows (z >= 1), 0.1; the authors' code has 1e-5 there. Where it is 0,
    NaN.
    """
    dims = (1, 2, 3)
    size = score.square().sum(dims)
    nothing = size == 0.0
    # what is left out below is divided by 1: of a division by 0 autograd would give NaN, though nothing goes back
    shrinks = 1.0 - (score * ahead).sum(dims) / size.masked_fill(nothing, 1.0)
    grows = shrinks <= 0.0
    steps = (STEP_SCALE * PROBE / shrinks.masked_fill(grows, 1.0)).clamp(SMALLEST_STEP, LARGEST_STEP)
    return steps.masked_fill(grows, LARGEST_STEP).masked_fill(nothing, torch.nan)


def descend(noisy: Tensor, score: Callable[[Tensor], Tensor], steps: int = STEPS) -> Tensor:
    """At most ``steps`` steps x + a s(x), clamped to [0, 1]; an image stays where its step a would be 1e-3 or less.

    noisy: floating (N, C, H, W) in [0, 1]. score: gives s of such images. Differentiable where ``score`` is, the step
    sizes included; which images have stopped is not.
    """
    x = noisy
    going = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for _ in range(steps):
        direction = score(x)
        a = step_sizes(direction, score(x + PROBE * direction))
        going = going & (a > STOPPING_STEP)
        if not going.any():
            break
        a = a.masked_fill(~going, 0.0)  # of an image whose score is 0 it is NaN, which would go back as one
        moved = (x + a[:, None, None, None] * direction).clamp(0.0, 1.0)
        x = torch.where(going[:, None, None, None], moved, x)
    return x


class ADPPurifier(Opaque):
    """ADP as a module to put in front of a classifier: noise, then at most ``steps`` steps along a score network.

    sigma: the noise's deviation on images in [0, 1]; 0.25 and 0.1 are the paper's. The noisy image is clamped to
    [0, 1]. Then x becomes x + a s(x), with the step size a that :func:`step_sizes` gives, at most ``steps`` times and
    until a is 1e-3 or less (:func:`descend`). runs: over how many runs, each with noise of its own, a defended
    classifier (:class:`pxfast.defences.Defended`) averages its logits. model: a ScoreNetwork, a shipped one's name, the
    path of a file, or None for the shipped one of the images' shape. seed: of the noise, with the image itself, an
    integer in 0..2^63 - 1: an image's result is the same in every batch. clip, progress: as :func:`pxfast.purify`
    takes them.

    torch.compile takes it as one operator, unless ``backward`` is 'full'.

    backward: 'straight-through' (the identity's gradient, so that gradient attacks are BPDA), 'error' (asking for one
    raises RuntimeError), or 'full': that of the noise and all steps, for which the memory of two evaluations a step is
    kept. The score network is no submodule: ``to``, ``half``, ``train`` and ``parameters`` leave it alone. It runs in
    fp32 (fp64 for such images) on the images' device; 1e-3 of a score is too little for bf16.

    After the authors' code, but for two things: that undoes its mapping of the grid to [0, 1] after every step, and
    ends a run where the score grows along itself, since the step size is negative there. It can also average over the
    steps of a run, which is not done here.
    Raises TypeError or ValueError for bad settings.
    """

    stochastic = True
    model: ScoreNetwork | None

    if TYPE_CHECKING:

        def __call__(self, images: ImagesT) -> ImagesT: ...

    def __init__(
        self,
        sigma: float = SIGMA,
        *,
        steps: int = STEPS,
        runs: int = RUNS,
        model: Scorer | None = None,
        backward: str = "straight-through",
        seed: int = 0,
        clip: bool = False,
        progress: bool | Callable[[int], None] = False,
    ) -> None:
        super().__init__()
        hint = "; it is the noise's deviation on images in [0, 1], not in steps of the 0..255 grid"
        if is_number(sigma) and 2.0 <= sigma <= 255.0:
            hint += f": for {sigma:g} of these write {sigma:g} / 255"
        self.sigma: float = check_number("sigma", sigma, 0.0, 1.0, hint=hint)
        self.steps: int = check_between("steps", steps, 0, 10_000)
        self.runs: int = check_between("runs", runs, 1, 10_000)
        self.backward: str = check_backward(backward, "full")
        self.seed: int = check_seed(seed)
        self.clip: bool = check_flag("clip", clip)
        self.progress: bool | Callable[[int], None] = check_progress(progress)
        object.__setattr__(self, "model", SHIPPED.resolve(model))  # which may take a while: last

    def forward(self, images: ImagesT) -> ImagesT:
        """One run. Images (N, C, H, W) or (C, H, W), of the types that ``purify`` takes; the same form comes back.

        Floating tensors are taken as they are and give a gradient; uint8 and NumPy images are rounded to the grid. The
        noise depends on ``seed`` and on each image's own values.
        """
        if torch.compiler.is_compiling() and isinstance(images, Tensor) and self.backward != "full":
            return self._as_operator(images, None, self.backward)
        return self._forward(images)

    def _forward(self, images: ImagesT) -> ImagesT:
        if isinstance(images, Tensor) and images.is_floating_point() and images.dim() in (3, 4):
            given = plain(images)
            batch = clipped(given if given.dim() == 4 else given[None], self.clip)
            return as_kind_of(images, self._draw(batch, image_seeds(batch, self.seed)).view_as(given))
        grid, form = to_grid(images, keep_device=True, clip=self.clip)
        return form.images(self.purify_grid(grid))

    @in_plain_torch
    @torch.no_grad()
    def purify_grid(self, grid: Tensor) -> Tensor:
        """One run over uint8 images (N, C, H, W), rounded to uint8."""
        x = grid.float() / 255.0
        return (self._draw(x, image_seeds(x, self.seed)) * 255.0).round().to(torch.uint8)

    def draw(self, images: Tensor, seeds: Sequence[int] | Tensor) -> Tensor:
        """One run over floating images (N, C, H, W) in [0, 1], in their dtype; image i's noise is by ``seeds[i]``.

        seeds: integers in 0..2^63 - 1, or the same as int64 (N,). The gradient is what ``backward`` says. Raises
        ValueError or TypeError for other images, or another number of seeds.
        """
        if torch.compiler.is_compiling() and self.backward != "full":
            return self._as_operator(images, torch.as_tensor(seeds), self.backward)
        return self._draw(images, seeds.tolist() if isinstance(seeds, Tensor) else seeds)

    @in_plain_torch
    def _draw(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        if self.backward == "full":
            return self.differentiate(images, seeds)
        with torch.no_grad():
            purified = self._run(images, seeds)
        return with_backward(images, purified, self.backward)

    @torch.no_grad()
    def _purified(self, images: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """:meth:`draw`, or :meth:`forward`, without a gradient: see :class:`pxfast.tensors.opaque.Opaque`."""
        # not these themselves: while another thread compiles, they would call the operator, which calls this
        return self._forward(images) if seeds is None else self._draw(images, seeds)

    @in_plain_torch
    def differentiate(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """What ``draw`` gives for these images and seeds, with the gradient of the noise's clamp and of all steps."""
        return self._run(images, seeds)

    @in_plain_torch
    @torch.no_grad()
    def log_prob_gradient(self, images: Tensor) -> Tensor:
        """s(x) of floating images (N, C, H, W): sigma times the score, for whatever sigma of noise the network sees.

        Without a gradient.
        """
        self._check(images)
        if not len(images):
            return images.clone()
        wide = images.to(torch.promote_types(images.dtype, torch.float32))
        network = self._network(wide)
        with fp32_convolutions():
            return in_fixed_batches(network, wide, *self._batches(network, wide)).to(images.dtype)

    def hidden_networks(self, image_shape: tuple[int, ...]) -> list[nn.Module]:
        """The score network for images of shape ``image_shape`` = (C, H, W), which is no submodule."""
        return [SHIPPED.for_images(self.model, image_shape)]

    def extra_repr(self) -> str:
        model = "by image shape" if self.model is None else self.model.config
        backward = "" if self.backward == "straight-through" else f"backward={self.backward!r}, "
        return f"sigma={self.sigma}, steps={self.steps}, runs={self.runs}, {backward}seed={self.seed}, model={model}"

    def _run(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        self._check(images)
        seeds = check_seeds(seeds, len(images))
        if not len(images):
            return images.clone()
        images = clipped(images, self.clip)
        check_range(images)
        wide = images.to(torch.promote_types(images.dtype, torch.float32))
        noisy = (wide + self.sigma * standard_normal(seeds, wide)).clamp(0.0, 1.0)
        network, finished = self._network(wide), 0
        with reporting(len(images), self.progress) as report, fp32_convolutions():

            def run(part: Tensor) -> Tensor:
                nonlocal finished
                purified = descend(part, network, self.steps)
                finished = min(finished + len(part), len(images))
                report(finished)
                return purified

            return in_fixed_batches(run, noisy, *self._batches(network, wide)).to(images.dtype)

    @staticmethod
    def _check(images: Tensor) -> None:
        if not isinstance(images, Tensor) or not images.is_floating_point():
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"expected a tensor of floating images in [0, 1], got {kind}")
        if images.dim() != 4:
            raise ValueError(f"expected images (N, C, H, W), got {tuple(images.shape)}")
        refuse_tracing()

    @staticmethod
    def _batches(network: ScoreNetwork, images: Tensor) -> tuple[int, Callable[[int], int] | None]:
        """How many images the network sees at once, and how many are enough for fewer; see ``in_fixed_batches``."""
        if images.device.type != "cpu":  # where a full batch takes hardly longer than a small one
            return FIXED_BATCH, None
        if torch.is_grad_enabled() and images.requires_grad:  # the trial is of values, not of gradients
            return CPU_BATCH, None
        return CPU_BATCH, lambda count: _equal_batches.enough(network, count, CPU_BATCH, images)

    def _network(self, like: Tensor) -> ScoreNetwork:
        """The score network for images such as these, in their dtype and on their device."""
        network = SHIPPED.for_images(self.model, like.shape[1:])
        weight = next(network.parameters())
        if (weight.device, weight.dtype) == (like.device, like.dtype):
            return network
        return _copies.get(network, like.dtype, like.device)
