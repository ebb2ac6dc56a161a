"""The numbers of a verdict, and its lines, by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from pxfast.evaluation.judge import Judge
from pxfast.evaluation.results import Cell, Check, Column, Row, Table
from pxfast.evaluation.verdict import Score, Verdict, check_lines, row_scores, score_lines
from pxfast.tensors.store import Store


def test_the_strongest_attack_is_that_on_each_image(tmp_path) -> None:
    """Three runs on four images; the second attack is the stronger one on the first two, the first on the last."""
    labels = torch.tensor([0, 1, 2, 0])
    first = torch.tensor([[0, 1, 2, 1], [0, 1, 2, 0], [0, 0, 2, 2]])
    second = torch.tensor([[0, 0, 2, 0], [1, 0, 2, 0], [0, 1, 2, 0]])
    judge = Judge(Store(tmp_path), torch.zeros(4, 1, 2, 2, dtype=torch.uint8), labels, 8, 0, 3, 4)
    costs = {"queries": torch.tensor([3, 5, 4, 5]), "gradients": torch.tensor([0, 1, 0, 0])}
    score = judge._score("first", [first], costs, 1.23456)
    assert score == Score("first", 4, round((3 + 2 + 3 + 1) / 12, 6), 2, 3, (4.25, 5), (0.25, 1), 1.235)
    score = judge._score("both", [first, second], {}, None)
    assert score == Score("both", 4, round((2 + 1 + 3 + 1) / 12, 6), 1, 2)


SCORES = [
    Score("Clean", 200, 0.92, 180, 185),
    Score("BPDA of a name that is longer than the room", 200, 0.5123, 90, 100, (12.5, 100), (3.0, 7), 4.0),
]


def test_lines_of_scores() -> None:
    """Wilson's interval of 100 of 200 is 0.5 ± 1.96 / (1 + 1.96^2 / 200) sqrt(0.25 / 200 + (1.96 / 400)^2)."""
    head, clean, bpda, took = score_lines(SCORES)
    assert clean.split() == ["Clean", "92.0", "90.0", "92.5", "88.0-95.4"]
    assert bpda[:40] == f"{'BPDA of a name that is longer than the':<40}"
    assert bpda[40:].split() == ["51.2", "45.0", "50.0", "43.1-56.9", "12.5/100", "3.0/7", "50"]
    columns = {"average": "51.2", "worst": "45.0", "majority": "50.0", "mean/most": "12.5/100", "gradients": "3.0/7"}
    for title, number in columns.items():
        assert head.index(title) + len(title) == bpda.index(f" {number}") + 1 + len(number), title
    assert took == "These attacks took 4.0 s; at this rate 10,000 images take 0.056 h."


def test_a_verdict_prints_itself_and_is_json(tmp_path) -> None:
    def verdict(outcome: str, report: Path | None, runs: int = 1) -> Verdict:
        checks, settings = (Check("a", outcome, "1 of 2"),), {"seed": 3}
        scores = tuple(SCORES), (SCORES[0],)
        return Verdict("ResNet", "Median", "CIFAR-10", 8, runs, 200, *scores, checks, settings, tmp_path, "t", report)

    sound = verdict("inconclusive", None)
    assert sound.strongest == SCORES[1]
    written = json.loads(sound.to_json())
    assert written == {
        "classifier": "ResNet",
        "purifier": "Median",
        "dataset": "CIFAR-10",
        "eps": 8,
        "runs": 1,
        "images": 200,
        "defended": written["defended"],
        "static": written["defended"][:1],
        "checks": [{"name": "a", "outcome": "inconclusive", "numbers": "1 of 2"}],
        "settings": {"seed": 3},
        "out": str(tmp_path),
        "table": "t",
        "report": None,
        "sound": True,
    }
    assert written["defended"][1]["queries"] == [12.5, 100]
    lines = str(sound).splitlines()
    assert lines[0] == "CIFAR-10: ResNet behind Median, eps 8, 200 images; not random: one run"
    begins = " ".join(line.split()[0] for line in lines if line)
    assert begins == "CIFAR-10: Right, Clean BPDA These ResNet Clean Sanity inconclusive:"
    failed = verdict("failed", tmp_path / "report.html", 10)
    assert not failed.sound
    told = json.loads(failed.to_json())
    assert (told["report"], told["sound"]) == (str(tmp_path / "report.html"), False)
    assert str(failed).splitlines()[0].endswith("200 images; 10 runs")


def test_a_failed_check_is_warned_of() -> None:
    passed, failed = Check("a", "passed", "1 of 2"), Check("b", "failed", "2 of 2")
    assert check_lines([passed]) == ["Sanity checks", "  passed: a (1 of 2)"]
    *lines, warning = check_lines([passed, failed])
    assert lines[1:] == ["  passed: a (1 of 2)", "  failed: b (2 of 2)"]
    assert warning.startswith("A check failed")


def test_scores_of_a_row_are_those_of_its_judged_cells() -> None:
    judged = Cell.counted("a", "x", 8, 3, 10, average=0.4, worst=2, queries=(1.5, 4), gradients=(1.0, 1), seconds=2.0)
    cells = [dataclasses.replace(judged, column="y", worst=0), judged, Cell.counted("a", "z", 8, 5, 10)]
    cells.append(dataclasses.replace(judged, row="b"))
    columns = [Column("x", "X"), Column("y", "Y"), Column("z", "Z")]
    row = Row("a", "net", "none")
    table = Table("t", "t", "", "d", 10, {}, columns, [row], cells, [], {}, {}, [], True)
    assert row_scores(table, row) == [
        Score("X", 10, 0.4, 2, 3, (1.5, 4), (1.0, 1), 2.0),
        Score("Y", 10, 0.4, 0, 3, (1.5, 4), (1.0, 1), 2.0),
    ]
    assert Score.of("Z", cells[2]) == Score("Z", 10, 0.5, 5, 5)
