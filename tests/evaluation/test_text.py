"""A table as text, by hand."""

from __future__ import annotations

import dataclasses

from pxfast.evaluation.results import Cell, Check, Column, Row, Table
from pxfast.evaluation.text import table_text

CELLS = [
    Cell.counted("a", "clean", None, 450, 500, published=92.0),
    Cell.counted("a", "fgsm", 2, 400, 500),
    Cell.counted("a", "fgsm", 8, 71, 500, published=15.0),
    Cell.counted("a", "strongest", 2, 400, 500, notes="FGSM"),
    Cell.counted("a", "strongest", 8, 71, 500, notes="FGSM; BIM is missing"),
]
TABLE = Table(
    name="t",
    title="CIFAR-10",
    caption="",
    dataset="cifar10",
    images=500,
    source={},
    columns=[Column("clean", "Clean"), Column("fgsm", "FGSM"), Column("strongest", "Strongest")],
    rows=[Row("a", "ResNet", "Normal"), Row("b", "VGG", "BIM", "no classifier")],
    cells=CELLS,
    models=[],
    settings={},
    machine={},
    rates=[],
    finished=False,
)


def test_ours_above_the_published_ones_and_how_far_the_strongest_is_known() -> None:
    """Wilson's intervals: 0.7977 ± 0.0350 of 400 of 500, 0.1447 ± 0.0306 of 71 of 500."""
    assert [" ".join(line.split()) for line in table_text(TABLE).splitlines()] == [
        "CIFAR-10; 500 images",
        "Accuracy in %; below it the published one. Several numbers: eps 2/8.",
        "",
        "Clean FGSM Strongest",
        "Normal ours 90 80/14 80/14",
        "ResNet paper 92 -/15",
        "",
        "Strongest attack, % (95 % interval) eps 2 eps 8",
        "ResNet, Normal 80.0 (76-83) FGSM 14.2 (11-18) FGSM so far",
        "left out: VGG, BIM: no classifier",
        "The table is not finished: not every cell is there.",
    ]


def test_intervals_stand_where_nothing_is_published_and_columns_below_each_other() -> None:
    cells = [dataclasses.replace(cell, published=None) for cell in CELLS if cell.eps != 2]
    text = table_text(dataclasses.replace(TABLE, cells=cells, rows=TABLE.rows[:1], finished=True))
    _, below, _, labels, ours, intervals, *_ = text.splitlines()
    assert below == "Accuracy in %; below it its 95 % interval."
    assert ours.split() == ["Normal", "90", "14", "14"]
    assert intervals.split() == ["ResNet", "87-92", "11-18", "11-18"]
    for label, numbers in (("Clean", ("90", "87-92")), ("FGSM", ("14", "11-18"))):
        place = labels.index(label)
        assert ours[place:].startswith(numbers[0])
        assert intervals[place:].startswith(numbers[1])
    assert "not finished" not in text


def test_a_strongest_attack_that_is_missing_leaves_its_place_empty() -> None:
    cells = [CELLS[4], dataclasses.replace(CELLS[3], row="b")]
    rows = [TABLE.rows[0], Row("b", "VGG", "BIM")]
    lines = table_text(dataclasses.replace(TABLE, cells=cells, rows=rows)).splitlines()
    head, first, second = (next(line for line in lines if line.startswith(each)) for each in ("Strong", "ResN", "VGG,"))
    assert first.index("14.2 (11-18)") == head.index("eps 8")
    assert second.index("80.0 (76-83)") == head.index("eps 2")
    assert " ".join(second.split()) == "VGG, BIM 80.0 (76-83) FGSM"


def test_columns_that_do_not_fit_stand_below_and_long_labels_are_broken() -> None:
    columns = [Column(f"c{i}", f"attack number {i} of many") for i in range(20)]
    cells = [Cell.counted("a", column.name, 8, i, 20) for i, column in enumerate(columns)]
    table = dataclasses.replace(TABLE, columns=columns, cells=cells, rows=TABLE.rows[:1], finished=True)
    lines = table_text(table).splitlines()
    assert max(map(len, lines)) <= 120
    rows = [line.split()[1:] for line in lines if line.startswith("Normal")]
    # nine columns of six characters, two spaces apart, are 70, and the labels 47; ten would not fit
    assert rows == [[str(5 * i) for i in range(first, min(first + 9, 20))] for first in (0, 9, 18)]
    assert [line.split() for line in lines if "attack" in line] == [9 * ["attack"], 9 * ["attack"], 2 * ["attack"]]


def test_a_judged_row_has_its_checks_below() -> None:
    judged = Cell.counted("a", "fgsm", 8, 71, 500, average=0.2, worst=50)
    row = dataclasses.replace(TABLE.rows[0], checks=[Check("a check", "passed", "1 of 2")])
    text = table_text(dataclasses.replace(TABLE, cells=[judged], rows=[row], finished=True))
    assert " ".join(text.split("ResNet, Normal")[1].splitlines()[2].split()) == "FGSM 20.0 10.0 14.2 11.4-17.5"
    assert text.splitlines()[-2:] == ["Sanity checks", "  passed: a check (1 of 2)"]
