"""The tables of results in the documents are those of the files in bench/results."""

import dataclasses

from support.helpers import SOURCE, bench_script

from pxfast.evaluation.results import read_table

script = bench_script("scripts/result_tables.py")
DOCUMENT = SOURCE / "docs" / "results.md"


def test_the_document_is_as_it_would_be_written() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert script["BLOCK"].search(text)
    assert script["renewed"](text) == text, "run bench/scripts/result_tables.py"


def test_a_table_has_our_numbers_and_the_published_ones() -> None:
    table = read_table(SOURCE / "bench" / "results" / "table2-cifar10.json")
    lines = script["markdown"](table).splitlines()
    purified = next(i for i, line in enumerate(lines) if line.startswith("| ResNet, Normal + PixelDefend |"))
    cell = table.cell("resnet-purified", "bim", 8)
    assert cell is not None
    assert f"/ {100 * cell.accuracy:.0f} /" in lines[purified]
    assert lines[purified + 1].startswith("| published | 85 | 82 / 83 / 84 | 73 / 46 / 24 | 71 / 46 / 25 |")
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    without = dataclasses.replace(table, cells=[each for each in table.cells if "vgg" not in each.row])
    assert "VGG" in "".join(lines)
    assert "VGG" not in script["markdown"](without), "a row without a cell is left out"


def test_a_table_of_attacks_without_a_bound_names_no_eps() -> None:
    table = read_table(SOURCE / "bench" / "results" / "table2-cifar10.json")
    unbounded = dataclasses.replace(
        table, cells=[dataclasses.replace(cell, eps=None) for cell in table.cells if cell.eps in (None, 8)]
    )
    assert script["markdown"](unbounded).splitlines()[-1].startswith("1,000 test images, 95 % intervals of at most ")


def test_a_table_with_many_columns_has_them_as_rows() -> None:
    lines = script["markdown"](read_table(SOURCE / "bench" / "results" / "reproduction-cifar10.json")).splitlines()
    assert lines[0] == "| | ResNet-62, Normal | ResNet-62, Normal + PixelDefend | published |"
    assert "| Contrast reduction | 9 | 11 | 87 |" in lines


def test_the_widest_interval_is_not_rounded_down() -> None:
    table = read_table(SOURCE / "bench" / "results" / "reproduction-cifar10.json")
    bound = float(script["markdown"](table).partition("at most ")[2].split()[0])
    assert all(100 * side <= bound for cell in table.cells for side in script["sides"](cell))
