"""Where tasks are done. A runner is made of what a :class:`~pxfast.evaluation.stages.Worker` is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from .networks import ModelFiles
from .stages import Task, TaskResult, Worker


class Runner(Protocol):
    """Does tasks, and gives their results in any order, each as soon as it is there.

    A task's exception is the runner's. Results that nobody asks for any more need not be computed. Every result is
    the same bytes wherever it is computed, on machines of one kind.
    """

    def run(self, tasks: Sequence[Task]) -> Iterator[TaskResult]: ...


class LocalRunner:
    """Does tasks one after the other in this process."""

    def __init__(self, files: ModelFiles, device: str, threads: int | None = None) -> None:
        self.worker: Worker = Worker(files, device, threads)

    def run(self, tasks: Sequence[Task]) -> Iterator[TaskResult]:
        return map(self.worker, tasks)


def ray_runner(files: ModelFiles, device: str, threads: int | None = None) -> Runner:
    """A :class:`~pxfast.evaluation.ray_runner.RayRunner`; ImportError without Ray."""
    from .ray_runner import RayRunner

    return RayRunner(files, device, threads)


RUNNERS: dict[str, Callable[[ModelFiles, str, int | None], Runner]] = {"local": LocalRunner, "ray": ray_runner}


def make_runner(name: str, files: ModelFiles, device: str, threads: int | None = None) -> Runner:
    """The runner of this name. files: all networks that tasks will name. device: where a worker runs them.

    threads: of a worker's CPU engine; None: the runner's default. ValueError lists the known names.
    """
    if name not in RUNNERS:
        raise ValueError(f"unknown runner {name!r}; known: {', '.join(RUNNERS)}")
    return RUNNERS[name](files, device, threads)
