"""The steps of an evaluation, each over a shard of images: plain values in, tensors out, in any process.

A :class:`Task` names the step and everything that its result depends on; a :class:`Worker` holds the networks.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..attacks import ClippedAttack, find_attack
from ..attacks.attack import BATCH, fix_batches
from ..defences import Defended
from ..pixelcnn.likelihood import log_prob
from ..tensors.seeds import unseen_seed
from ..tensors.store import Recipe
from . import defences
from .networks import ModelFiles, Models

Tensors = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Task:
    """One step for one shard. number: by which the result is told from others. recipe: has ``stage``, the step's name,
    and its settings. inputs: tensors by name, on the CPU. Picklable.
    """

    number: int
    recipe: Recipe
    inputs: Tensors


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """What a task gave: tensors by name, on the CPU, and the seconds it took."""

    number: int
    outputs: Tensors
    seconds: float


class Worker:
    """Does tasks, and holds the networks for them.

    files: where these lie. device: 'cpu', 'cuda' or 'cuda:N'. threads: of the CPU engine; None: its default.
    """

    def __init__(self, files: ModelFiles, device: str = "cpu", threads: int | None = None) -> None:
        self.models: Models = Models(files, device, threads)

    def __call__(self, task: Task) -> TaskResult:
        started = time.perf_counter()
        inputs = {name: tensor.to(self.models.device) for name, tensor in task.inputs.items()}
        outputs = STAGES[task.recipe["stage"]](self.models, task.recipe, inputs)
        outputs = {name: tensor.detach().cpu() for name, tensor in outputs.items()}
        return TaskResult(task.number, outputs, time.perf_counter() - started)


def target(models: Models, recipe: Recipe) -> nn.Module:
    """What is attacked: the classifier alone or, by an attacker who knows of them, behind its defences, ``through``,
    with its ``views``.
    """
    classifier = models.classifier(recipe["classifier"])
    through = [defences.build(description, models) for description in recipe["through"]]
    views = recipe.get("views", "one")
    return Defended(classifier, through, views=views) if through or views != "one" else classifier


def attack(models: Models, recipe: Recipe, inputs: Tensors) -> Tensors:
    """uint8 images and labels to attacked ones on the grid."""
    chosen = find_attack(recipe["attack"], **recipe["options"])
    images = chosen(target(models, recipe), inputs["images"], inputs["labels"], recipe["eps"], seed=recipe["seed"] or 0)
    return {"images": images}


def clipped_attack(recipe: Recipe) -> ClippedAttack:
    """The recipe's attack. ValueError for one that has to be run for each eps."""
    chosen = find_attack(recipe["attack"], **recipe["options"])
    if not isinstance(chosen, ClippedAttack):
        raise ValueError(f"{chosen.name} is not an attack whose result is clipped: it has to be run for each eps")
    return chosen


def search(models: Models, recipe: Recipe, inputs: Tensors) -> Tensors:
    """What an attack finds that eps only clips: fp32 images."""
    found = clipped_attack(recipe).unclipped(target(models, recipe), inputs["images"], inputs["labels"])
    return {"found": found}


def clip(models: Models, recipe: Recipe, inputs: Tensors) -> Tensors:
    """What ``search`` found, within eps and on the grid."""
    result = clipped_attack(recipe).clip(
        target(models, recipe), inputs["images"], inputs["labels"], inputs["found"], recipe["eps"]
    )
    return {"images": result.images}


@torch.no_grad()
def defend(models: Models, recipe: Recipe, inputs: Tensors) -> Tensors:
    """Images through one defence: of the type that it gives."""
    return {"images": defences.build(recipe["defence"], models)(inputs["images"])}


@torch.no_grad()
def predict(models: Models, recipe: Recipe, inputs: Tensors) -> Tensors:
    """Images through the remaining defences and the classifier, in batches of one size, to labels (N,) int64.

    The random numbers of a stochastic defence are none that an attack has seen.
    """
    classifier = models.classifier(recipe["classifier"])
    parts = [defences.build(description, models) for description in recipe["defences"]]
    defended = Defended(classifier, parts, views=recipe.get("views", "one"), seed=unseen_seed(0))
    images = inputs["images"]
    logits = fix_batches(defended, BATCH)(images.float() / 255 if images.dtype == torch.uint8 else images)
    return {"labels": logits.argmax(1)}


def likelihood(models: Models, recipe: Recipe, inputs: Tensors) -> Tensors:
    """uint8 images to log p(X) in nats, (N,) float64."""
    return {"log_prob": log_prob(inputs["images"].cpu(), model=models.density(recipe["model"])).double()}


STAGES: dict[str, Callable[[Models, Recipe, Tensors], Tensors]] = {
    stage.__name__: stage for stage in (attack, search, clip, defend, predict, likelihood)
}
