"""A training run whose weights are averaged as it goes, with all of its state in a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base.checks import is_number
from ..base.records import shown
from ..tensors.safetensors import metadata_json, metadata_record
from .checkpoints import check_state, read_checkpoint, write_checkpoint
from .outputs import earlier_parts
from .processes import Processes
from .run import Position, TrainingRun, laid_out_like
from .settings import RunSettings

ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")  # what torch keeps for a parameter


class AveragedRun(TrainingRun):
    """What a trainer of a network with averaged weights is made of: the two networks, the optimisers, and a history.

    Derived classes set ``model``, with its ``config``, ``averaged``, a copy of it, and ``optimisers``. ema_decay: how
    much of the averaged weights a step keeps. checkpoint_format: what their checkpoints are called. history: JSON-able,
    kept with the rest, as is ``earlier``: the runs that made the weights it began with (:mod:`.provenance`).
    """

    checkpoint_format: str
    model: nn.Module
    averaged: nn.Module
    optimisers: list[torch.optim.Optimizer]

    def __init__(
        self, settings: RunSettings, images: Tensor, processes: Processes | None = None, *, ema_decay: float
    ) -> None:
        super().__init__(settings, images, processes)
        self.ema_decay = ema_decay
        self.history: list[dict[str, Any]] = []
        self.earlier: list[dict[str, Any]] = []
        self.queued: bool = self.processes.device.type != "cpu"  # whether the device works while this process goes on
        self._before: list[Tensor] = []

    def optimise(self, measured: Tensor) -> list[float]:
        """A step of optimisers and averaged weights along the gradients, which are then gone; ``measured`` as numbers.

        measured: what tells whether the gradients are good, such as the loss and their norm, 1-D on the device. Where
        one of them is not finite, the weights are as before, and the optimisers have no state. The device is waited
        for once, when the optimisers' work is queued already.
        """
        parameters: list[Tensor] = list(self.model.parameters())
        if self.queued:
            self._remember(parameters)
            self._step_optimisers()
        values: list[float] = measured.tolist()
        if all(map(math.isfinite, values)):
            if not self.queued:
                self._step_optimisers()
            self.average()
            return values
        for optimiser in self.optimisers:
            optimiser.zero_grad()  # or whoever goes on would add to gradients that are not finite
            if self.queued:
                optimiser.state.clear()
        if self.queued:
            with torch.no_grad():
                torch._foreach_copy_(parameters, self._before)
        return values

    def _step_optimisers(self) -> None:
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()

    @torch.no_grad()
    def _remember(self, parameters: list[Tensor]) -> None:
        if not self._before:
            self._before = [torch.empty_like(parameter) for parameter in parameters]
        torch._foreach_copy_(self._before, parameters)

    @torch.no_grad()
    def average(self) -> None:
        """Bring the averaged weights nearer to the model's; faster at first, when there is little to remember."""
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1.0 - decay)

    def save(self, path: Path) -> None:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"averaged.{name}": value for name, value in self.averaged.state_dict().items()}
        # keyed by the parameter's place: one that never had a gradient has no state and must not shift the others
        for i, parameter in enumerate(self.model.parameters()):
            for optimiser in self.optimisers:
                state = optimiser.state.get(parameter, {})
                tensors |= {f"optimiser.{i}.{name}": value for name, value in state.items()}
        told = {"history": json.dumps(self.history), "earlier": json.dumps(self.earlier)}
        write_checkpoint(path, tensors, self.metadata(self.checkpoint_format, self.model.config) | told)

    def restore(
        self,
        path: Path,
        *,
        out: Path | None = None,
        changed_settings: Collection[str] = (),
        settings_at: Callable[[dict[str, str]], RunSettings] | None = None,
    ) -> None:
        """Continue where ``save`` left off. ValueError when the checkpoint is of another model or other settings.

        out: the run's weights file, whose notes tell of the earlier runs where an older checkpoint does not.
        changed_settings: names of those that may be others. settings_at: gives the settings, where they depend on where
        the checkpoint is, by its metadata.
        """
        tensors, metadata = self._agreed_checkpoint(path)
        if settings_at is not None:
            self.settings: RunSettings = settings_at(metadata)
        self.resume_at(path, metadata, self.model.config, changed_settings=changed_settings)
        history = metadata_json(metadata, "history", path)
        tables = isinstance(history, list) and all(isinstance(entry, dict) for entry in history)
        if not tables or not all(v is None or is_number(v) for entry in history for v in entry.values()):
            raise ValueError(f"{path}: the history of a run must be a list of tables of numbers, got {shown(history)}")
        earlier = metadata_json(metadata, "earlier", path, "null")
        if earlier is None:
            earlier = [] if out is None else earlier_parts(out, path)
        if not isinstance(earlier, list) or not all(isinstance(part, dict) for part in earlier):
            raise ValueError(f"{path}: the runs before a run must be a list of tables, got {shown(earlier)}")
        self._check(tensors, path)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "averaged": {}, "optimiser": {}}
        for name, value in tensors.items():
            part, _, key = name.partition(".")
            parts[part][key] = value
        self.model.load_state_dict(parts["model"])
        self.averaged.load_state_dict(parts["averaged"])
        parameters = list(self.model.parameters())
        owners = {p: optimiser for optimiser in self.optimisers for g in optimiser.param_groups for p in g["params"]}
        for key, value in parts["optimiser"].items():
            i, _, name = key.partition(".")
            parameter = parameters[int(i)]
            alike = value.shape == parameter.shape
            value = laid_out_like(parameter, value) if alike else value.to(parameter.device)
            owners[parameter].state[parameter][name] = value
        self.history, self.earlier = history, earlier

    def _agreed_checkpoint(self, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        """A checkpoint, the same one in all processes, though another run may be writing it."""
        while True:
            tensors, metadata = read_checkpoint(path, self.checkpoint_format)
            step = float(metadata_record(Position, metadata, path, "position of a run", "position").step)
            first, _ = self.processes.agree(step, False)
            if not self.processes.agree(step, step != first)[1]:
                return tensors, metadata

    def _check(self, tensors: dict[str, Tensor], path: Path) -> None:
        """ValueError, naming the checkpoint, unless its tensors are those that ``save`` gives this run."""
        targets = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        targets |= {f"averaged.{name}": value for name, value in self.averaged.state_dict().items()}
        places = {parameter: i for i, parameter in enumerate(self.model.parameters())}
        optional: set[str] = set()
        for optimiser in self.optimisers:
            for parameter in (each for group in optimiser.param_groups for each in group["params"]):
                state = {
                    f"optimiser.{places[parameter]}.{name}": torch.zeros(()) if name == "step" else parameter
                    for name in getattr(optimiser, "state_names", ADAM_STATE)
                }
                targets |= state
                if not state.keys() & tensors.keys():  # a parameter that never had a gradient has no state
                    optional |= state.keys()
        check_state(tensors, targets, path, optional)
