"""One step of a Schedule for a batch: gather the taps from the caches, multiply, finish, write the caches.

A gated residual layer is two of these launches: the first gathers, multiplies, adds the skip connection (more taps of
the same product) and stores the concat-ELU; the second multiplies, gates, adds to the residual and publishes. The same
kernel serves a whole row (vertical stack) and a single pixel (horizontal stack): a row is just more columns.

Memory. ``caches`` is one vector. A cell holds the features of one cache at one position for all images, (images,
channels); the cells of a row stand side by side, with one of zeros at either end. Rows come and go, so where they are
is data: ``entry`` (int32) says it for the row in hand, in units of 16 elements:

    entry[0]     the output's row
    entry[1:4]   column 0 of that row in the caches that receive the concat-ELU, the features, their ELU; -1: none
    entry[4:]    per tap, the cell read by an output in column 0; -1: above the image, hence zeros; and one more

The same arithmetic in the same order is done for every row of the product, whatever is beside it: a result depends
neither on the number of images nor on the number of columns.

A pixel's step whose first taps do not wait for the row's pixels is two: one with these taps, for the whole row, leaves
its sums in ``partial``, fp32 (columns, images, halves * OUTPUTS); the other's sums go on from there.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .functions import UNIT, concat_elu, sigmoid
from .launch import Launch, Tile

HIDDEN = tl.constexpr(0)  # the values of pxfast.engines.schedule.Epilogue
GATE = tl.constexpr(1)
PUBLISH = tl.constexpr(2)
OUTPUT = tl.constexpr(3)
WHOLE, LEAVES, ADDS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # what a step does with partial sums
HEADER, MAX_TAPS = 4, 8  # entries in front of the taps', and of the taps


@triton.jit
def _store_concat_elu(caches, cell, at, n, mask, x, OUTPUTS: tl.constexpr):
    positive, negative = concat_elu(x)
    to = caches + cell.to(tl.int64) * UNIT + at[:, None] * (2 * OUTPUTS) + n[None, :]
    tl.store(to, positive.to(caches.dtype.element_ty), mask=mask)
    tl.store(to + OUTPUTS, negative.to(caches.dtype.element_ty), mask=mask)


@triton.jit(
    do_not_specialize=["taps", "images", "columns", "first", "stride", "input_multiply", "input_shift", "multiplier"]
)
def step_kernel(
    caches,
    entry,
    tiles,  # (halves, blocks of n, taps * rows per tap, BLOCK_N), as pack() makes them
    biases,  # (2, 2, halves, blocks of n, BLOCK_N) fp32: at row > 0, at column > 0
    result,  # fp32: the residuals (columns, images, OUTPUTS); of OUTPUT: the head's parameters (images, OUTPUTS)
    partial,  # fp32: (columns, images, halves * OUTPUTS), of a step that leaves or adds them
    taps,
    images,
    columns,
    first,  # the columns are first, first + stride, ...
    stride,
    input_multiply,  # an output column c reads around c * input_multiply >> input_shift
    input_shift,
    multiplier,
    EPILOGUE: tl.constexpr,
    PARTIAL: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    N_BLOCKS: tl.constexpr = (OUTPUTS + BLOCK_N - 1) // BLOCK_N
    K_BLOCKS: tl.constexpr = (CHANNELS + BLOCK_K - 1) // BLOCK_K  # per tap
    n_block = tl.program_id(0) % N_BLOCKS  # programs that share cells run side by side
    m = (tl.program_id(0) // N_BLOCKS) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = m < columns * images
    place = m // images
    image = m - place * images
    column = first + stride * place
    cell_row = (((column * input_multiply) >> input_shift) * images + image) * CHANNELS
    k = tl.arange(0, BLOCK_K)
    j = tl.arange(0, BLOCK_N)
    depth = taps * K_BLOCKS * BLOCK_K
    tile = tiles + n_block * depth * BLOCK_N + k[:, None] * BLOCK_N + j[None, :]
    half = N_BLOCKS * depth * BLOCK_N
    HALVES: tl.constexpr = 2 if EPILOGUE == GATE else 1
    n = n_block * BLOCK_N + j
    mask = inside[:, None] & (n < OUTPUTS)[None, :]
    at = column * images + image
    sums = partial + at[:, None] * (HALVES * OUTPUTS) + n[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    gate = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if PARTIAL == ADDS:
        total = tl.load(sums, mask=mask, other=0.0)
        if EPILOGUE == GATE:
            gate = tl.load(sums + OUTPUTS, mask=mask, other=0.0)
    offsets = cell_row[:, None] + k[None, :]
    # a tap's cell is read an iteration ahead: a load that waits for another one of its own iteration would halve the
    # depth of the loop's pipeline
    next_cell = tl.load(entry + 4)
    for block in range(0, taps * K_BLOCKS):
        cell = next_cell
        next_cell = tl.load(entry + 4 + (block + 1) // K_BLOCKS)
        channel = (block % K_BLOCKS) * BLOCK_K
        there = (m < tl.where(cell >= 0, columns * images, 0))[:, None]
        if CHANNELS % BLOCK_K != 0:
            there = there & (channel + k < CHANNELS)[None, :]
        values = tl.load(caches + (cell.to(tl.int64) * UNIT + channel) + offsets, mask=there, other=0.0)
        total = tl.dot(values, tl.load(tile), total, input_precision="ieee")
        if EPILOGUE == GATE:
            gate = tl.dot(values, tl.load(tile + half), gate, input_precision="ieee")
        tile += BLOCK_K * BLOCK_N

    row = tl.load(entry)
    WIDTH: tl.constexpr = HALVES * N_BLOCKS * BLOCK_N
    bias = biases + (row > 0).to(tl.int32) * (2 * WIDTH) + n
    later = (column > 0)[:, None]
    x = total * multiplier + tl.where(later, tl.load(bias + WIDTH)[None, :], tl.load(bias)[None, :])
    if PARTIAL == LEAVES:
        tl.store(sums, total, mask=mask)
        if EPILOGUE == GATE:
            tl.store(sums + OUTPUTS, gate, mask=mask)
    elif EPILOGUE == OUTPUT:
        tl.store(result + image[:, None] * OUTPUTS + n[None, :], x, mask=mask)
    elif EPILOGUE == HIDDEN:
        _store_concat_elu(caches, tl.load(entry + 1), at, n, mask, x, OUTPUTS)
    else:
        to = result + at[:, None] * OUTPUTS + n[None, :]
        if EPILOGUE == GATE:
            bias += N_BLOCKS * BLOCK_N
            gate = gate * multiplier + tl.where(later, tl.load(bias + WIDTH)[None, :], tl.load(bias)[None, :])
            x = tl.load(to, mask=mask, other=0.0) + x * sigmoid(gate)
        tl.store(to, x, mask=mask)
        cell = tl.load(entry + 1)
        if cell >= 0:
            _store_concat_elu(caches, cell, at, n, mask, x, OUTPUTS)
        EVEN: tl.constexpr = OUTPUTS + OUTPUTS % 2  # channels of a cache
        place_in_row = at[:, None] * EVEN + n[None, :]
        cell = tl.load(entry + 2)
        if cell >= 0:
            tl.store(caches + cell.to(tl.int64) * UNIT + place_in_row, x.to(caches.dtype.element_ty), mask=mask)
        cell = tl.load(entry + 3)
        if cell >= 0:
            elu, _ = concat_elu(x)
            tl.store(caches + cell.to(tl.int64) * UNIT + place_in_row, elu.to(caches.dtype.element_ty), mask=mask)


@dataclasses.dataclass(frozen=True)
class PackedStep:
    """A step's matrices in the order in which programs read them, and its biases; see ``step_kernel``."""

    epilogue: int
    taps: int
    channels: int
    outputs: int
    multiplier: float
    tiles: Tensor
    biases: Tensor
    tile: Tile


