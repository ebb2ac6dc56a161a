"""Schedule: a PixelCNN flattened to a list of steps over named caches, which is what every engine runs.

A step computes the features of one layer at one position from a few cells (*taps*) of the caches of earlier layers,
and writes what later steps will read: concat-ELU of the features, the features themselves, or both. The vertical
stream's steps run once per row, for the whole row; the horizontal stream's once per pixel. Steps of level l run only
where row and column are multiples of 2^l. This is the incremental evaluation of Ramachandran et al. (2017): every
step is computed exactly once per position, and only the last one to three rows of each layer are kept.

About half of a pixel step's products do not wait for the row's pixels: those with cells of the rows before, and with
the vertical stream. These *early* taps stand first in the order of summation, so that an engine may sum them for the
whole row at once, and let each pixel go on from there: the same additions in the same order.
"""

from __future__ import annotations

import dataclasses
import enum
import weakref

import torch
from torch import Tensor

from ..base.forks import ThreadLock
from ..pixelcnn.network import NUM_LEVELS, GatedResnet, PixelCNN, PixelCNNConfig, WeightNormConv
from ..pixelcnn.oracle import frozen

ANY = -1


class Scale(enum.IntEnum):
    """Where a step reads: at its own position, at twice it (strided), or at half of it (transposed)."""

    SAME = 0
    DOWN = 1
    UP = 2


class Epilogue(enum.IntEnum):
    """What a step does with its sum."""

    HIDDEN = 0  # concat-ELU into a cache: the inside of a gated layer
    GATE = 1  # residual += a * sigmoid(b), then publish the residual
    PUBLISH = 2  # the sum is the new residual; publish it
    OUTPUT = 3  # the head's parameters


@dataclasses.dataclass
class Cache:
    """Features of one kind at one level; ``rows`` of them are kept. ``channels`` is even."""

    level: int
    channels: int
    rows: int = 1


@dataclasses.dataclass(frozen=True)
class Tap:
    """A cell of a cache, relative to the (scaled) output position, times a matrix (channels, outputs).

    row_parity, column_parity: the tap exists only for outputs of that parity (transposed convolutions); ANY: always.
    """

    cache: int
    row: int
    column: int
    matrix: Tensor
    row_parity: int = ANY
    column_parity: int = ANY


@dataclasses.dataclass(frozen=True)
class Bias:
    """Added from row ``min_row`` and column ``min_column`` on: the shifted input streams see zeros before."""

    values: Tensor
    min_row: int = 0
    min_column: int = 0


@dataclasses.dataclass
class Step:
    """One layer at one position: epilogue(multiplier * sum over taps of matrix' cell + biases).

    concat_elu, raw, elu: the caches that receive the concat-ELU, the features, and the ELU of the result (None: none).
    early: of a pixel step, how many of the first taps read only what is known when the row's vertical stream is done.
    """

    level: int
    per_row: bool
    epilogue: Epilogue
    taps: list[Tap]
    biases: list[Bias]
    scale: Scale = Scale.SAME
    multiplier: float = 1.0
    concat_elu: int | None = None
    raw: int | None = None
    elu: int | None = None
    early: int = 0

    @property
    def outputs(self) -> int:
        return self.biases[0].values.numel()


def _of_an_earlier_row(tap: Tap, scale: Scale) -> bool:
    """Whether a cell of the horizontal stream lies in a row of the image before the one that is being decoded.

    A coarse row that an odd row is upsampled from belongs to the even row before it.
    """
    return tap.row < 0 or (scale == Scale.UP and tap.row_parity == 1)


