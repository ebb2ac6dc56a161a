"""The decode engines: one interface, and one place that picks among them.

An engine walks the sub-pixels of a batch in raster and channel order and puts into each the value that a *chooser*
picks from the model's 256-way distribution, given everything decoded before it.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ..base.checks import check_text
from ..kernels import trust
from . import cpu, cuda, reference, triton
from .choosers import Chooser
from .schedule import Schedule
from .settings import DecodeSettings


class Decode(Protocol):
    """What an engine does.

    images: (N, C, H, W) uint8, contiguous, N >= 1, on the CPU or, for an engine of a GPU, there; a Sample chooser takes
    the shape alone. precision: 'fp32' or 'bf16'. settings: threads, order and the like. report: called now and then
    with the number of images finished so far. Returns a new uint8 tensor of the same shape.
    """

    def __call__(
        self,
        schedule: Schedule,
        images: Tensor,
        chooser: Chooser,
        *,
        precision: str,
        settings: DecodeSettings = ...,
        report: Callable[[int], None] | None = None,
    ) -> Tensor: ...


class BestPrecision(Protocol):
    """An engine's fastest precision here, 'fp32' or 'bf16', under the same settings as the decode."""

    def __call__(self, settings: DecodeSettings = ...) -> str: ...


@dataclasses.dataclass(frozen=True)
class Engine:
    """An entry of the registry. ``unavailable()`` says why the engine can't run here, or None when it can.

    gpu: whether it runs on a GPU.
    """

    name: str
    summary: str
    decode: Decode
    unavailable: Callable[[], str | None]
    best_precision: BestPrecision
    gpu: bool = False


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("cuda", "C++/CUDA, cached", cuda.decode, cuda.unavailable, cuda.best_precision, gpu=True),
        Engine("triton", "Triton, cached", triton.decode, triton.unavailable, triton.best_precision, gpu=True),
        Engine("cpu", "C++, cached, multi-threaded", cpu.decode, cpu.unavailable, cpu.best_precision),
        Engine("reference", "plain torch, uncached, slow", reference.decode, lambda: None, reference.best_precision),
    )
}


@dataclasses.dataclass(frozen=True)
class EngineInfo:
    """An engine on this machine: what :func:`list_engines` says of it.

    name: as ``engine=`` takes it. summary: a few words. gpu: whether it runs on a GPU. usable: whether it can run here.
    reason: why it can't, or None. precision: 'fp32' or 'bf16', the one that precision='auto' takes; None where it can't
    run. trial: what the trial of its kernels on this GPU found wrong, or None. auto: whether engine='auto' picks it.
    """

    name: str
    summary: str
    gpu: bool
    usable: bool
    reason: str | None
    precision: str | None
    trial: str | None
    auto: bool


def list_engines() -> list[EngineInfo]:
    """All engines, in the order in which 'auto' looks at them.

    The kernels of a GPU that were never tried are tried now, which may take minutes, as engine='auto' does.
    """
    picked, found = select("auto"), []
    for engine in ENGINES.values():
        reason = engine.unavailable()
        usable = reason is None
        precision = engine.best_precision() if usable else None
        trial = trust.problem(engine.name) if engine.gpu and usable else None
        found.append(
            EngineInfo(engine.name, engine.summary, engine.gpu, usable, reason, precision, trial, engine is picked)
        )
    return found


def check_engine(name: str) -> str:
    """``name`` itself. TypeError unless a text; ValueError for an unknown one lists the known ones."""
    if check_text("engine", name) != "auto" and name not in ENGINES:
        raise ValueError(f"unknown engine {name!r}; known: auto, {', '.join(ENGINES)}")
    return name


def select(name: str = "auto", *, gpu: bool | None = None, device: torch.device | None = None) -> Engine:
    """The engine called ``name``; 'auto' takes the first of the registry that can run here and, on a GPU, passed its
    trial (:mod:`pxfast.kernels.trust`), which is held now if it never was. Passing over one that failed it, or over the
    CPU engine, is a RuntimeWarning.

    gpu: True, an engine of a GPU is wanted; False, one of the CPU; None, any. device: where the images are; if that is
    a GPU, it is the one that counts, and otherwise torch's current one is. TypeError unless ``name`` is a text.
    ValueError for an unknown name lists the known ones, and so does it for one that runs elsewhere; RuntimeError for an
    engine that can't run here says why.
    """
    check_engine(name)
    if device is not None and device.type == "cuda":
        with torch.cuda.device(device):
            return select(name, gpu=gpu)
    fitting = {each: engine for each, engine in ENGINES.items() if gpu is None or engine.gpu == gpu}
    if name == "auto":
        for engine in fitting.values():
            reason = engine.unavailable()
            if reason is None and _passed(engine):
                return engine
            if reason is not None and not engine.gpu:
                _tell_of_the_slow_way(engine.name, reason)
        reasons = "; ".join(
            f"{each}: {engine.unavailable() or 'it failed its trial'}" for each, engine in fitting.items()
        )
        raise RuntimeError(f"no engine of a GPU can run here ({reasons})")
    reason = ENGINES[name].unavailable()
    if reason is not None:
        raise RuntimeError(f"engine {name!r} can't run here: {reason}")
    if name not in fitting:
        raise ValueError(f"engine {name!r} does not run on a {'GPU' if gpu else 'CPU'}; known: {', '.join(fitting)}")
    return ENGINES[name]


@functools.cache  # once a process: every call that follows is as slow
def _tell_of_the_slow_way(name: str, reason: str) -> None:
    """Warn that 'auto' passes over an engine of the CPU, which leaves one that takes thousands of times as long."""
    warnings.warn(
        f"'auto' passes over the {name} engine: {reason}; the reference engine, which it takes instead, is thousands "
        "of times slower",
        RuntimeWarning,
        stacklevel=3,
    )


def _passed(engine: Engine) -> bool:
    """Whether 'auto' may take an engine; a warning says why not."""
    problem = trust.problem(engine.name) if engine.gpu else None
    if problem is not None:
        warnings.warn(
            f"'auto' passes over the {engine.name} engine, which failed its trial on this GPU: {problem}; "
            f"engine={engine.name!r} uses it all the same, and verify tells whether a result is exact",
            RuntimeWarning,
            stacklevel=3,
        )
    return problem is None
