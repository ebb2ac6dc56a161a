"""Tasks on Ray: over the processors and GPUs of this machine, or over many machines.

Shards go through Ray Data's ``map_batches`` to actors that hold the networks. The shard of an actor that dies goes to
another one; what is finished stays. Ray starts the actors anew for each step, which takes some seconds.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from ..base.extras import require
from ..tensors.store import canonical
from .networks import ModelFiles
from .stages import Task, TaskResult, Tensors, Worker

Batch = dict[str, np.ndarray]  # a column of one value each: Ray Data's batches of one row


class RayRunner:
    """Does tasks by Ray Data, on the cluster that RAY_ADDRESS names or, without it, on this machine.

    device: 'cpu', of which each worker takes as many processors as torch has threads here, so that its results have
    the same bytes as here; or 'cuda', of which each takes one. threads: of a worker's CPU engine; None: as torch.
    There are as many workers as the cluster has room for, and they get the files of classifiers and density models
    from here. ImportError, naming the extra, without Ray; RuntimeError where the cluster has no room for a single
    worker, and for a task that fails on its worker.
    """

    def __init__(self, files: ModelFiles, device: str, threads: int | None = None) -> None:
        ray = require("ray", "ray")
        require("ray.data", "ray")
        logging.getLogger("ray.data").setLevel(logging.WARNING)  # it tells of every dataset's beginning and end
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="warning")
        self.threads: int = torch.get_num_threads()
        self.engine_threads: int = threads or self.threads
        self.gpu: bool = torch.device(device).type == "cuda"
        kind, share = ("GPU", 1) if self.gpu else ("CPU", self.threads)
        found = ray.cluster_resources().get(kind, 0)
        self.workers: int = int(found // share)
        if self.workers < 1:
            raise RuntimeError(f"a worker takes {share} {kind}, of which the Ray cluster has {found:g}")
        paths = {*files.classifiers.values(), *files.densities.values()}
        self.files = files
        self.contents: Any = ray.put({path: Path(path).read_bytes() for path in sorted(paths)})

    def run(self, tasks: Sequence[Task]) -> Iterator[TaskResult]:
        """The results of tasks, as they come. RuntimeError when a task fails, with its message."""
        import ray

        ray.data.DataContext.get_current().enable_progress_bars = False  # the evaluation has its own
        dataset = ray.data.from_items([to_row(task) for task in tasks], override_num_blocks=len(tasks)).map_batches(
            RayWorker,
            fn_constructor_args=(
                self.contents,
                self.files,
                "cuda" if self.gpu else "cpu",
                self.threads,
                self.engine_threads,
            ),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(tasks))),
            num_cpus=0 if self.gpu else self.threads,
            num_gpus=1 if self.gpu else 0,
        )
        try:
            # closed, so that the workers are free again when this ends early
            with contextlib.closing(iter(dataset.iter_batches(batch_size=1, prefetch_batches=0))) as batches:
                for batch in batches:
                    if error := batch["error"][0]:
                        raise RuntimeError(f"a task failed on a Ray worker: {error}")
                    yield from_batch(batch)
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"Ray failed: {error}") from error


class RayWorker:
    """A :class:`Worker` in an actor of Ray's. contents: the networks' files by the paths that ``files`` gives them."""

    def __init__(self, contents: Any, files: ModelFiles, device: str, threads: int, engine_threads: int) -> None:
        import ray

        torch.set_num_threads(threads)
        self.folder: tempfile.TemporaryDirectory[str] = tempfile.TemporaryDirectory(prefix="pxfast-")
        places = {}
        for number, (path, content) in enumerate(ray.get(contents).items()):
            place = Path(self.folder.name) / f"{number}{Path(path).suffix}"
            place.write_bytes(content)
            places[path] = str(place)
        self.worker: Worker = Worker(
            ModelFiles(
                {key: places[str(path)] for key, path in files.classifiers.items()},
                {key: places[str(path)] for key, path in files.densities.items()},
            ),
            device,
            engine_threads,
        )

    def __call__(self, batch: Batch) -> Batch:
        number, recipe, inputs = (batch[name][0] for name in ("number", "recipe", "inputs"))
        # an error is returned as a result: Ray would wrap it in pages of text
        outputs, seconds, message = b"", 0.0, ""
        try:
            result = self.worker(Task(int(number), json.loads(recipe), load(bytes(inputs))))
            outputs, seconds = packed(result.outputs), result.seconds
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
        return {
            "number": np.array([number]),
            "outputs": np.array([outputs], dtype=object),
            "seconds": np.array([seconds]),
            "error": np.array([message], dtype=object),
        }


def to_row(task: Task) -> dict[str, Any]:
    """A task as a row of plain values, which Ray Data moves without pickling."""
    return {"number": task.number, "recipe": canonical(task.recipe), "inputs": packed(task.inputs)}


def from_batch(batch: Batch) -> TaskResult:
    """A result from the one row that its worker gave."""
    return TaskResult(int(batch["number"][0]), load(bytes(batch["outputs"][0])), float(batch["seconds"][0]))


def packed(tensors: Tensors) -> bytes:
    """Tensors in the format of safetensors."""
    return save({name: tensor.contiguous() for name, tensor in tensors.items()})
