"""The triton engine: the decode loop over the kernels of ``pxfast.kernels``, for GPUs without the compiled CUDA part.

The launches of a row are captured in a CUDA graph per row phase and replayed for every row, so that Python runs once
per row and not once per launch. In Triton's interpreter (TRITON_INTERPRET=1, CPU tensors) the same launches run one by
one, which is for the tests: ``unavailable`` then says so, and nothing picks the engine.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..base.forks import ThreadLock
from .choosers import Chooser, Ranges, Sample
from .gpu import free_bytes, gpu_problem
from .schedule import Schedule
from .settings import DEFAULTS, DecodeSettings

if TYPE_CHECKING:
    from .triton_program import ChooserShape, Program, Workspace

MOST_IMAGES = 1024  # in flight
MOST_PLACES = 1 << 31  # of cells in the caches, which tables say in 32 bits
INTERPRET = ("1", "true", "on")  # values of TRITON_INTERPRET that mean yes to Triton
ROWS_AHEAD = 2  # rows of work queued on the device: what Ctrl-C has to wait for

_capture = ThreadLock()  # one thread at a time captures or compiles


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def unavailable() -> str | None:
    """Why the engine can't run here, or None when it can."""
    if not _installed():
        return "triton is not installed"
    wish = os.environ.get("TRITON_INTERPRET", "")
    if wish.lower() in INTERPRET:
        return f"kernels are interpreted (TRITON_INTERPRET={wish}), which is for tests"
    if gpu_problem() is not None:
        return gpu_problem()
    if not torch.version.hip and torch.cuda.get_device_capability() < (8, 0):
        return f"it needs compute capability 8.0, and {torch.cuda.get_device_name()} is older"
    return None


def best_precision(settings: DecodeSettings = DEFAULTS) -> str:
    """The faster precision: 'bf16'."""
    return "bf16"


class Decoder:
    """A program with the workspaces that its decodes use: one per decode at a time, kept for the next."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.idle: list[Runner] = []
        self.lock: ThreadLock = ThreadLock()

    def images_for(self, N: int) -> int:
        """Images in flight when N are decoded: as many as needed, by powers of two, and as memory and limit allow."""
        from .triton_program import GROUP, UNIT

        most = MOST_IMAGES
        while most > GROUP and most * self.program.elements_per_image // UNIT >= MOST_PLACES:
            most //= 2
        if self.program.device.type == "cuda":
            with self.lock:  # what waits for its next decode counts as free, or each would find room for fewer
                idle = sum(runner.workspace.images for runner in self.idle)
            free = free_bytes(self.program.device) + idle * self.program.bytes_per_image
            while most > GROUP and most * self.program.bytes_per_image > free // 2:
                most //= 2
        images = GROUP
        while images < min(N, most):
            images *= 2
        return images

    def take(self, N: int) -> Runner:
        images = self.images_for(N)
        with self.lock:
            idle, self.idle = self.idle, []  # in one: a signal's handler may take one in between
            fitting = next((runner for runner in idle if runner.workspace.images == images), None)
            if fitting is not None:
                self.idle += [runner for runner in idle if runner is not fitting]
                return fitting
            # those of another size are forgotten: make room
        return Runner(self.program, images)

    def give_back(self, runner: Runner) -> None:
        with self.lock:
            self.idle.append(runner)


class Runner:
    """A workspace and the ways to run its launches: graphs on a GPU, one by one in the interpreter."""

    def __init__(self, program: Program, images: int) -> None:
        from .triton_program import Workspace

        self.program = program
        self.on_gpu: bool = program.device.type == "cuda"
        self.stream: Any = torch.cuda.Stream(program.device) if self.on_gpu else None
        with self.current():
            self.workspace: Workspace = Workspace(program, images)
        self.graphs: dict[ChooserShape, dict[int, Any]] = {}

    def current(self) -> Any:
        """The context in which all work of this runner is enqueued."""
        return torch.cuda.stream(self.stream)

    def follow_caller(self) -> None:
        """Let this runner's work come after what is enqueued on the current stream: images, packed weights."""
        if self.on_gpu:
            self.stream.wait_stream(torch.cuda.current_stream(self.program.device))

    def row_functions(self, shape: ChooserShape) -> dict[int, Callable[[], None]]:
        """By row phase, what enqueues the launches of a row."""
        from .triton_program import PHASES

        if self.on_gpu:
            if shape not in self.graphs:
                if _capture.mine:
                    raise RuntimeError("a signal's handler can't decode on the GPU while its thread captures a graph")
                with _capture:
                    self.graphs[shape] = {phase: self._graph(phase, shape) for phase in sorted(set(PHASES))}
            return {phase: graph.replay for phase, graph in self.graphs[shape].items()}

        def run(phase: int) -> None:
            for launch in self.workspace.launches(phase, shape):
                launch.run()

        return {phase: functools.partial(run, phase) for phase in set(PHASES)}

    def _graph(self, phase: int, shape: ChooserShape) -> Any:
        launches = self.workspace.launches(phase, shape)
        self.workspace.show_row(phase)
        for launch in {launch.shape_class: launch for launch in launches}.values():
            launch.run()  # compiles and loads it, which can't happen in a capture; what it writes is written anew
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            for launch in launches:
                launch.run()
        return graph

    def decode(self, images: Tensor, ranges: Ranges, shape: ChooserShape, progress: Callable[[float], None]) -> Tensor:
        """The decoded images, on the CPU; progress is told the fraction done after every row."""
        from .triton_program import PHASES

        space, H = self.workspace, images.shape[2]
        functions = self.row_functions(shape)
        for place, values in zip((space.given, space.lower, space.upper), (images, *ranges), strict=True):
            place.zero_()
            place[: len(images)].copy_(values)
        queued: list[Any] = []
        for row in range(H):
            space.show_row(row)
            functions[PHASES[row % 4]]()
            if self.on_gpu:
                queued.append(self.stream.record_event())
                if len(queued) > ROWS_AHEAD:
                    queued.pop(0).synchronize()
            progress((row + 1) / H)
        return space.result[: len(images)].to("cpu", copy=True)  # the next images will be written over it