def pack(
    matrices: list[Tensor], biases: Tensor, epilogue: int, multiplier: float, dtype: torch.dtype, tile: Tile
) -> PackedStep:
    """A step's matrices, one (channels, N) a tap, and its biases (2, 2, N) at (row > 0, column > 0), both fp32.

    For GATE, N is twice the outputs: the values and then their gates. ValueError for more than 8 taps.
    """
    if len(matrices) > MAX_TAPS:
        raise ValueError(f"a step has at most {MAX_TAPS} taps, got {len(matrices)}")
    channels, N = matrices[0].shape
    halves = 2 if epilogue == GATE.value else 1
    outputs = N // halves
    n_blocks = triton.cdiv(outputs, tile.block_n)
    padding = n_blocks * tile.block_n - outputs
    stacked = torch.stack(matrices).reshape(len(matrices), channels, halves, outputs)
    stacked = F.pad(stacked, (0, padding, 0, 0, 0, -channels % tile.block_k))
    tiles = stacked.flatten(0, 1).reshape(-1, halves, n_blocks, tile.block_n).permute(1, 2, 0, 3)
    padded = F.pad(biases.reshape(2, 2, halves, outputs), (0, padding))
    return PackedStep(
        epilogue,
        len(matrices),
        channels,
        outputs,
        multiplier,
        tiles.to(dtype).contiguous(),
        padded.float().contiguous(),
        tile,
    )


