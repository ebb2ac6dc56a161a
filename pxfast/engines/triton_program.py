"""A Schedule as launches of the Triton kernels, and the memory they work on.

What changes from row to row is data (the table of entries, see kernels/step.py); what changes with the parity of the
row is which steps run at all. So the launches of a row are fixed per *row phase*, row % 4, and can be captured in a
CUDA graph each; phases 1 and 3 are the same.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..kernels.choose import choose
from ..kernels.launch import Launch, Tile
from ..kernels.step import HEADER, MAX_TAPS, PackedStep, pack, step
from ..pixelcnn.network import PixelCNNConfig
from .schedule import ANY, Epilogue, Scale, Schedule, Step, Tap

PHASES = (0, 1, 2, 1)  # by row % 4: the row whose launches serve
SLOT = 16  # entries of a launch in the table, so that every launch's begin at a multiple of 16 bytes
UNIT = 16  # elements, in which places are counted
GROUP = 16  # images are decoded in multiples of it: then every cell begins at a multiple of 16 elements
INPUT_SCALE: dict[Scale, float] = {Scale.SAME: 1, Scale.DOWN: 2, Scale.UP: 0.5}
EARLY = -2  # in the place of a column's parity: the sums over a step's early taps
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class ChooserShape:
    """What of a chooser is compiled into the kernel; the rest is data. values: see ``kernels.choose.choose``."""

    sample: bool
    values: int


@dataclasses.dataclass(frozen=True)
class Variant:
    """A step for outputs in rows of one parity and columns of one parity (ANY: of both)."""

    taps: list[Tap]
    packed: PackedStep


def _is_divided(s: Step, precision: str) -> bool:
    """Whether a step's early taps are summed for a whole row.

    Not where rows or columns differ in their taps; in fp32 not of gates, whose sums are twice as many, so that an image
    in flight stays below 8 MB.
    """
    if s.per_row or (precision == "fp32" and s.epilogue == Epilogue.GATE):
        return False
    return 0 < s.early < len(s.taps) and all(tap.row_parity == tap.column_parity == ANY for tap in s.taps)


class Program:
    """A schedule's packed weights on a device, and where everything lies."""

    def __init__(self, schedule: Schedule, precision: str, device: torch.device, tiles: dict[str, Tile]) -> None:
        self.schedule = schedule
        self.config: PixelCNNConfig = schedule.config
        self.device = device
        self.dtype: torch.dtype = DTYPES[precision]
        head = schedule.model.head
        self.head_features: int = head.features
        self.tables: Tensor = getattr(head, "tables", torch.zeros(1)).detach().float().contiguous().to(device)
        W = self.config.image_size[1]
        self.offsets: list[int] = []  # of every cache: elements per image before it
        total = 0
        for cache in schedule.caches:
            self.offsets.append(total)
            total += cache.rows * ((W >> cache.level) + 2) * cache.channels
        self.elements_per_image = total
        self.variants: list[dict[tuple[int, int], Variant]] = [
            self._variants(s, precision, tiles) for s in schedule.steps
        ]
        # of the pixels' steps whose early taps are summed for a whole row
        self.early: dict[int, Variant] = {
            i: self._variant_of(s, s.taps[: s.early], precision, "row", tiles)
            for i, s in enumerate(schedule.steps)
            if _is_divided(s, precision)
        }
        self.slots: dict[tuple[int, int], int] = {}  # of every step and parity of the column: its place in the table
        for i, variants in enumerate(self.variants):
            for _, column_parity in variants:
                self.slots.setdefault((i, column_parity), len(self.slots))
        for i in self.early:
            self.slots[i, EARLY] = len(self.slots)

    @property
    def bytes_per_image(self) -> int:
        """Of a workspace."""
        W, F = self.config.image_size[1], self.config.filters
        residuals = 2 * sum(W >> level for level in range(3)) * F
        steps = self.schedule.steps
        residuals += sum((W >> steps[i].level) * steps[i].outputs for i in self.early)
        images = 4 * self.config.channels * self.config.image_size[0] * W  # given, decoded, and the ranges' ends
        item = torch.finfo(self.dtype).bits // 8
        return self.elements_per_image * item + 4 * (residuals + self.head_features) + images

    def _variants(self, s: Step, precision: str, tiles: dict[str, Tile]) -> dict[tuple[int, int], Variant]:
        """By the parities of row and column for a step whose taps depend on them, else one at (ANY, ANY)."""
        where = "row" if s.per_row else "pixel"
        if _is_divided(s, precision):
            return {(ANY, ANY): self._variant_of(s, s.taps[s.early :], precision, where, tiles)}
        rows = sorted({tap.row_parity for tap in s.taps})
        columns = sorted({tap.column_parity for tap in s.taps})
        found = {}
        for row in rows:
            for column in columns:
                taps = [tap for tap in s.taps if tap.row_parity in (ANY, row) and tap.column_parity in (ANY, column)]
                found[row, column] = self._variant_of(s, taps, precision, where, tiles)
        return found

    def _variant_of(self, s: Step, taps: list[Tap], precision: str, where: str, tiles: dict[str, Tile]) -> Variant:
        """A step with some of its taps. where: 'row' or 'pixel', whose tiles it takes."""
        biases = torch.zeros(2, 2, s.outputs)
        for bias in s.biases:
            if not {bias.min_row, bias.min_column} <= {0, 1}:
                raise NotImplementedError(f"a bias from row {bias.min_row}, column {bias.min_column} on")
            biases[bias.min_row :, bias.min_column :] += bias.values
        tile = tiles[f"{precision} {where}{' gate' if s.epilogue == Epilogue.GATE else ''}"]
        matrices = [tap.matrix.to(self.device) for tap in taps]
        return Variant(taps, pack(matrices, biases.to(self.device), int(s.epilogue), s.multiplier, self.dtype, tile))

    def place(self, cache: int, row: int, column: int, images: int) -> int:
        """Where a cell begins in the caches of so many images, counted in ``UNIT``. Columns -1 and W are zeros."""
        kept = self.schedule.caches[cache]
        width = (self.config.image_size[1] >> kept.level) + 2
        cell = (row % kept.rows) * width + column + 1
        return (self.offsets[cache] + cell * kept.channels) * images // UNIT

    def table(self, images: int) -> Tensor:
        """The entries of every row: int32 (H, (slots + 1) * SLOT); the last slot is that of the choice."""
        H = self.config.image_size[0]
        table = torch.full((H, len(self.slots) + 1, SLOT), -1, dtype=torch.int32)
        for row in range(H):
            for (i, column_parity), slot in self.slots.items():
                s = self.schedule.steps[i]
                if row % (1 << s.level) == 0:
                    entry = self._entry(s, self._variant(i, row, column_parity), row >> s.level, images)
                    table[row, slot, : len(entry)] = torch.tensor(entry, dtype=torch.int32)
            table[row, -1, 0] = row
            table[row, -1, 1] = self.place(self.schedule.input_cache, row, 0, images)
        return table.flatten(1)

    def _variant(self, i: int, row: int, column_parity: int) -> Variant:
        """The variant of step i for an image's row."""
        if column_parity == EARLY:
            return self.early[i]
        variants, level = self.variants[i], self.schedule.steps[i].level
        return variants.get((ANY, column_parity)) or variants[row >> level & 1, column_parity]

    def _entry(self, s: Step, variant: Variant, row: int, images: int) -> list[int]:
        entry = [row]
        for cache in (s.concat_elu, s.raw, s.elu):
            entry.append(-1 if cache is None else self.place(cache, row, 0, images))
        first = {Scale.SAME: row, Scale.DOWN: 2 * row, Scale.UP: row >> 1}[s.scale]
        for tap in variant.taps:
            above = first + tap.row < 0
            entry.append(-1 if above else self.place(tap.cache, first + tap.row, tap.column, images))
        assert len(entry) <= HEADER + MAX_TAPS
        return entry