def decoder_for(schedule: Schedule, precision: str) -> Decoder:
    """The schedule's decoder on the current GPU, or in the interpreter; made once per device, precision and tiles."""
    from ..kernels.launch import INTERPRETED
    from ..kernels.tiles import architecture, tiles_for
    from .triton_program import Program

    if INTERPRETED and precision != "fp32":
        raise RuntimeError(f"Triton's interpreter multiplies {precision} wrongly; only fp32 can be decoded in it")
    device = torch.device("cpu") if INTERPRETED else torch.device("cuda", torch.cuda.current_device())
    tiles = tiles_for(architecture())
    key = ("triton", precision, device, tuple(sorted(tiles.items())))
    with schedule.lock:
        if key not in schedule.compiled:
            schedule.compiled[key] = Decoder(Program(schedule, precision, device, tiles))
        decoder = schedule.compiled[key]
    assert isinstance(decoder, Decoder)
    return decoder


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
    """See :class:`pxfast.engines.Decode`; the result is on the CPU. Images on a GPU are decoded there.

    Ctrl-C is honoured between rows.
    """
    with torch.cuda.device(images.device if images.is_cuda else -1):
        return _decode(schedule, images, chooser, precision, report)


def _decode(
    schedule: Schedule, images: Tensor, chooser: Chooser, precision: str, report: Callable[[int], None] | None
) -> Tensor:
    """``decode`` on the current GPU."""
    from ..kernels.choose import values_for
    from .triton_program import ChooserShape

    decoder = decoder_for(schedule, precision)
    lower, upper = chooser.ranges(images)
    sample = isinstance(chooser, Sample)
    shape = ChooserShape(sample, values=256 if sample else values_for(int((upper - lower).max()) + 1))
    results: list[Tensor] = []
    runner = decoder.take(len(images))
    runner.follow_caller()
    try:
        with runner.current():
            done = 0
            for part in images.split(runner.workspace.images):
                _set_chooser(runner.workspace, chooser, done)

                def progress(fraction: float, before: int = done, count: int = len(part)) -> None:
                    if report is not None:
                        report(before + int(fraction * count))

                some = slice(done, done + len(part))
                results.append(runner.decode(part, (lower[some], upper[some]), shape, progress))
                done += len(part)
    finally:
        if runner.stream is not None:
            runner.stream.synchronize()
        decoder.give_back(runner)
    return torch.cat(results)


def _set_chooser(workspace: Workspace, chooser: Chooser, before: int) -> None:
    """Put a chooser's numbers where the kernel reads them; ``before``: images of the batch decoded already."""
    if isinstance(chooser, Sample):
        settings, seed, first = [2.0, 1.0 / chooser.temperature], chooser.seed, chooser.first + before
    else:
        settings = [2.0 if chooser.keep_bits is None else 2.0**-chooser.keep_bits, 1.0]
        seed = first = 0
    workspace.settings.copy_(torch.tensor(settings))
    signed = [(value + 2**63) % 2**64 - 2**63 for value in (seed, first)]  # 64 bits, as int64 has them
    workspace.generator.copy_(torch.tensor(signed))
