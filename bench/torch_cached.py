"""The yardstick for the GPU engines: the same cached decoding in plain PyTorch, its kernels replayed from CUDA graphs.

What a good engineer writes in a day: every layer once per position, the taps of a convolution gathered into one matrix
product, the vertical stream a row at a time, the head over the values in range only. A row's kernels are captured once
per row phase (which levels have work in it) and replayed for every such row: Python runs once a row. On the CPU, where
the tests check it, the same functions run without graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pxfast.engines.schedule import ANY, Epilogue, Scale, Schedule, Step
from pxfast.pixelcnn.heads import MIN_LOG_SCALE

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TorchDecoder:
    """Greedy decoding of ``count`` images at a time, logistic head.

    caches: per cache (rows + 1, W + 2, N, channels); the current row stands first, the row above it second, and so on;
    zeros lie at both sides.
    """

    def __init__(self, schedule: Schedule, count: int, eps: int, precision: str, device: torch.device | str) -> None:
        if schedule.config.head != "logistic":
            raise ValueError(f"the baseline has the logistic head only, not {schedule.config.head}")
        self.schedule, self.config, self.count, self.eps = schedule, schedule.config, count, eps
        self.device, self.dtype = torch.device(device), DTYPES[precision]
        W = self.config.image_size[1]
        self.caches = [
            torch.zeros(cache.rows, (W >> cache.level) + 2, count, cache.channels, dtype=self.dtype, device=device)
            for cache in schedule.caches
        ]
        self.residuals = {
            (per_row, level): torch.zeros((W >> level) if per_row else 1, count, self.config.filters, device=device)
            for per_row in (True, False)
            for level in range(3)
        }
        self.biases = [[bias.values.to(device) for bias in step.biases] for step in schedule.steps]
        self.weights: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        self.given = torch.zeros(count, self.config.channels, W, dtype=torch.uint8, device=device)  # one row
        self.chosen = torch.zeros_like(self.given)
        self.offsets = torch.arange(-eps, eps + 1, device=device)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    # --- steps ---

    def taps(self, step: Step, row: int, column: int) -> list[int]:
        """The taps that exist at a position; rows above the image don't."""
        at = {Scale.SAME: row, Scale.DOWN: 2 * row, Scale.UP: row // 2}[step.scale]
        return [
            i
            for i, tap in enumerate(step.taps)
            if at + tap.row >= 0 and tap.row_parity in (ANY, row % 2) and tap.column_parity in (ANY, column % 2)
        ]

    def weight(self, index: int, step: Step, taps: list[int]) -> Tensor:
        """The taps' matrices, one below the other: (K, outputs)."""
        key = (index, tuple(taps))
        if key not in self.weights:
            stacked = torch.cat([step.taps[i].matrix for i in taps])
            self.weights[key] = stacked.to(self.device, self.dtype)
        return self.weights[key]

    def run_step(self, index: int, step: Step, row: int, first: int, columns: int, stride: int = 1) -> None:
        """One step for ``columns`` columns of its level, ``stride`` apart."""
        taps = self.taps(step, row, first)
        shape = (columns, self.count)
        where = slice(first, first + (columns - 1) * stride + 1, stride)
        if taps:
            start = {Scale.SAME: first, Scale.DOWN: 2 * first, Scale.UP: first // 2}[step.scale]
            hop = 2 if step.scale == Scale.DOWN else 1
            cells = []
            for i in taps:
                tap = step.taps[i]
                begin = start + tap.column + 1
                cells.append(self.caches[tap.cache][-tap.row, begin : begin + (columns - 1) * hop + 1 : hop])
            product = torch.cat(cells, dim=-1).flatten(0, 1) @ self.weight(index, step, taps)
            total = product.float().reshape(*shape, -1) * step.multiplier
        else:
            total = torch.zeros(*shape, step.outputs, device=self.device)
        for bias, values in zip(step.biases, self.biases[index], strict=True):
            if row >= bias.min_row and first >= bias.min_column:  # only pixel steps have the latter
                total += values
        residual = self.residuals[step.per_row, step.level]
        part = where if step.per_row else slice(0, 1)
        if step.epilogue == Epilogue.OUTPUT:
            self.parameters = total[0]
            return
        if step.epilogue == Epilogue.HIDDEN:
            result = total
        elif step.epilogue == Epilogue.GATE:
            a, b = total.chunk(2, dim=-1)
            residual[part] += a * torch.sigmoid(b)
            result = residual[part]
        else:
            residual[part] = total
            result = total
        for cache, value in (
            (step.concat_elu, lambda x: F.elu(torch.cat((x, -x), dim=-1))),
            (step.raw, lambda x: x),
            (step.elu, F.elu),
        ):
            if cache is not None:
                found = value(result)
                self.caches[cache][0, where.start + 1 : where.stop + 1 : stride, :, : found.shape[-1]] = found

    def run_stream(self, per_row: bool, row: int, column: int) -> None:
        """Every step of a stream that has work at a row, or at a pixel."""
        W = self.config.image_size[1]
        for index, step in enumerate(self.schedule.steps):
            size = 1 << step.level
            if step.per_row != per_row or row % size or (not per_row and column % size):
                continue
            if not per_row:
                self.run_step(index, step, row // size, column // size, 1)
            elif step.scale == Scale.UP:
                for parity in range(2):
                    self.run_step(index, step, row // size, parity, W // size // 2, 2)
            else:
                self.run_step(index, step, row // size, 0, W // size)

    # --- pixels ---

    def choose(self, column: int) -> None:
        """Algorithm 1 at a pixel, for all images; what is chosen goes to ``chosen`` and to the network's input."""
        C, K = self.config.channels, self.config.mixtures
        parameters = self.parameters
        log_weights = parameters[:, :K]
        per_channel = parameters[:, K:].reshape(self.count, C, -1)
        earlier: list[Tensor] = []
        for c in range(C):
            mean = per_channel[:, c, :K]
            for i, value in enumerate(earlier):
                coefficient = per_channel[:, i + c - 1, 2 * K :]  # of G: 0; of B: 1 and 2
                mean = mean + torch.tanh(coefficient) * value[:, None]
            inverse_scale = torch.exp(-per_channel[:, c, K : 2 * K].clamp(min=MIN_LOG_SCALE))
            values = self.given[:, c, column, None].int() + self.offsets
            inside = (values >= 0) & (values <= 255)
            values = values.clamp(0, 255).unsqueeze(1)  # (N, 1, 2 eps + 1)
            lower = inverse_scale[..., None] * ((values - 128) / 128.0 - mean[..., None])
            width = inverse_scale[..., None] / 128.0
            below, above = F.logsigmoid(lower + width), F.logsigmoid(-lower)
            within = below + above + torch.log(-torch.expm1(-width))
            mass = torch.where(values == 0, below, torch.where(values == 255, above, within))
            score = torch.logsumexp(log_weights[..., None] + mass, dim=1).masked_fill(~inside, -math.inf)
            best = values[:, 0].gather(1, score.argmax(dim=1, keepdim=True))[:, 0]
            self.chosen[:, c, column] = best.to(torch.uint8)
            earlier.append((best - 127.5) / 127.5)
        cell = self.caches[self.schedule.input_cache][0, column + 1]
        cell[:, :C] = (2 * self.chosen[:, :, column].int() - 255).to(self.dtype)
        cell[:, C] = 255.0

    def run_row(self, row: int) -> None:
        """All of a row; the same kernels for all rows of one phase."""
        for cache, description in zip(self.caches, self.schedule.caches, strict=True):
            if row % (1 << description.level) == 0 and len(cache) > 1:
                cache[1:] = cache[:-1].clone()
        self.run_stream(True, row, 0)
        for column in range(self.config.image_size[1]):
            self.run_stream(False, row, column)
            self.choose(column)

    # --- batches ---

    def phase(self, row: int) -> int:
        """Rows of one phase run the same kernels: those of the coarsest levels, and the first ones, differ."""
        return row if row < 4 else 4 + row % 4

    def capture(self) -> None:
        """Record the kernels of every phase. Leaves the caches as some rows left them: :meth:`decode` clears them."""
        stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(stream):
            for row in range(min(8, self.config.image_size[0])):  # a capture may hold no first use
                self.run_row(row)
        stream.synchronize()
        for row in range(min(8, self.config.image_size[0])):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.run_row(row)
            self.graphs[self.phase(row)] = graph

    @torch.no_grad()
    def decode(self, images: Tensor) -> Tensor:
        """images: (count, C, H, W) uint8 on the device; a new tensor of that shape."""
        for tensor in (*self.caches, *self.residuals.values()):
            tensor.zero_()
        result = torch.empty_like(images)
        run: Callable[[int], None] = self.run_row
        if self.device.type == "cuda":
            if not self.graphs:
                self.capture()
                for tensor in (*self.caches, *self.residuals.values()):
                    tensor.zero_()
            run = lambda row: self.graphs[self.phase(row)].replay()  # noqa: E731
        for row in range(images.shape[2]):
            self.given.copy_(images[:, :, row])
            run(row)
            result[:, :, row] = self.chosen
        return result
