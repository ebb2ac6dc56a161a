"""The protocol that purifiers are judged by: which attacks a row gets, what is left out and why, and its cells.

Every random row is evaluated several times; the row's number is every image under the attack that is strongest on it;
the same classifier without a defence stands beside it. :mod:`pxfast.evaluation.judge` does the work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from ..attacks import Attack, BlindPGD, find_attack
from ..defences.protocol import is_stochastic
from .judge import CHECKED, CLEAN, STRONGEST, Job, Target
from .request import BLIND, plain_name
from .results import Cell
from .specification import ColumnSpecification
from .verdict import Score

RUNS = 10
CHECK_IMAGES = 64  # the first ones, on which the sanity checks are made
BLOCK = 256  # images that are predicted and kept together
STATIC = ("blind-pgd", "bpda", "apgd-bpda")  # those that have a meaning without a purifier
TRANSFER = "Transfer"
ALONE = "there is no purifier"  # why an attack is left out


def attack_of(column: ColumnSpecification) -> Attack:
    """The attack of a column that has one."""
    return find_attack(str(column.attack), **column.options)


def label_of(column: ColumnSpecification) -> str:
    """A requested attack as a verdict calls it: blind PGD is what transfers from the undefended classifier."""
    return f"{TRANSFER}, undefended{column.label[len(BLIND) :]}" if column.attack == BlindPGD.name else column.label


def transfer_label(name: str) -> str:
    """What transfers from the surrogate of this name."""
    return f"{TRANSFER}, {name}"


def allowed(
    columns: Iterable[ColumnSpecification], defences: Sequence[nn.Module]
) -> tuple[list[ColumnSpecification], dict[str, str]]:
    """The attacks of these columns that the defences allow, and why the others are left out, by the columns' names."""
    columns = list(columns)
    chosen, absent = [], {}
    for column in columns:
        attack = attack_of(column)
        attack.check_installed()
        try:
            attack.check_defences(defences)
        except ValueError as error:
            absent[column.name] = str(error)
            continue
        if not attack.bounded:
            absent[column.name] = f"{attack.name} has no eps"
        elif (
            attack.name == "bpda-eot"
            and not any(map(is_stochastic, defences))
            and any(each.attack == "bpda" for each in columns)
        ):
            absent[column.name] = "the purifier is not random: this is bpda"
        else:
            chosen.append(column)
    return chosen, absent


def beside(columns: Iterable[ColumnSpecification]) -> tuple[list[ColumnSpecification], dict[str, str]]:
    """The same for the classifier without a defence."""
    columns = list(columns)
    absent = {each.name: ALONE for each in columns if each.attack not in STATIC}
    return [each for each in columns if each.attack in STATIC], absent


def check_labels(labels: Iterable[str]) -> None:
    """ValueError for attacks and surrogates of which two would be called the same."""
    everything = [CLEAN, STRONGEST, *labels]
    names = list(map(plain_name, everything))
    if twice := [label for number, label in enumerate(everything) if names[number] in names[:number]]:
        raise ValueError(f"expected attacks and surrogates of different names, got {twice[0]!r} twice")


def transfers(surrogates: Mapping[str, Target]) -> list[Job]:
    """The attacks that transfer from surrogates, by their names."""
    return [Job(transfer_label(name), BlindPGD(), target) for name, target in surrogates.items()]


def from_alone(job: Job, alone: Target) -> Job:
    """The job with its adversarial images taken from the classifier without a defence, where the attack knows none."""
    return dataclasses.replace(job, source=alone) if job.source is None and job.attack.name == BlindPGD.name else job


def checking(images: int, most: int = CHECK_IMAGES) -> int:
    """How many images are attacked and predicted for the sanity checks of a row, on at most so many of the images."""
    return 2 * CHECKED * min(images, most)


def cell_of(row: str, column: str, eps: int | None, score: Score, **rest: Any) -> Cell:
    """What a score says, as a cell of a table. rest: other fields of it."""
    return Cell.counted(
        row,
        column,
        eps,
        score.majority,
        score.images,
        seconds=score.seconds,
        average=score.average,
        worst=score.worst,
        queries=score.queries,
        gradients=score.gradients,
        **rest,
    )


def rates_of(scores: Sequence[Score], before: str = "") -> list[dict[str, Any]]:
    """The images per second of attacks, as a table has them. before: what stands in front of their labels."""
    return [
        {
            "what": f"{before}{score.attack}",
            "images_per_second": float(f"{score.images / score.seconds:.4g}"),
            "images": score.images,
        }
        for score in scores
        if score.seconds
    ]
