"""The files of an evaluation, and Wilson's interval."""

from __future__ import annotations

import dataclasses
import json

import pytest

from pxfast.evaluation.results import (
    Cell,
    Column,
    Figure,
    Row,
    Table,
    figure_path,
    read_figures,
    read_table,
    read_tables,
    table_path,
    wilson_interval,
    write_figure,
    write_table,
)


def a_table(**changes) -> Table:
    table = Table(
        name="table2",
        title="CIFAR-10",
        caption="accuracy",
        dataset="cifar10",
        images=500,
        source={"title": "a paper", "where": "Table 2"},
        columns=[Column("fgsm", "FGSM"), Column("cw", "CW", "of the code")],
        rows=[Row("resnet-normal", "ResNet", "Normal"), Row("resnet-bim", "ResNet", "BIM", "no classifier")],
        cells=[Cell.counted("resnet-normal", "fgsm", 8, 71, 500, seconds=12.5, published=15.0)],
        models=[],
        settings={"purification eps": 16},
        machine={"cores": 2},
        rates=[],
        finished=False,
    )
    return dataclasses.replace(table, **changes)


@pytest.mark.parametrize("images", [1, 7, 200, 10_000])
@pytest.mark.parametrize("confidence", [0.95, 0.5, 0.999])
def test_the_interval_is_wilsons(images, confidence):
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed (pip install 'pxfast[evaluate]')")
    for correct in sorted({0, 1, images // 3, images - 1, images}):
        expected = stats.binomtest(correct, images).proportion_ci(confidence, method="wilson")
        assert wilson_interval(correct, images, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(
    ("correct", "images", "confidence"), [(1, 0, 0.95), (0, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0)]
)
def test_an_impossible_count_is_refused(correct, images, confidence):
    with pytest.raises(ValueError, match=r"expected|confidence"):
        wilson_interval(correct, images, confidence)


def test_a_table_comes_back_as_it_went(tmp_path):
    table = a_table()
    path = write_table(tmp_path, table)
    assert path == table_path(tmp_path, "table2")
    assert read_table(path) == table
    assert read_tables(tmp_path) == [table]
    assert read_table(path).cell("resnet-normal", "fgsm", 8).accuracy == 71 / 500
    assert read_table(path).cell("resnet-normal", "fgsm", 2) is None
    raw = json.loads(path.read_text())
    assert (raw["format"], raw["version"], raw["rows"][1]["missing"]) == ("pxfast-table", 1, "no classifier")
    finished = dataclasses.replace(table, finished=True)
    write_table(tmp_path, finished)
    assert read_tables(tmp_path) == [finished]
    assert [file.name for file in path.parent.iterdir()] == ["table2.json"]


def test_a_figure_comes_back_as_it_went(tmp_path):
    figure = Figure("roc", "ROC", "caption", "cifar10", {"where": "Figure 3"}, "roc.png", "curves", {}, {"AUC": 0.9})
    assert write_figure(tmp_path, figure) == figure_path(tmp_path, "roc")
    assert read_figures(tmp_path) == [figure]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "pxfast-figure", "version": 1}', '{"format": "pxfast-table"}'])
def test_a_file_of_another_kind_is_named(tmp_path, text):
    path = tmp_path / "table2.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"table2\.json"):
        read_table(path)


@pytest.mark.parametrize("field", ["cells", "models"])
def test_a_table_without_a_field_is_refused(tmp_path, field):
    path = write_table(tmp_path, a_table())
    raw = json.loads(path.read_text())
    del raw[field]
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=field):
        read_table(path)


@pytest.mark.parametrize(
    ("field", "value"), [("correct", 5), ("accuracy", 0.2), ("interval", [0.1, 0.9]), ("images", 0)]
)
def test_a_cell_that_contradicts_itself_is_refused(tmp_path, field, value):
    path = write_table(tmp_path, a_table())
    raw = json.loads(path.read_text())
    raw["cells"][0][field] = value
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"table2\.json: the cell of .* (counts|interval)"):
        read_table(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("worst", 501, "impossible average, or worst case"),
        ("worst", -1, "impossible average, or worst case"),
        ("average", 1.01, "impossible average, or worst case"),
        ("average", -0.01, "impossible average, or worst case"),
        ("published", 100.5, "impossible published accuracy, or time"),
        ("published", -0.5, "impossible published accuracy, or time"),
        ("seconds", -1.0, "impossible published accuracy, or time"),
        ("seconds", 1e12, "impossible published accuracy, or time"),
        ("row", "nobody", "no row or column"),
        ("column", "nothing", "no row or column"),
    ],
)
def test_a_cell_that_can_not_be_is_refused(tmp_path, field, value, message):
    path = write_table(tmp_path, a_table())
    raw = json.loads(path.read_text())
    raw["cells"][0][field] = value
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=message):
        read_table(path)


def test_the_ends_of_the_ranges_are_read(tmp_path):
    whole = Cell.counted("resnet-normal", "fgsm", 8, 500, 500, published=100.0, seconds=0.0, average=1.0, worst=500)
    none = Cell.counted("resnet-normal", "cw", 8, 0, 500, published=0.0, average=0.0, worst=0)
    single = Cell.counted("resnet-bim", "cw", 8, 1, 1)
    table = a_table(cells=[whole, none, single])
    assert read_table(write_table(tmp_path, table)) == table
    assert (whole.accuracy, whole.interval[1], none.accuracy, none.interval[0]) == (1.0, 1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 0}, "0 images"),
        ({"columns": [Column("fgsm", "FGSM"), Column("fgsm", "again")]}, "once"),
        ({"rows": 2 * [Row("resnet-normal", "ResNet", "Normal")]}, "once"),
        ({"models": [{"role": "classifier"}]}, "models"),
        ({"rates": [{"what": "fgsm", "images_per_second": "many", "images": 3}]}, "rates"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(tmp_path, changes, message):
    path = write_table(tmp_path, a_table(**changes))
    with pytest.raises(ValueError, match=message):
        read_table(path)


def test_numbers_that_are_none_are_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_table(tmp_path, a_table(settings={"rate": float("nan")}))
    assert not list(tmp_path.rglob("*.json"))
