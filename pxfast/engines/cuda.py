"""The CUDA engine: the decode loop of csrc/cuda on one NVIDIA GPU, a launch for every row of a batch.

All device memory comes from torch's allocator; the compiled part is given addresses and torch's current stream.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..base import environment
from . import compiled
from .choosers import Chooser, Ranges, Sample
from .gpu import free_bytes, gpu_problem
from .schedule import Schedule
from .settings import DEFAULTS, DecodeSettings

MEMORY_SHARE = 0.9  # of the free device memory that a decode may take
IMAGES_PER_MULTIPROCESSOR = 64  # in flight at most: more would not read the weights less often


def unavailable() -> str | None:
    """Why the engine can't run on torch's current CUDA device, or None when it can."""
    if compiled.unavailable() is not None:
        return compiled.unavailable()
    if not compiled._C.cuda:
        return "this installation has no CUDA part; build it where nvcc is installed, with `pip install .`"
    if gpu_problem() is not None:
        return gpu_problem()
    if torch.version.cuda is None:
        return "torch was not built for CUDA"
    return _problem(torch.cuda.current_device())


@functools.cache
def _problem(device: int) -> str | None:
    problem: str | None = compiled._C.cuda_problem(device)
    return problem


@functools.cache
def _gpu(device: int) -> Any:
    """What planning must know of a device, a ``pxfast._C.CudaDevice``. Asking the driver takes a millisecond."""
    return compiled._C.cuda_device(device)


def best_precision(settings: DecodeSettings = DEFAULTS) -> str:
    """The faster precision: 'bf16'."""
    return "bf16"


@dataclasses.dataclass(frozen=True)
class Resident:
    """A schedule's program on a device: ``engine`` is a ``pxfast._C.CudaEngine``, ``block`` its weights there."""

    engine: Any
    block: Tensor


def packed(schedule: Schedule, precision: str, device: torch.device, settings: DecodeSettings = DEFAULTS) -> Resident:
    """The schedule's program on ``device``, weights packed for its matrix instruction; made once for each of these."""
    bf16 = precision == "bf16"
    wgmma = environment.cuda_wgmma() if settings.wgmma is None else settings.wgmma
    groups = bf16 and wgmma and _gpu(device.index).groups
    key = ("cuda", precision, groups, str(device))
    with schedule.lock:
        if key not in schedule.compiled:
            engine = compiled._C.CudaEngine(compiled.program_of(schedule), bf16, groups)
            packed = torch.from_numpy(engine.block())
            schedule.compiled[key] = Resident(engine, _allocate(len(packed), device, "the weights").copy_(packed))
        resident = schedule.compiled[key]
    assert isinstance(resident, Resident)
    return resident


class NoRoom(torch.OutOfMemoryError):
    """The device does not give what this engine asks for."""


def _allocate(count: int, device: torch.device, purpose: str) -> Tensor:
    """Bytes on a device. :class:`NoRoom` says how many were asked for, and what for."""
    try:
        return torch.empty(count, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        raise NoRoom(f"the CUDA engine asked {device} for {count / 1e6:.1f} MB for {purpose}: {error}") from error


def chunks(images: int, bytes_per_image: int, free_bytes: int, multiprocessors: int, plannable: int) -> list[int]:
    """How many images are decoded at a time: as few parts as memory and the GPU's size allow, of nearly one size.

    plannable: the most images that there is a plan for.
    """
    fits = int(MEMORY_SHARE * free_bytes) // bytes_per_image
    most = max(1, min(fits, IMAGES_PER_MULTIPROCESSOR * multiprocessors, plannable))
    parts = -(-images // most)
    return [images * (part + 1) // parts - images * part // parts for part in range(parts)]


@torch.no_grad()
def decode(
    schedule: Schedule,
    images: Tensor,
    chooser: Chooser,
    *,
    precision: str,
    settings: DecodeSettings = DEFAULTS,
    report: Callable[[int], None] | None = None,
) -> Tensor:
    """See :class:`pxfast.engines.Decode`; images may be on a GPU as well; the result is where they are.

    The work is ordered in torch's current stream and finished on return. The GIL is released; Ctrl-C is honoured
    between rows. torch.OutOfMemoryError when the device has no room for one image.
    """
    device = images.device if images.is_cuda else torch.device("cuda", torch.cuda.current_device())
    with torch.cuda.device(device):
        resident = packed(schedule, precision, device, settings)
        given = images.to(device).contiguous()
        result = torch.empty_like(given)
        lower, upper = (bound.to(device).contiguous() for bound in chooser.ranges(given))
        plain = compiled.plain_chooser(chooser)
        gpu = _gpu(device.index)
        bytes_per_image = resident.engine.bytes_per_image(speculative=True)
        plannable = resident.engine.most_images(gpu, *_teams(settings))
        sizes = chunks(len(images), bytes_per_image, free_bytes(device), gpu.multiprocessors, plannable)

        def decode_part(done: int, count: int) -> None:
            if isinstance(chooser, Sample):
                plain["first"] = chooser.first + done
            part = slice(done, done + count)
            ranges = lower[part], upper[part]
            _decode_part(resident, gpu, given[part], result[part], ranges, plain, settings, report, done)

        in_parts(sizes, decode_part)
    return result.to(images.device)


def in_parts(sizes: list[int], decode_part: Callable[[int, int], None]) -> None:
    """Decode parts of these sizes one after the other, and halve those that there is no room for.

    Teams are given memory for equal numbers of images, which may be nearly twice as many as there are, and free memory
    may lie in pieces. decode_part: takes the images before a part and those in it. Raises :class:`NoRoom` where there
    is none for a single image.
    """
    waiting, done = list(sizes), 0
    while waiting:
        count = waiting.pop(0)
        try:
            decode_part(done, count)
        except NoRoom:
            if count == 1:
                raise
            waiting[:0] = [count - count // 2, count // 2]
        else:
            done += count


def _teams(settings: DecodeSettings) -> tuple[int, bool]:
    """Blocks of a team, 0 for the engine's choice, and whether teams are clusters."""
    clusters = environment.cuda_clusters() if settings.clusters is None else settings.clusters
    return settings.team or environment.cuda_team() or 0, clusters


def _decode_part(
    resident: Resident,
    gpu: Any,
    given: Tensor,
    result: Tensor,
    ranges: Ranges,
    plain: dict[str, Any],
    settings: DecodeSettings,
    report: Callable[[int], None] | None,
    before: int,
) -> None:
    """Decode images that are in flight together. gpu: a CudaDevice; before: images of the batch finished already."""
    engine, device = resident.engine, given.device
    plan = engine.plan(len(given), gpu, compiled.order_of(settings), *_teams(settings))
    workspace = _allocate(engine.workspace_bytes(plan), device, f"{len(given)} images in flight")
    engine.decode(
        plan,
        device.index,
        torch.cuda.current_stream(device).cuda_stream,
        resident.block.data_ptr(),
        workspace.data_ptr(),
        given.data_ptr(),
        result.data_ptr(),
        len(given),
        *(bound.data_ptr() for bound in ranges),
        plain,
        None if report is None else lambda finished: report(before + finished),
    )
