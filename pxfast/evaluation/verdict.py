"""What the protocol says of a row, numbers of several runs, budgets and checks; and the referee of a purifier."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .results import CONFIDENCE, FAILED, Cell, Check, Row, Table, wilson_interval

TEST_IMAGES = 10_000  # of the data sets
WIDTH = 40  # of an attack's label


@dataclasses.dataclass(frozen=True)
class Score:
    """How many of ``images`` stay right under an attack, in several runs of a random defence.

    average: the mean over the runs. worst: right in every run. majority: right by most votes of the runs, a tie being
    wrong. These three are the same where the defence is not random. queries, gradients: the mean and the most that an
    image cost; None for what costs none. seconds: of the attack, in whichever run.
    """

    attack: str
    images: int
    average: float
    worst: int
    majority: int
    queries: tuple[float, int] | None = None
    gradients: tuple[float, int] | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, label: str, cell: Cell) -> Score:
        """What a judged cell says, of the attack of this label."""
        average = cell.accuracy if cell.average is None else cell.average
        worst = cell.correct if cell.worst is None else cell.worst
        return cls(label, cell.images, average, worst, cell.correct, cell.queries, cell.gradients, cell.seconds)

    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the majority's accuracy, in [0, 1]."""
        return wilson_interval(self.majority, self.images, CONFIDENCE)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What :func:`pxfast.referee` gives; it prints itself.

    classifier, purifier, dataset: as shown. eps: of the attacks, in 0..255. runs: of a random defence. images: how
    many. defended, static: scores of the defended classifier and of the classifier alone, the last of each being the
    strongest attack of every image. checks: of sanity. settings: what all depends on. out: the output folder. table:
    the name of the verdict's table in it. report: the page of all its tables, None where none was written.
    """

    classifier: str
    purifier: str
    dataset: str
    eps: int
    runs: int
    images: int
    defended: tuple[Score, ...]
    static: tuple[Score, ...]
    checks: tuple[Check, ...]
    settings: dict[str, Any]
    out: Path
    table: str
    report: Path | None

    @property
    def strongest(self) -> Score:
        """The number: each image under the attack that is strongest on it."""
        return self.defended[-1]

    @property
    def sound(self) -> bool:
        """Whether no sanity check failed."""
        return all(check.outcome != FAILED for check in self.checks)

    def to_json(self) -> str:
        """All of it as JSON."""
        values = {**dataclasses.asdict(self), "out": str(self.out), "sound": self.sound}
        values["report"] = None if self.report is None else str(self.report)
        return json.dumps(values, indent=1, allow_nan=False)

    def __str__(self) -> str:
        head = f"{self.dataset}: {self.classifier} behind {self.purifier}, eps {self.eps}, {self.images} images"
        many = f"; {self.runs} runs" if self.runs > 1 else "; not random: one run"
        lines = [f"{head}{many}", "", *score_lines(self.defended)]
        lines += ["", f"{self.classifier} without the purifier", *map(_line, self.static)]
        return "\n".join([*lines, "", *check_lines(self.checks)])


def row_scores(table: Table, row: Row) -> list[Score]:
    """The scores of a table's row, in the order of its columns; none where the protocol has not judged it."""
    return [
        Score.of(column.label, cell)
        for column in table.columns
        for cell in table.cells
        if (cell.row, cell.column) == (row.name, column.name) and cell.average is not None
    ]


def score_lines(scores: Sequence[Score]) -> list[str]:
    """A row's scores as text, with their budgets and rates, and what they took together."""
    spent = sum(score.seconds or 0.0 for score in scores)
    hours = spent / scores[0].images * TEST_IMAGES / 3600.0
    took = f"These attacks took {spent:.1f} s; at this rate {TEST_IMAGES:,} images take {hours:.2g} h."
    return [HEAD, *map(_line, scores), took]


def check_lines(checks: Sequence[Check]) -> list[str]:
    """A row's sanity checks as text."""
    lines = ["Sanity checks", *(f"  {check}" for check in checks)]
    if any(check.outcome == FAILED for check in checks):
        lines.append("A check failed: better attacks may well beat the strongest one's number.")
    return lines


HEAD = (
    f"{'Right, %':<{WIDTH}}{'average':>8}{'worst':>8}{'majority':>10}  {'95 % interval':<15}"
    f"{'queries mean/most':>19}{'gradients':>15}{'images/s':>10}"
)


def _line(score: Score) -> str:
    low, high = score.interval()
    share = 100 / score.images
    text = f"{score.attack[: WIDTH - 1]:<{WIDTH}}"
    text += f"{100 * score.average:>8.1f}{share * score.worst:>8.1f}{share * score.majority:>10.1f}"
    text += f"  {f'{100 * low:.1f}-{100 * high:.1f}':<15}"
    for cost, width in ((score.queries, 19), (score.gradients, 15)):
        text += f"{'' if cost is None else f'{cost[0]:.1f}/{cost[1]}':>{width}}"
    rate = f"{score.images / score.seconds:.3g}" if score.seconds else ""
    return f"{text}{rate:>10}".rstrip()


def votes_right(predicted: Tensor, labels: Tensor) -> Tensor:
    """Which images the runs call right by most votes, bool (N,); a tie with another class is wrong.

    predicted: int64 (runs, N). labels: int64 (N,).
    """
    own = (predicted == labels).sum(dim=0)
    others = torch.zeros_like(own)
    for run in predicted:
        others = torch.maximum(others, ((predicted == run) & (run != labels)).sum(dim=0))
    return own > others
