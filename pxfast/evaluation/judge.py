"""The referee's work: attacks made and evaluated, what is finished kept, and the sanity checks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks import APGDBPDA, Attack, BlindPGD, RandomSearch, find_attack
from ..attacks.attack import fix_batches
from ..attacks.result import AttackResult
from ..attacks.resumable import library_versions
from ..base.progress import Progress
from ..defences.defended import Defended
from ..defences.weights import hidden_keys
from ..tensors.batches import FIXED_BATCH
from ..tensors.seeds import unseen_seed
from ..tensors.store import Entry, Store, digest
from .given import function_key
from .pipeline import attack_code, hidden
from .results import Check
from .sanity import compare, none_left
from .verdict import Score, votes_right

LARGEST = 255  # an eps that bounds nothing
FEWER = 10  # times as few steps, for the check that more steps never help a defence
CHECK_STEPS = 100  # of random search, and of APGD without a bound
CLEAN, STRONGEST = "Clean", "Strongest of every image"  # labels
CHECKED = 3  # attacks that are made for the checks alone


@dataclasses.dataclass(frozen=True)
class Target:
    """A module that is attacked, in memory, and the key of what it computes."""

    module: Defended
    key: str


@dataclasses.dataclass(frozen=True)
class Job:
    """An attack to be made. label: as the verdict calls it. source: whose adversarial images they are; None: the
    target's own.
    """

    label: str
    attack: Attack
    source: Target | None = None


Predicted = dict[str, Tensor]  # by label: int64 (runs, N)


class Judge:
    """Makes attacks and evaluates them; what is in the store already is taken from there.

    shard: images that are predicted and kept together. Attacked images are kept one by one.
    """

    def __init__(
        self, store: Store, images: Tensor, labels: Tensor, eps: int, seed: int, runs: int, shard: int
    ) -> None:
        self.store: Store = store
        self.images: Tensor = images
        self.labels: Tensor = labels
        self.eps: int = eps
        self.seed: int = seed
        self.most_runs: int = runs
        self.shard: int = shard
        self.bar: Progress | None = None

    def target(self, module: Defended) -> Target:
        """The module, with its key: of its values, of the networks it hides, and of its logits of the first images."""
        device = _device_of(module)
        first = self.images[:FIXED_BATCH]
        with torch.no_grad():
            logits = fix_batches(module, FIXED_BATCH)(first.to(device).float() / 255.0)
        key = function_key(module, first, logits, self.store)
        return Target(module, "-".join([key, *hidden_keys(module, tuple(first.shape[1:]))]))

    def surrogate(self, network: nn.Module) -> Target:
        """Another classifier, whose own adversarial images are to be tried."""
        return self.target(Defended(network, [nn.Identity()]))

    def runs(self, target: Target) -> int:
        """How often the target is evaluated."""
        return self.most_runs if target.module.runs else 1

    @staticmethod
    def described(attack: Attack) -> dict[str, Any]:
        """What the result of an attack depends on, JSON-able."""
        code = attack_code(attack.name)
        return {"attack": attack.name, "options": attack.options, "code": code, "source": attack.source}

    def row(self, target: Target, jobs: Sequence[Job]) -> tuple[tuple[Score, ...], Predicted]:
        """A target's scores, clean images first and the strongest attack last; and what it predicts under each."""
        found: Predicted = {CLEAN: self.predicted(target, self.images)}
        costs: dict[str, tuple[dict[str, Tensor], float]] = {}
        for job in jobs:
            moved, cost, seconds = self.attacked(job.source or target, job.attack, self.eps, len(self.images))
            found[job.label], costs[job.label] = self.predicted(target, moved), (cost, seconds)
        scores = [self._score(label, [each], *costs.get(label, ({}, None))) for label, each in found.items()]
        return (*scores, self._score(STRONGEST, list(found.values()), {}, None)), found

    @staticmethod
    def work(images: int, jobs: int) -> int:
        """By how many images the bar advances in a row of so many jobs: each is attacked and predicted, clean ones too
        are predicted.
        """
        return images * (2 * jobs + 1)

    def _score(self, label: str, each: list[Tensor], cost: dict[str, Tensor], seconds: float | None) -> Score:
        right = torch.stack([predicted == self.labels for predicted in each])
        votes = torch.stack([votes_right(predicted, self.labels) for predicted in each]).all(dim=0)
        spent = {name: (round(float(value.double().mean()), 2), int(value.max())) for name, value in cost.items()}
        return Score(
            label,
            len(self.images),
            round(float(right.double().mean(dim=1).amin(dim=0).mean()), 6),
            int(right.all(dim=1).all(dim=0).sum()),
            int(votes.sum()),
            spent.get("queries"),
            spent.get("gradients"),
            None if seconds is None else round(seconds, 3),
        )

    def attacked(self, target: Target, attack: Attack, eps: int, count: int) -> tuple[Tensor, dict[str, Tensor], float]:
        """The first ``count`` images, attacked, uint8; what each cost; and the seconds of that, in whichever run."""
        images, labels = self.images[:count], self.labels[:count]
        groups = torch.arange(count).split(1 if attack.alone else attack.block)
        recipe = {
            **self.described(attack),
            "stage": "referee attack",
            "target": target.key,
            "eps": eps,
            "seed": self.seed,
            "libraries": library_versions(),
            **hidden(attack, tuple(images.shape[1:])),
        }
        recipes = [{**recipe, "inputs": digest(images[group], labels[group])} for group in groups]
        entries = [self.store.read(each) for each in recipes]
        missing = [number for number, entry in enumerate(entries) if entry is None]
        self._advance(sum(len(groups[i]) for i, entry in enumerate(entries) if entry is not None))

        def take(places: Tensor, result: AttackResult) -> None:
            values = {"images": result.images, "queries": result.queries, "gradients": result.gradients}
            for rows in torch.arange(len(places)).split(1 if attack.alone else attack.block):
                number = missing[int(places[rows[0]]) // len(groups[0])]
                tensors = {name: value[rows.to(value.device)] for name, value in values.items() if value is not None}
                entry = Entry(tensors, result.seconds * len(rows) / len(places))
                self.store.write(recipes[number], entry)
                entries[number] = entry
            self._advance(len(places))

        if missing:
            device, left = _device_of(target.module), torch.cat([groups[number] for number in missing])
            given = images[left].to(device)
            # rounding asks again where results are not on the grid
            judged = not attack.on_grid
            attack.in_pieces(take, target.module, given, labels[left], eps, seed=self.seed, judge=judged)
        found = [entry for entry in entries if entry is not None]
        joined = {name: torch.cat([each.tensors[name].cpu() for each in found]) for name in found[0].tensors}
        return joined.pop("images"), joined, sum(each.seconds for each in found)

    def _advance(self, count: int) -> None:
        if self.bar is not None:
            self.bar.advance(count)

    @torch.no_grad()
    def predicted(self, target: Target, images: Tensor) -> Tensor:
        """The labels of uint8 images in every run: int64 (runs, N). The attacks have seen none of the runs' noise."""
        device = _device_of(target.module)
        blocks = []
        for block in images.split(self.shard):
            recipe = {
                "stage": "referee prediction",
                "target": target.key,
                "seed": self.seed,
                "runs": self.runs(target),
                "inputs": digest(block),
                "libraries": library_versions(),
            }
            entry = self.store.read(recipe)
            if entry is None:
                started, module, each = time.perf_counter(), target.module, []
                for run in range(self.runs(target)):
                    again = module.around(module.classifier, seed=unseen_seed(self.seed, run))
                    each.append(fix_batches(again, FIXED_BATCH)(block.to(device).float() / 255.0).argmax(1).cpu())
                entry = Entry({"labels": torch.stack(each)}, time.perf_counter() - started)
                self.store.write(recipe, entry)
            blocks.append(entry.tensors["labels"])
            self._advance(len(block))
        return torch.cat(blocks, dim=1)

    def checks(self, target: Target, jobs: Sequence[Job], found: Predicted, count: int) -> tuple[Check, ...]:
        """The sanity checks, on at most ``count`` images, the first ones, after the row of these jobs, which gave
        ``found``.
        """
        labels = self.labels[:count]
        count = len(labels)
        left = {label: votes_right(each[:, :count], labels) for label, each in found.items()}
        attacks = {job.label: job.attack for job in jobs if job.source is None}
        white = {
            label: attack
            for label, attack in attacks.items()
            if attack.needs_gradient and attack.name != BlindPGD.name and label in left
        }
        checks = []

        def right_under(attack: Attack, eps: int) -> Tensor:
            moved, _, _ = self.attacked(target, attack, eps, count)
            return votes_right(self.predicted(target, moved), labels)

        name = "more steps never help the defence"
        stepping = next((label for label, attack in white.items() if (attack.options.get("steps") or 0) > 1), None)
        if stepping is None:
            checks.append(Check(name, "inconclusive", "no attack with gradients was chosen"))
        else:
            attack = white[stepping]
            fewer = max(1, attack.options["steps"] // FEWER)
            shorter = find_attack(attack.name, **{**attack.options, "steps": fewer})
            named = stepping.partition(",")[0]  # without options, which may be steps
            few = (f"{named} of {fewer} steps", right_under(shorter, self.eps))
            many = (f"{attack.options['steps']} steps", left[stepping])
            checks.append(compare(name, few, many, left[CLEAN]))
        unbounded = APGDBPDA(steps=CHECK_STEPS, restarts=1)
        checks.append(none_left("a large eps reaches 0 %", f"APGD, eps {LARGEST}", right_under(unbounded, LARGEST)))
        if white:
            gradients = torch.stack([left[label] for label in white]).all(dim=0) & left[CLEAN]
            all_of_them = ("the attacks with gradients", gradients)
            searched = right_under(RandomSearch(steps=CHECK_STEPS), self.eps)
            name, random = "random search does not beat gradients", ("random search", searched)
            checks.append(compare(name, random, all_of_them, left[CLEAN]))
            black = [label for label in left if label not in white and label != CLEAN]
            checks += [
                compare(f"black-box does not beat white-box: {label}", (label, left[label]), all_of_them, left[CLEAN])
                for label in black
            ]
        return tuple(checks)


def _device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are; the CPU for one that has none."""
    return next((each.device for each in module.parameters()), torch.device("cpu"))