class Schedule:
    """A model, frozen for decoding. Make one with :func:`schedule_for`, which keeps it for the model's lifetime.

    ``caches`` and ``steps`` are in fp32; an engine packs them as it likes and keeps the result in ``compiled``.
    ``input_cache`` holds the pixels as 2v - 255, an odd integer that bf16 represents exactly, and 255 for the channel
    of ones; the steps that read it multiply their sum by 1/255.
    """

    def __init__(self, model: PixelCNN) -> None:
        network = frozen(model)
        self.config: PixelCNNConfig = model.config
        self._network: weakref.ref[PixelCNN] = weakref.ref(network)
        # a frozen copy is its own model, which keeps this: they would keep each other for ever
        self._kept: PixelCNN | None = None if network is model else network
        self.caches: list[Cache] = []
        self.steps: list[Step] = []
        self.compiled: dict[object, object] = {}
        self.lock: ThreadLock = ThreadLock()
        for name, values in network.stored_tensors(torch.float32).items():
            if not values.isfinite().all():  # what an engine would make of it is no image
                raise ValueError(f"the model's {name} has values that are not finite")
        self.input_cache: int = self._cache(0, self.config.channels + 1)
        _Flattener(self).run()

    @property
    def model(self) -> PixelCNN:
        """The model's frozen copy. ReferenceError where that was the model and nobody has it any more."""
        network = self._network()
        if network is None:
            raise ReferenceError("the model that this schedule was made of is gone")
        return network

    def _cache(self, level: int, channels: int) -> int:
        self.caches.append(Cache(level, channels + channels % 2))
        return len(self.caches) - 1