class Workspace:
    """The memory of so many images in flight (a multiple of ``GROUP``), and the launches on it."""

    def __init__(self, program: Program, images: int) -> None:
        self.program = program
        self.images = images
        config, device = program.config, program.device
        H, W = config.image_size
        self.caches: Tensor = torch.zeros(program.elements_per_image * images, dtype=program.dtype, device=device)
        self.residuals: dict[tuple[bool, int], Tensor] = {
            (per_row, level): torch.zeros(W >> level, images, config.filters, device=device)
            for per_row in (False, True)
            for level in range(3)
        }
        steps = program.schedule.steps
        self.partial: dict[int, Tensor] = {  # of the divided steps
            i: torch.zeros(W >> steps[i].level, images, steps[i].outputs, device=device) for i in program.early
        }
        self.parameters: Tensor = torch.zeros(images, program.head_features, device=device)
        self.given: Tensor = torch.zeros(images, config.channels, H, W, dtype=torch.uint8, device=device)
        self.result: Tensor = torch.zeros_like(self.given)
        self.lower: Tensor = torch.zeros_like(self.given)
        self.upper: Tensor = torch.zeros_like(self.given)
        self.settings: Tensor = torch.zeros(2, device=device)
        self.generator: Tensor = torch.zeros(2, dtype=torch.int64, device=device)
        self.table: Tensor = program.table(images).to(device)
        self.entry: Tensor = self.table[0].clone()

    def show_row(self, row: int) -> None:
        """Make the launches work on this row."""
        self.entry.copy_(self.table[row])

    def launches(self, phase: int, chooser: ChooserShape) -> list[Launch]:
        """Everything done in a row of this phase, in order: the vertical stack, what the pixels' steps need of the row
        but no pixel, then pixel by pixel the horizontal stack.
        """
        found: list[Launch] = []
        W = self.program.config.image_size[1]
        self._add_steps(found, phase, True, range(W), chooser)
        for i in self.program.early:
            level = self.program.schedule.steps[i].level
            if phase % (1 << level) == 0:
                found.append(self._step(i, phase, EARLY, range(W >> level)))
        for column in range(W):
            self._add_steps(found, phase, False, range(column, column + 1), chooser)
        return found

    def launches_of(self, *, per_row: bool, gated: bool) -> list[Launch]:
        """A launch of every step of one of the kinds that have tiles of their own (``kernels.tiles``), in phase 0."""
        found = []
        for i, s in enumerate(self.program.schedule.steps):
            if s.per_row != per_row or (s.epilogue == Epilogue.GATE) != gated:
                continue
            width = self.program.config.image_size[1] >> s.level
            for parity in sorted({column for _, column in self.program.variants[i]}):
                first, stride = (0, 1) if parity == ANY else (parity, 2)
                columns = range(first, width, stride) if per_row else range(first, first + 1)
                found.append(self._step(i, 0, parity, columns))
        return found

    def _add_steps(self, found: list[Launch], phase: int, per_row: bool, columns: range, chooser: ChooserShape) -> None:
        program = self.program
        for i, s in enumerate(program.schedule.steps):
            stride = 1 << s.level
            if s.per_row != per_row or phase % stride or (not per_row and columns.start % stride):
                continue
            width = program.config.image_size[1] >> s.level
            own = range(width) if per_row else range(columns.start >> s.level, (columns.start >> s.level) + 1)
            for parity in sorted({column for _, column in program.variants[i]}):
                some = own
                if parity != ANY:
                    some = range(parity, width, 2) if per_row else own
                    if some.start % 2 != parity:
                        continue
                found.append(self._step(i, phase, parity, some))
            if s.epilogue == Epilogue.OUTPUT:
                found.append(self._choose(columns.start, chooser))

    def _step(self, i: int, phase: int, column_parity: int, columns: range) -> Launch:
        program, s = self.program, self.program.schedule.steps[i]
        slot = SLOT * program.slots[i, column_parity]
        return step(
            program._variant(i, phase, column_parity).packed,
            self.caches,
            self.entry[slot : slot + SLOT],
            self.parameters if s.epilogue == Epilogue.OUTPUT else self.residuals[s.per_row, s.level],
            self.images,
            columns,
            INPUT_SCALE[s.scale],
            leaves=self.partial[i] if column_parity == EARLY else None,
            adds=self.partial[i] if column_parity != EARLY and i in program.early else None,
        )

    def _choose(self, column: int, chooser: ChooserShape) -> Launch:
        config = self.program.config
        interpreted = self.caches.device.type == "cpu"
        return choose(
            self.parameters,
            self.given,
            self.result,
            self.caches,
            self.entry[-SLOT:],
            self.program.tables,
            self.lower,
            self.upper,
            self.settings,
            self.generator,
            column=column,
            head=config.head,
            mixtures=config.mixtures,
            sample=chooser.sample,
            values=chooser.values,
            block=GROUP if interpreted else 1,
        )
