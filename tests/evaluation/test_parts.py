"""The parts of an evaluation: its store, hashes of code, tables as files and as text."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from pxfast.evaluation import stages
from pxfast.evaluation.defences import Context, describe
from pxfast.evaluation.networks import ModelFiles, Models
from pxfast.evaluation.results import Cell, Column, Row, Table
from pxfast.evaluation.runners import make_runner
from pxfast.evaluation.specification import TABLES, load_table, parse_table
from pxfast.evaluation.text import table_text
from pxfast.tensors.store import Entry, Store, canonical, digest

# printed so in the paper, and noted beside the numbers: the strongest attack of the row is not its minimum
MISPRINTED = {("table2", "resnet-fgsm-purified"): (81, 68, 56)}
COLUMN = {"name": "fgsm", "label": "FGSM", "attack": "fgsm"}
ROW = {"name": "normal", "network": "ResNet", "technique": "Normal", "architecture": "resnet62"}
TABLE = {
    "name": "mine",
    "title": "Mine",
    "dataset": "cifar10",
    "images": 10,
    "attack_eps": [2, 8],
    "columns": [COLUMN],
    "rows": [ROW],
}


def test_a_store_keeps_what_it_is_given(tmp_path) -> None:
    store, recipe = Store(tmp_path / "store"), {"stage": "attack", "eps": 8, "options": {"steps": 3}}
    assert store.read(recipe) is None
    entry = Entry({"images": torch.arange(12, dtype=torch.uint8).view(3, 1, 2, 2), "wrong": torch.tensor([True])}, 0.1)
    store.write(recipe, entry)
    found = store.read({"options": {"steps": 3}, "eps": 8, "stage": "attack"})
    assert found.seconds == 0.1
    assert all(torch.equal(found.tensors[name], entry.tensors[name]) for name in entry.tensors)
    assert store.read({**recipe, "eps": 9}) is None
    path = store.path(recipe)
    store.path({**recipe, "eps": 9}).parent.mkdir(exist_ok=True)
    store.path({**recipe, "eps": 9}).write_bytes(path.read_bytes())
    assert store.read({**recipe, "eps": 9}) is None
    assert [file.name for file in path.parent.iterdir() if file.name.startswith(".")] == []


def test_recipes_are_json_and_digests_tell_tensors_apart() -> None:
    assert canonical({"b": 1, "a": [None, 2.5]}) == '{"a":[null,2.5],"b":1}'
    for wrong in ({"a": float("nan")}, {"a": torch.zeros(1)}):
        with pytest.raises((TypeError, ValueError)):
            canonical(wrong)
    values = torch.arange(6, dtype=torch.int64)
    assert digest(values) == digest(values.clone())
    others = [values.view(2, 3), values.int(), values.flip(0), torch.zeros(0)]
    assert len({digest(each) for each in (values, *others)}) == 5
    assert digest(values.view(2, 3).t()) == digest(values.view(2, 3).t().contiguous())


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_of_the_package_are_whole(name: str) -> None:
    table = load_table(name)
    assert table.name == name
    assert {"title", "where"} <= set(table.source)
    context = Context("0" * 64, 3, engine="reference")
    for row in table.rows:
        for defence in row.defences:
            try:
                assert describe(defence, context)["kind"] == defence["kind"]
            except FileNotFoundError:  # a score network is not shipped for all images
                assert defence["kind"] == "adp"
        for column in table.columns:
            for eps in column.eps(table.attack_eps):
                published = table.published(row, column, eps)
                assert published is None or 0 <= published <= 100


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_the_papers_strongest_attacks_are_its_minima(name: str) -> None:
    table = load_table(name)
    assert len(table.rows) == 11
    assert [column.name for column in table.columns] == ["clean", "rand", "fgsm", "bim", "deepfool", "cw", "strongest"]
    for row in table.rows:
        assert set(row.published) == {column.name for column in table.columns}
        attacks = [row.published[column.name] for column in table.columns if column.attack is not None]
        least = tuple(min(values) for values in zip(*attacks, strict=True))
        if (name, row.name) in MISPRINTED:
            assert least == MISPRINTED[name, row.name] != row.published["strongest"]
            assert "69 is printed" in row.published_notes["strongest"]
        else:
            assert least == row.published["strongest"], row.name


def test_the_papers_settings() -> None:
    first, second = load_table("table1"), load_table("table2")
    assert (first.dataset, first.attack_eps, second.dataset, second.attack_eps) == (
        "fashion-mnist",
        (8, 25),
        "cifar10",
        (2, 8, 16),
    )
    for table, eps, threshold in ((first, 32, 1.8), (second, 16, 3.2)):
        purified = {row.name: row.defences[0] for row in table.rows if row.name.endswith(("purified", "adaptive"))}
        assert len(purified) == 4
        assert {defence["eps"] for defence in purified.values()} == {eps}
        assert purified["resnet-fgsm-adaptive"]["threshold"] == threshold
    # where paper and poster differ, the paper stands
    squeezed = next(row for row in second.rows if row.name == "resnet-fgsm-squeezing")
    assert squeezed.published["fgsm"] == (73, 67, 55)
    assert next(row for row in second.rows if row.name == "resnet-bim").published["cw"] == (76, 42, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "unknown colour"),
        ({"title": None}, "lacks title"),
        ({"images": 0}, "images must be positive"),
        ({"attack_eps": []}, "column 'fgsm' needs attack_eps"),
        ({"attack_eps": [2, 2]}, "each eps must be there once"),
        ({"attack_eps": [256]}, "eps must be an integer"),
        ({"rows": []}, "at least one row"),
        ({"columns": [COLUMN, COLUMN]}, "each column must be there once"),
        ({"columns": [{**COLUMN, "attack": "zoo"}]}, "column 'fgsm': unknown attack 'zoo'"),
        ({"columns": [{**COLUMN, "options": {"speed": 1}}]}, "column 'fgsm': .*has no option .speed."),
        ({"columns": [{**COLUMN, "options": {"label_rule": "true"}}]}, "column 'fgsm': label_rule must be one of"),
        ({"columns": [{**COLUMN, "strongest": True}]}, "can't have one of its own"),
        ({"columns": [COLUMN, {**COLUMN, "name": "bim"}]}, "each label must be there once, got 'FGSM' twice"),
        ({"columns": [{**COLUMN, "label": "FGSM; one step"}]}, "column 'fgsm': its label must have no semicolon"),
        ({"rows": [{**ROW, "architecture": "resnet"}]}, "unknown architecture 'resnet'"),
        ({"rows": [{**ROW, "training": "none"}]}, "training must be one of normal"),
        ({"rows": [{**ROW, "published": {"bim": [1, 2]}}]}, "unknown column 'bim'"),
        ({"rows": [{**ROW, "published": {"fgsm": [1, 2, 3]}}]}, "3 numbers for 2 cells"),
        ({"rows": [{**ROW, "published": {"fgsm": [1, 101]}}]}, "accuracies are in %"),
        ({"rows": [{key: value for key, value in ROW.items() if key != "network"}]}, "row 'normal' lacks network"),
        ({"name": "../mine"}, r"the name of a table must .* got '\.\./mine'"),
        ({"name": "/tmp/mine"}, "the name of a table must"),
        ({"name": ".mine"}, "the name of a table must"),
        ({"name": "a" * 101}, "the name of a table must"),
        ({"name": "a\n"}, "the name of a table must"),
        ({"name": 3}, "table 3: name must be a text, got 3"),
        ({"title": ["a"]}, "title must be a text"),
        ({"images": True}, "images must be an integer, got True"),
        ({"images": 2.5}, "images must be an integer, got 2.5"),
        ({"images": 10**12}, "images must be positive, at most"),
        ({"seed": "a"}, "seed must be an integer, got 'a'"),
        ({"seed": -1}, "seed must be an integer in 0"),
        ({"attack_eps": 8}, "attack_eps must be a list, got 8"),
        ({"attack_eps": [2.5]}, r"attack_eps\[0\] must be an integer, got 2.5"),
        ({"source": "a paper"}, "source must be a table, got 'a paper'"),
        ({"source": {"title": 3}}, r"source\.title must be a text, got 3"),
        ({"rows": {"name": "normal"}}, r"rows must be tables, written \[\[rows\]\]"),
        ({"columns": ["fgsm"]}, r"columns must be tables"),
        ({"columns": [{**COLUMN, "name": "a,b"}]}, "the name of a column must"),
        ({"columns": [{**COLUMN, "options": ["a"]}]}, "column 'fgsm': options must be a table"),
        ({"columns": [{**COLUMN, "knows_defences": "no"}]}, "knows_defences must be true or false, got 'no'"),
        ({"columns": [{"name": "clean", "label": "C", "options": {"a": 1}}]}, "no attack to take them"),
        ({"rows": [{**ROW, "name": "../x"}]}, "the name of a row must"),
        ({"rows": [{**ROW, "defences": "purifier"}]}, "row 'normal': defences must be a list, got 'purifier'"),
        ({"rows": [{**ROW, "defences": ["purifier"]}]}, r"defences\[0\] must be a table, got 'purifier'"),
        ({"rows": [{**ROW, "defences": [{"kind": "lock"}]}]}, "row 'normal': .*unknown kind of defence 'lock'"),
        ({"rows": [{**ROW, "defences": [{"kind": "purifier", "eps": "8"}]}]}, "row 'normal': .*eps must be an integer"),
        ({"rows": [{**ROW, "defences": [{"kind": "adp", "sigma": True}]}]}, "sigma must be a number"),
        ({"rows": [{**ROW, "defences": [{"kind": "adp", "sigma": 0.1, "model": 3}]}]}, "model must be a text"),
        ({"rows": [{**ROW, "published": {"fgsm": "73"}}]}, r"published\.fgsm\[0\] must be a number, got '73'"),
        ({"rows": [{**ROW, "published": {"fgsm": [1, float("nan")]}}]}, "accuracies are in %"),
        ({"rows": [{**ROW, "published": {"fgsm": [1, 10**400]}}]}, "must be a number, got an integer of 1329"),
        ({"rows": [{**ROW, "published": 3}]}, "published must be a table, got 3"),
        ({"rows": [{**ROW, "published_notes": {"x": "a"}}]}, "notes on numbers of an unknown column 'x'"),
    ],
)
def test_a_wrong_table_says_what_is_wrong(changes, message) -> None:
    values = {key: value for key, value in {**TABLE, **changes}.items() if value is not None}
    with pytest.raises((TypeError, ValueError), match=message):
        parse_table(values)


def test_a_wrong_file_is_named(tmp_path) -> None:
    dotted = ".".join("a" * 60_000)  # tomllib takes the square of this
    for text in ("[", 'name = "mine"', "a = " + "[" * 100_000, "a = 1\n" * 50_000, f"{dotted} = 1", "a = 1e", "\udcff"):
        (tmp_path / "mine.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(ValueError, match=r"mine\.toml"):
            load_table(tmp_path / "mine.toml")
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(ValueError, match=r"pipe\.toml: expected a file, found a pipe"):
        load_table(tmp_path / "pipe.toml")
    with pytest.raises(FileNotFoundError, match="tables of the package: table1, table2, reproduction"):
        load_table("table3")


@pytest.mark.parametrize(
    ("defence", "message"),
    [
        ({"kind": "prayer"}, "unknown kind of defence 'prayer'; known: purifier, feature-squeezing"),
        ({"kind": "purifier"}, "a purifier takes eps, adaptive and threshold, got nothing"),
        ({"kind": "purifier", "eps": 256}, "eps must be"),
        ({"kind": "purifier", "eps": 8, "colours": 3}, "a purifier takes"),
        ({"kind": "purifier", "eps": 8, "adaptive": "pixel"}, "adaptive must be"),
        ({"kind": "feature-squeezing", "colours": 1}, "colours must be"),
        ({"kind": "feature-squeezing", "eps": 1}, "eps"),
    ],
)
def test_a_wrong_defence_is_refused(defence, message) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        describe(defence, Context("0" * 64, 1, engine="reference"))


def test_an_unknown_runner_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown runner 'cloud'; known: local"):
        make_runner("cloud", None, "cpu")


def test_the_largest_table_fits_in_120_columns() -> None:
    specification = load_table("table2")
    cells = [
        Cell.counted(row.name, column.name, eps, 497, 500, published=specification.published(row, column, eps))
        for row in specification.rows[1:]
        for column in specification.columns
        for eps in column.eps(specification.attack_eps)
    ]
    table = Table(
        name="table2",
        title=specification.title,
        caption="",
        dataset="cifar10",
        images=500,
        source=specification.source,
        columns=[Column(column.name, column.label) for column in specification.columns],
        rows=[Row(row.name, row.network, row.technique) for row in specification.rows],
        cells=cells,
        models=[],
        settings={},
        machine={},
        rates=[],
        finished=False,
    )
    text = table_text(
        dataclasses.replace(table, rows=[dataclasses.replace(table.rows[0], missing="why"), *table.rows[1:]])
    )
    assert max(map(len, text.splitlines())) <= 120
    assert "left out: ResNet, Normal: why" in text
    assert "89/88/80" in text  # VGG under RAND, published
    assert "99.4 (98-100)" in text
    assert "not finished" in text

    first, second = table.columns[1].name, table.columns[2].name
    named = [Column("clean", "Clean"), Column(first, "BPDA, steps 3"), Column(second, "BPDA, steps 6")]
    long = dataclasses.replace(table.rows[1], technique="PixelDefend, eps 8 + Feature Squeezing of eight colours")
    cells = [each for each in table.cells if each.column in ("clean", first, second)]
    found = table_text(dataclasses.replace(table, columns=named, rows=[long], cells=cells))
    heading = [line.split() for line in found.splitlines() if "BPDA" in line or "steps" in line]
    assert heading == [["Clean", "BPDA,", "BPDA,"], ["steps", "3", "steps", "6"]], "no label is cut"
    assert f"{long.technique} ours" in found


def test_predictions_fill_no_batch_in_front_of_a_random_defence(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Counted(nn.Module):
        stochastic, runs = True, 3

        def draw(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
            asked.append(len(images))
            return images

    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    monkeypatch.setattr(stages.defences, "build", lambda description, models: Counted().eval())
    models = Models(ModelFiles({}, {}), "cpu", None)
    monkeypatch.setattr(models, "classifier", lambda key: network)
    images = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
    stages.predict(models, {"classifier": "", "defences": [{}]}, {"images": images})
    assert sum(asked) == 5 * 3