class _Flattener:
    """Walks the network in the order of its forward pass and writes down the steps."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.model = schedule.model
        self.filters = schedule.config.filters

    def run(self) -> None:
        model = self.model
        vertical, horizontal = self._input_steps()
        skips = [(vertical, horizontal)]
        level = 0
        for level, pairs in enumerate(model.down):
            if level > 0:
                resize = model.downsample[level - 1]
                vertical = self._resize(resize.vertical, vertical, level, Scale.DOWN)
                horizontal = self._resize(resize.horizontal, horizontal, level, Scale.DOWN)
                skips.append((vertical, horizontal))
            for pair in pairs:
                vertical = self._gated(pair.vertical, vertical, [])
                horizontal = self._gated(pair.horizontal, horizontal, [vertical])
                skips.append((vertical, horizontal))
        vertical, horizontal = skips.pop()
        for step, pairs in enumerate(model.up):
            if step > 0:
                resize = model.upsample[step - 1]
                level = NUM_LEVELS - 1 - step
                vertical = self._resize(resize.vertical, vertical, level, Scale.UP)
                horizontal = self._resize(resize.horizontal, horizontal, level, Scale.UP)
            for pair in pairs:
                skip_vertical, skip_horizontal = skips.pop()
                vertical = self._gated(pair.vertical, vertical, [skip_vertical])
                horizontal = self._gated(pair.horizontal, horizontal, [vertical, skip_horizontal])
        self._output(horizontal)
        self._early_first()

    def _early_first(self) -> None:
        """Put the taps of every pixel step that do not wait for pixels before the others."""
        vertical = {cache for s in self.schedule.steps if s.per_row for cache in (s.concat_elu, s.raw, s.elu)}
        for step in self.schedule.steps:
            if not step.per_row:
                early = [tap.cache in vertical or _of_an_earlier_row(tap, step.scale) for tap in step.taps]
                step.early = sum(early)
                step.taps = [step.taps[i] for i in sorted(range(len(early)), key=lambda i: not early[i])]

    # A stream's features after a layer are known by the step that publishes them; what it publishes is added when a
    # later step asks for it.

    def _publish(self, step: Step, kind: str) -> int:
        """The cache in which ``step`` publishes its result as 'concat_elu', 'raw' or 'elu'."""
        cache: int | None = getattr(step, kind)
        if cache is None:
            width = 2 * self.filters if kind == "concat_elu" else self.filters
            cache = self.schedule._cache(step.level, width)
            setattr(step, kind, cache)
        return cache

    def _add(self, step: Step) -> Step:
        self.schedule.steps.append(step)
        for tap in step.taps:
            cache = self.schedule.caches[tap.cache]
            cache.rows = max(cache.rows, 1 - tap.row)
        return step

    def _matrix(self, matrix: Tensor, cache: int) -> Tensor:
        """(in, out), contiguous, with zero rows for the cache's padding."""
        missing = self.schedule.caches[cache].channels - matrix.shape[0]
        return torch.nn.functional.pad(matrix, (0, 0, 0, missing)).contiguous()

    def _convolution_taps(self, convolution: WeightNormConv, cache: int, row: int = 0, column: int = 0) -> list[Tap]:
        """The taps of a plain or strided convolution whose window is moved by (row, column)."""
        weight = convolution.weight()
        kh, kw = convolution.kernel
        left = (kw - 1) // 2 if convolution.centred else kw - 1
        return [
            Tap(cache, row + y - (kh - 1), column + x - left, self._matrix(weight[:, :, y, x].T, cache))
            for y in range(kh)
            for x in range(kw)
        ]

    def _input_steps(self) -> tuple[Step, Step]:
        model, pixels = self.model, self.schedule.input_cache
        # down- and right-shifted: the first row and column see zeros, not the bias of a convolution over zeros
        vertical = Step(
            0,
            True,
            Epilogue.PUBLISH,
            self._convolution_taps(model.input_vertical, pixels, row=-1),
            [Bias(model.input_vertical.b, min_row=1)],
            multiplier=1.0 / 255.0,
        )
        horizontal = Step(
            0,
            False,
            Epilogue.PUBLISH,
            self._convolution_taps(model.input_above, pixels, row=-1)
            + self._convolution_taps(model.input_left, pixels, column=-1),
            [Bias(model.input_above.b, min_row=1), Bias(model.input_left.b, min_column=1)],
            multiplier=1.0 / 255.0,
        )
        return self._add(vertical), self._add(horizontal)

    def _gated(self, layer: GatedResnet, source: Step, auxiliary: list[Step]) -> Step:
        taps = self._convolution_taps(layer.conv_in, self._publish(source, "concat_elu"))
        biases = [Bias(layer.conv_in.b)]
        if layer.skip is not None:
            # the 1x1 convolution of concat_elu([first, second, ...]) = elu([first, second, ..., -first, -second, ...])
            weight = layer.skip.weight()[:, :, 0, 0].T
            signs = weight.reshape(2, len(auxiliary), self.filters, -1)
            for i, step in enumerate(auxiliary):
                cache = self._publish(step, "concat_elu")
                taps.append(Tap(cache, 0, 0, self._matrix(signs[:, i].flatten(0, 1), cache)))
            biases = [Bias(layer.conv_in.b + layer.skip.b)]
        hidden = Step(source.level, source.per_row, Epilogue.HIDDEN, taps, biases)
        hidden.concat_elu = self.schedule._cache(source.level, 2 * self.filters)
        self._add(hidden)
        taps = self._convolution_taps(layer.conv_out, hidden.concat_elu)
        return self._add(Step(source.level, source.per_row, Epilogue.GATE, taps, [Bias(layer.conv_out.b)]))

    def _resize(self, convolution: WeightNormConv, source: Step, level: int, scale: Scale) -> Step:
        cache = self._publish(source, "raw")
        if scale == Scale.DOWN:
            taps = self._convolution_taps(convolution, cache)
        else:
            taps = self._transposed_taps(convolution, cache)
        return self._add(Step(level, source.per_row, Epilogue.PUBLISH, taps, [Bias(convolution.b)], scale))

    def _transposed_taps(self, convolution: WeightNormConv, cache: int) -> list[Tap]:
        """Output (r, c) reads inputs (r // 2, (c + crop - x) / 2) through kernel cell (r % 2, x)."""
        weight = convolution.weight()  # (in, out, kh, kw)
        kh, kw = convolution.kernel
        crop = (kw - 1) // 2 if convolution.centred else 0
        taps = []
        for y in range(kh):
            for x in range(kw):
                parity = (x - crop) % 2
                taps.append(Tap(cache, 0, (parity + crop - x) // 2, self._matrix(weight[:, :, y, x], cache), y, parity))
        return taps

    def _output(self, source: Step) -> None:
        model = self.model
        cache = self._publish(source, "elu")
        taps = self._convolution_taps(model.output, cache)
        self._add(Step(0, False, Epilogue.OUTPUT, taps, [Bias(model.output.b)]))


_schedules: weakref.WeakKeyDictionary[PixelCNN, Schedule] = weakref.WeakKeyDictionary()
_lock = ThreadLock()


def schedule_for(model: PixelCNN) -> Schedule:
    """The model's schedule, made once and made anew when its weights have changed since."""
    network = frozen(model)
    with _lock:
        kept = _schedules.get(model)
    if kept is not None and kept.model is network:
        return kept
    made = Schedule(model)  # not under the lock, for which decodes of other models would wait
    with _lock:
        kept = _schedules.get(model)
        if kept is None or kept.model is not network:  # no other thread was faster
            kept = _schedules[model] = made
        return kept
