"""Images through the steps of an evaluation, in shards, each taken from the store or computed and kept there."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..attacks import ATTACKS, Attack, ClippedAttack, find_attack
from ..attacks.resumable import library_versions
from ..base.code import code_hash
from ..base.machine import torch_instructions
from ..defences.protocol import is_stochastic
from ..defences.weights import network_key
from ..tensors.store import Entry, Recipe, Store, digest
from . import stages
from .defences import Context, Description, find_kind
from .networks import ELSEWHERE, EvaluatedClassifier
from .runners import Runner
from .stages import Task, Tensors

SHARD = 64  # images computed and kept at a time: two of the classifiers' batches, one block of the CPU engine
ENGINE_LIBRARIES = ("torch", "numpy")


@dataclasses.dataclass(frozen=True)
class Computed:
    """A step's result for all images: a tensor, and the seconds that computing it took, now or in earlier runs."""

    values: Tensor
    seconds: float


Report = Callable[[str, int, int], None]  # what is computed, images done, images in all


class Pipeline:
    """Runs steps over images.

    store, runner: where results are kept and computed. context: of the defences. shard: images to a task; results are
    found again by runs with the same one. report: called as images are finished, those from the store included.
    """

    def __init__(
        self, store: Store, runner: Runner, context: Context, *, shard: int = SHARD, report: Report | None = None
    ) -> None:
        if shard < 1:
            raise ValueError(f"shard must be positive, got {shard}")
        self.store = store
        self.runner = runner
        self.context = context
        self.shard = shard
        self.report: Report = report or (lambda what, done, total: None)
        self._spent: dict[str, dict[str, tuple[int, float]]] = {}  # by what was done, by entry: images and seconds

    def attacked(
        self,
        images: Tensor,
        labels: Tensor,
        classifier: EvaluatedClassifier,
        attack: str,
        eps: int | None,
        *,
        options: dict[str, Any] | None = None,
        seed: int = 0,
        through: Sequence[Description] = (),
        views: str = "one",
    ) -> Computed:
        """The attack's uint8 images. images, labels: uint8 (N, C, H, W) and int64 (N,).

        through, views: the defences and the views that the attacker knows of. An attack that eps only clips is searched
        once for all eps.
        """
        chosen = find_attack(attack, **(options or {}))
        recipe = {**self._attack_recipe(chosen, classifier, seed, through), **_seen(views)}
        recipe |= hidden(chosen, tuple(images.shape[1:]))
        inputs = {"images": images, "labels": labels}
        if not isinstance(chosen, ClippedAttack):
            bound = "" if eps is None else f", eps {eps}"
            return self._run(f"attack by {attack}{bound}", {**recipe, "stage": "attack", "eps": eps}, inputs, "images")
        found = self._run(f"attack by {attack}", {**recipe, "stage": "search"}, inputs, "found")
        clipped = self._run(
            f"clipping of {attack}",
            {**recipe, "stage": "clip", "eps": eps},
            {**inputs, "found": found.values},
            "images",
        )
        return Computed(clipped.values, found.seconds + clipped.seconds)

    def defended(self, images: Tensor, defences: Sequence[Description]) -> tuple[Computed, list[Description]]:
        """Images through those defences whose results are kept, and the defences that are left after them.

        A random one and what follows it are left: it is the logits of their runs that are averaged.
        """
        kinds = [find_kind(description["kind"]) for description in defences]
        fixed = list(itertools.takewhile(lambda kind: not is_stochastic(kind.example()), kinds))
        through = max((i + 1 for i, kind in enumerate(fixed) if kind.kept), default=0)
        seconds = 0.0
        for description in defences[:through]:
            recipe = {
                "stage": "defend",
                "defence": description,
                "code": code_hash(stages.defend, without=ELSEWHERE),
                "libraries": self._libraries(ENGINE_LIBRARIES),
            }
            step = self._run(defence_name(description), recipe, {"images": images}, "images")
            images, seconds = step.values, seconds + step.seconds
        return Computed(images, seconds), list(defences[through:])

    def predicted(
        self,
        images: Tensor,
        classifier: EvaluatedClassifier,
        defences: Sequence[Description] = (),
        views: str = "one",
    ) -> Computed:
        """The classifier's labels (N,) int64 of images behind the defences, by so many views."""
        recipe = {
            "stage": "predict",
            "classifier": classifier.key,
            "defences": list(defences),
            "code": code_hash(stages.predict, *classifier.modules, without=ELSEWHERE),
            "libraries": self._libraries(ENGINE_LIBRARIES),
            "processor": torch_instructions(self.context.device),
            **_seen(views),
        }
        return self._run("classification", recipe, {"images": images}, "labels")

    def log_likelihoods(self, images: Tensor) -> Computed:
        """log p(X) in nats of uint8 images under the density model, (N,) float64."""
        recipe = {
            "stage": "likelihood",
            "model": self.context.density,
            "code": code_hash(stages.likelihood, without=ELSEWHERE),
            "libraries": self._libraries(ENGINE_LIBRARIES),
            "processor": torch_instructions("cpu"),
        }
        return self._run("likelihoods", recipe, {"images": images}, "log_prob")

    def rates(self) -> list[dict[str, Any]]:
        """What was done, images per second, and how many images, of all that this pipeline computed or found."""
        return [
            {"what": what, "images_per_second": float(f"{images / seconds:.4g}"), "images": images}
            for what, images, seconds in (
                (what, *(sum(column) for column in zip(*spent.values(), strict=True)))
                for what, spent in self._spent.items()
            )
            if seconds > 0
        ]

    def _attack_recipe(
        self,
        attack: Attack,
        classifier: EvaluatedClassifier,
        seed: int,
        through: Sequence[Description],
    ) -> Recipe:
        return {
            "classifier": classifier.key,
            "through": list(through),
            "attack": attack.name,
            "options": attack.options,
            "seed": seed if attack.random else None,
            "code": attack_code(attack.name),
            "classifier code": code_hash(*classifier.modules),
            "libraries": self._libraries(),
            "processor": torch_instructions(self.context.device),
        }

    @staticmethod
    def _libraries(names: Sequence[str] | None = None) -> dict[str, str | None]:
        """Versions, but for pxfast's own, of which the hashes of its code say more."""
        versions = library_versions()
        return {name: versions[name] for name in names or versions if name != "pxfast"}

    def _run(self, what: str, recipe: Recipe, inputs: Tensors, output: str) -> Computed:
        """One step over all images: its tensor called ``output``."""
        count = len(inputs["images"])
        shards = [
            {name: tensor[start : start + self.shard] for name, tensor in inputs.items()}
            for start in range(0, count, self.shard)
        ]
        recipes = [{**recipe, "inputs": {name: digest(part[name]) for name in sorted(part)}} for part in shards]
        entries = [self.store.read(each) for each in recipes]
        done = sum(len(part["images"]) for part, entry in zip(shards, entries, strict=True) if entry is not None)
        self.report(what, done, count)
        tasks = [Task(number, recipes[number], shards[number]) for number, entry in enumerate(entries) if entry is None]
        for result in self.runner.run(tasks) if tasks else ():
            entry = Entry(result.outputs, result.seconds)
            self.store.write(recipes[result.number], entry)
            entries[result.number] = entry
            done += len(shards[result.number]["images"])
            self.report(what, done, count)
        found = [entry for entry in entries if entry is not None]
        if missing := len(entries) - len(found):
            raise RuntimeError(f"the runner gave no result for {missing} of {len(entries)} tasks")
        spent = self._spent.setdefault(what, {})
        for each, part, entry in zip(recipes, shards, found, strict=True):
            spent[self.store.path(each).name] = len(part["images"]), entry.seconds
        return Computed(torch.cat([entry.tensors[output] for entry in found]), sum(entry.seconds for entry in found))


def _seen(views: str) -> Recipe:
    """What recipes say of the views, so that those of one view are as if there were no others."""
    return {} if views == "one" else {"views": views}


def hidden(attack: Attack, image_shape: tuple[int, ...]) -> Recipe:
    """The keys of an attack's own networks, as recipes have them; nothing for one that has none."""
    networks = attack.hidden_networks(image_shape)
    return {"networks": [network_key(network) for network in networks]} if networks else {}


def attack_code(name: str) -> str:
    """The hash of the code of the attack of this name: of its class and all that it depends on."""
    return code_hash(stages.attack, stages.search, stages.clip, ATTACKS[name], without=ELSEWHERE)


def defence_name(description: Description) -> str:
    """A defence in a few words."""
    words = [description["kind"]]
    if description.get("adaptive") is not None:
        words.append(f"adaptive by {description['adaptive']}")
    if "eps" in description:
        words.append(f"eps {description['eps']}")
    return ", ".join(words)