def step(
    packed: PackedStep,
    caches: Tensor,
    entry: Tensor,
    result: Tensor,
    images: int,
    columns: range,
    input_scale: float = 1,
    *,
    leaves: Tensor | None = None,
    adds: Tensor | None = None,
) -> Launch:
    """The launch of a step over ``columns``, for all images.

    leaves, adds: fp32 (columns of a row, images, N), where it leaves its sums as they are and publishes nothing, or
    those that it goes on from.

    caches: fp32 or bf16, the dtype of the packed matrices. entry: int32 (16,); see above. result: fp32, the
    stream's residuals (columns of a row, images, outputs), or the head's parameters (images, outputs). images: a
    multiple of 16. input_scale: 2 for a strided step, 0.5 for a transposed one.
    """
    tile = packed.tile
    partial, kind = result, WHOLE
    if leaves is not None:
        partial, kind = leaves, LEAVES
    elif adds is not None:
        partial, kind = adds, ADDS
    grid = triton.cdiv(len(columns) * images, tile.block_m) * triton.cdiv(packed.outputs, tile.block_n)
    return Launch(
        step_kernel,
        (grid,),
        {
            "caches": caches,
            "entry": entry,
            "tiles": packed.tiles,
            "biases": packed.biases,
            "result": result,
            "partial": partial,
            "taps": packed.taps,
            "images": images,
            "columns": len(columns),
            "first": columns.start,
            "stride": columns.step,
            "input_multiply": 2 if input_scale == 2 else 1,
            "input_shift": 1 if input_scale == 0.5 else 0,
            "multiplier": packed.multiplier,
        },
        {
            "EPILOGUE": packed.epilogue,
            "PARTIAL": kind.value,
            "CHANNELS": packed.channels,
            "OUTPUTS": packed.outputs,
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "BLOCK_K": tile.block_k,
        },
        tile.num_warps,
        tile.num_stages,
    )


def step_twin(
    matrices: list[Tensor],
    biases: Tensor,
    epilogue: int,
    multiplier: float,
    caches: Tensor,
    entry: Tensor,
    result: Tensor,
    images: int,
    columns: range,
    input_scale: float = 1,
) -> None:
    """What :func:`step` does, in plain torch, with the matrices and biases as :func:`pack` takes them."""
    channels = matrices[0].shape[0]
    row, *published = entry[:HEADER].tolist()

    def cell(start: int, width: int) -> Tensor:  # a view: (images, width)
        return caches[start : start + images * width].view(images, width)

    for column in columns:
        total = torch.zeros(images, matrices[0].shape[1])
        for matrix, place in zip(matrices, entry[HEADER : HEADER + len(matrices)].tolist(), strict=True):
            if place >= 0:
                start = place * UNIT.value + int(column * input_scale) * images * channels
                total += cell(start, channels).float() @ matrix
        x = total * multiplier + biases[int(row > 0), int(column > 0)]
        if epilogue == OUTPUT.value:
            result[:] = x
            continue
        if epilogue != HIDDEN.value:
            x = result[column] + F.glu(x, dim=1) if epilogue == GATE.value else x
            result[column] = x
        for place, values in zip(published, (F.elu(torch.cat((x, -x), 1)), x, F.elu(x)), strict=True):
            if place >= 0:
                width = values.shape[1] + values.shape[1] % 2
                cell(place * UNIT.value + column * images * width, width)[:, : values.shape[1]] = values
