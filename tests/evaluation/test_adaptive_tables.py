"""Tables that the protocol judges: what their cells are, that they go on where they were, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from support.evaluation_folder import World, entries, make_world, timeless, tiny_classifier
from torch import Tensor, nn

import pxfast
from pxfast.attacks import BPDA, BlindPGD, find_attack
from pxfast.classifiers import load_classifier
from pxfast.cli.options import parse_names
from pxfast.data.datasets import first_images, load_dataset
from pxfast.defences import Defended
from pxfast.evaluation import evaluate_table, load_table, parse_table, read_table, render_report, table_text
from pxfast.evaluation.defences import DEFENCES, DefenceKind
from pxfast.evaluation.preparation import Settings
from pxfast.evaluation.request import PROTOCOL, requested_columns
from pxfast.evaluation.results import Check, Table, table_path, write_table
from pxfast.evaluation.specification import TableSpecification
from pxfast.tensors.seeds import image_seeds, standard_normal
from pxfast.tensors.store import Store

TABLE = """
name = "judged"
title = "Attacks that know the defence"
dataset = "{data}"
images = 6
attack_eps = [8]
runs = 3
columns = [
  {{ name = "natural", label = "Natural" }},
  {{ name = "blind-pgd", label = "Blind", attack = "blind-pgd", options = {{ steps = 2 }} }},
  {{ name = "bpda", label = "BPDA", attack = "bpda", options = {{ steps = 2 }}, knows_defences = true }},
  {{ name = "eot", label = "EOT", attack = "bpda-eot", options = {{ steps = 1, draws = 2 }}, knows_defences = true }},
  {{ name = "full", label = "Full", attack = "full-gradient", options = {{ steps = 1 }}, knows_defences = true }},
  {{ name = "strongest", label = "Strongest", strongest = true }},
]

[source]
title = "a paper"
where = "Table 9"

[[rows]]
name = "none"
network = "ResNet"
technique = "No defence"
architecture = "resnet62"

[[rows]]
name = "pixeldefend"
network = "ResNet"
technique = "PixelDefend"
architecture = "resnet62"
defences = [{{ kind = "purifier", eps = 16 }}]
published = {{ natural = 80, bpda = 9 }}
published_notes = {{ bpda = "without restarts" }}

[[rows]]
name = "shake"
network = "ResNet"
technique = "Noise"
architecture = "resnet62"
defences = [{{ kind = "shake" }}]

[[rows]]
name = "absent"
network = "ResNet"
technique = "ADP"
architecture = "resnet62"
defences = [{{ kind = "adp", sigma = 0.1, model = "absent.safetensors" }}]
"""


class Shake(nn.Module):
    """Noise from the seeds, which can be differentiated."""

    stochastic, runs = True, 1

    def draw(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        return self.differentiate(images, seeds)

    def differentiate(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        return (images + 0.1 * standard_normal(seeds, images)).clamp(0.0, 1.0)

    def forward(self, images: Tensor) -> Tensor:
        return self.draw(images, image_seeds(images, 0))


SHAKE = DefenceKind(
    check=lambda options: None,
    describe=lambda options, context: {},
    build=lambda description, models: Shake(),
    kept=False,
    options=(),
    example=Shake,
)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """A random purifier that costs nothing, and sanity checks of few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEFENCES, "shake", SHAKE)
        patch.setattr("pxfast.evaluation.judge.CHECK_STEPS", 3)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    world = make_world(tmp_path_factory.mktemp("world"))
    table = world.table.parent / "judged.toml"
    table.write_text(TABLE.format(data=world.data))
    return dataclasses.replace(world, table=table)


def evaluate(world: World, out: Path, specification: TableSpecification | None = None, **chosen) -> Table:
    settings = Settings(classifiers=world.classifiers, model=world.model, train=False, shard=4)
    return evaluate_table(specification or load_table(world.table), None, out, settings, **chosen)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> tuple[Table, Path]:
    out = tmp_path_factory.mktemp("whole")
    return evaluate(world, out), out


def test_a_rows_number_is_of_every_image_under_its_strongest_attack(world, whole) -> None:
    table, _ = whole
    images, labels = (first_images(world.data, part, 6) for part in load_dataset(world.data, train=False))
    classifier = load_classifier(world.classifiers / "data-resnet62-normal.safetensors")
    defended = Defended(classifier, [pxfast.Purifier(16, model=world.model)])
    attacked = {
        "natural": images,
        "blind-pgd": BlindPGD(steps=2)(classifier, images, labels, 8),
        "bpda": BPDA(steps=2)(defended, images, labels, 8),
    }
    with torch.no_grad():
        right = {column: defended(x).argmax(1) == labels for column, x in attacked.items()}
    cells = {cell.column: cell for cell in table.cells if cell.row == "pixeldefend"}
    assert {name: cells[name].correct for name in right} == {name: int(each.sum()) for name, each in right.items()}
    assert cells["strongest"].correct == int(torch.stack(list(right.values())).all(dim=0).sum())
    assert set(cells) == {*right, "strongest"}, "it is not random, and can't be differentiated"
    assert (cells["bpda"].published, cells["bpda"].published_note) == (9, "without restarts")
    assert cells["bpda"].queries[1] <= 2
    assert cells["natural"].queries is None


def test_every_row_is_what_the_referee_says(world, whole, tmp_path) -> None:
    table, _ = whole
    images, labels = (first_images(world.data, part, 6) for part in load_dataset(world.data, train=False))
    classifier = load_classifier(world.classifiers / "data-resnet62-normal.safetensors")
    attacks = ["blind-pgd:steps=2", "bpda:steps=2", "bpda-eot:steps=1,draws=2", "full-gradient:steps=1"]
    rest = {"attacks": attacks, "eps": 8, "runs": 3, "report": False, "progress": False, "batch_size": 4}
    verdict = pxfast.referee(classifier, Shake().eval(), (images, labels), out=tmp_path, **rest)
    for row, scores in (("shake", verdict.defended), ("none", verdict.static)):
        cells = [cell for cell in table.cells if cell.row == row]
        assert [(each.correct, each.average, each.worst, each.queries, each.gradients) for each in cells] == [
            (each.majority, each.average, each.worst, each.queries, each.gradients) for each in scores
        ]
    (checks,) = (row.checks for row in table.rows if row.name == "shake")
    assert [check.outcome for check in checks] == [check.outcome for check in verdict.checks]
    assert table.settings["runs"] == {"none": 1, "pixeldefend": 1, "shake": 3, "absent": 3}
    assert table.settings["left out"]["pixeldefend"] == {
        "eot": "the purifier is not random: this is bpda",
        "full": table.settings["left out"]["pixeldefend"]["full"],
    }
    assert set(table.settings["left out"]["none"]) == {"eot", "full"}
    assert {row.name: row.missing for row in table.rows if row.missing} == {
        "absent": "there is no score network absent.safetensors"
    }
    assert table.finished


def test_a_second_run_computes_nothing_and_other_rows_join(world, whole, tmp_path) -> None:
    table, out = whole
    before = entries(out)
    assert timeless(evaluate(world, out)) == timeless(table)
    assert entries(out) == before
    (tmp_path / "store").symlink_to(out / "store")
    one = evaluate(world, tmp_path, rows=["pixeldefend"])
    assert {cell.row for cell in one.cells} == {"none", "pixeldefend"}
    assert not one.finished
    joined = evaluate(world, tmp_path, rows=["shake", "absent"])
    assert {**timeless(joined), "models": []} == {**timeless(table), "models": []}
    assert entries(out) == before
    quicker = evaluate(world, tmp_path, rows=["pixeldefend"], columns=["bpda:steps=1"])
    assert [column.name for column in quicker.columns] == ["natural", "bpda steps 1", "strongest"]
    assert {cell.row for cell in quicker.cells} == {"none", "pixeldefend"}, "a table of other attacks is another one"
    assert all(cell.published is None for cell in quicker.cells if cell.column != "natural")


def test_what_is_stopped_goes_on(world, whole, tmp_path, monkeypatch) -> None:
    """As a killed run does: what is in the store stays, and the table says that it is not finished."""
    table, _ = whole
    write, written = Store.write, []

    def stopped(self, *arguments):
        if len(written) == 20:
            raise KeyboardInterrupt
        written.append(1)
        return write(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            evaluate(world, tmp_path, rows=["shake"])
    before = entries(tmp_path)
    cut = read_table(table_path(tmp_path, "judged"))
    assert not cut.finished
    assert {cell.row for cell in cut.cells} == {"none"}
    assert "The table is not finished" in table_text(cut)
    assert "Not finished." in render_report(tmp_path)
    cells = timeless(evaluate(world, tmp_path, rows=["shake"]))["cells"]
    assert cells == [cell for cell in timeless(table)["cells"] if cell["row"] in ("none", "shake")]
    assert {name: entries(tmp_path)[name] for name in before} == before


def test_text_and_report_have_budgets_and_checks(world, whole, tmp_path) -> None:
    table, _ = whole
    write_table(tmp_path, table)
    text, page = table_text(table), render_report(tmp_path)
    for row in table.rows:
        for check in row.checks:
            assert f"  {check}" in text
            assert check.numbers in page.replace("&#34;", '"')
    assert "queries mean/most" in text
    assert "Runs and budgets" in page
    assert "ResNet, Noise; 3 runs" in page
    said = "chosen for each image (EOT and Full where there is a defence), PixelDefend takes"
    assert f"the strongest of Blind, BPDA, EOT and Full at eps 8, {said}" in page
    assert "left out: the purifier is not random: this is bpda" in page
    rows = [
        dataclasses.replace(row, checks=[Check("gradients are right", "failed", "<b> of 6")]) if row.checks else row
        for row in table.rows
    ]
    write_table(tmp_path, dataclasses.replace(table, rows=rows))
    page = render_report(tmp_path)
    assert page.count("a sanity check failed: gradients are right") == 2
    assert "leaves PixelDefend (a sanity check failed)" in page
    assert "&lt;b&gt; of 6" in page


def test_one_classifier_for_all_rows_and_one_to_transfer_from(world, tmp_path) -> None:
    other = tiny_classifier(3)
    found = evaluate(
        world, tmp_path, rows=["pixeldefend"], columns=["bpda"], classifier=other, surrogates={"a: copy": other}
    )
    transfer = found.cell("pixeldefend", "Transfer a copy", 8)
    assert transfer is not None
    assert found.cell("none", "Transfer a copy", 8) is None
    assert {row.network for row in found.rows} == {"ResNet"}
    images, labels = (first_images(world.data, part, 6) for part in load_dataset(world.data, train=False))
    right = int((other(images.float() / 255).argmax(1) == labels).sum())
    assert found.cell("none", "natural", None).correct == right
    assert [model["role"] for model in found.models] == ["density model", "classifier", "surrogate"]
    clean = {**BPDA_COLUMN, "label": "Clean"}  # as a score of every row is called
    twice = parse_table({**values_of(world), "columns": [*values_of(world)["columns"], clean]})
    with pytest.raises(ValueError, match="of different names, got 'Clean' twice"):
        evaluate(world, tmp_path, twice)


BPDA_COLUMN = {"name": "again", "label": "BPDA again", "attack": "bpda", "knows_defences": True}


def values_of(world: World) -> dict:
    """The table's TOML as values."""
    from pxfast.evaluation.specification import tomllib

    return tomllib.loads(world.table.read_text())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"runs": 0}, r"runs must be in 1\.\.10000, got 0"),
        ({"attack_eps": [4, 8]}, "a table with runs needs one attack_eps, got"),
        ({"columns": lambda given: given[:-1]}, "needs one column of the strongest attack, got 0"),
        ({"columns": lambda given: given[1:]}, "needs one column of clean images, got 0"),
        ({"columns": lambda given: [*given, {**BPDA_COLUMN, "attack": "lbfgs"}]}, "lbfgs has no eps"),
        (
            {"columns": lambda given: [*given, {"name": "fgsm", "label": "FGSM", "attack": "fgsm"}]},
            "every attack but blind-pgd is on the whole row: it needs knows_defences = true",
        ),
        ({"rows": lambda given: given[1:]}, "'pixeldefend': a table with runs needs a row of the same classifier"),
    ],
)
def test_tables_that_cannot_be_judged_are_refused(world, change, words) -> None:
    values = values_of(world)
    for name, value in change.items():
        values[name] = value(values[name]) if callable(value) else value
    with pytest.raises(ValueError, match=words):
        parse_table(values)


def test_wrong_requests_leave_nothing(world, tmp_path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="the protocol runs here: runner must be 'local', got 'ray'"):
        evaluate_table(load_table(world.table), None, out, Settings(runner="ray"))
    with pytest.raises(ValueError, match=r"no column 'sgd'; it has: natural, .*; another attack is written bpda:steps"):
        evaluate(world, out, columns=["sgd"])
    with pytest.raises(ValueError, match="needs an attack, got the columns natural, strongest alone"):
        evaluate(world, out, columns=["natural", "strongest"])
    with pytest.raises(ValueError, match="lbfgs has no eps"):
        evaluate(world, out, columns=["lbfgs"])
    with pytest.raises(ValueError, match="the table has no row 'other'"):
        evaluate(world, out, rows=["other"])
    with pytest.raises(ValueError, match="need a table with runs, and table1 has none"):
        evaluate(world, out, load_table("table1"), classifier=tiny_classifier(0))
    assert not out.exists()


def test_a_row_without_an_attack_has_clean_images_alone(world, tmp_path) -> None:
    table = evaluate(world, tmp_path, rows=["pixeldefend"], columns=["full"])
    assert {(cell.row, cell.column) for cell in table.cells} == {("none", "natural"), ("pixeldefend", "natural")}
    assert table.settings["left out"]["pixeldefend"]["strongest"] == "no attack is left"


def test_another_eps_has_no_published_numbers_of_attacks(world) -> None:
    table = load_table(world.table)
    assert table.at_eps(8) == table
    other = table.at_eps(4)
    assert other.attack_eps == (4,)
    assert [row.published for row in other.rows] == [{}, {"natural": (80,)}, {}, {}]
    assert not any(row.published_notes for row in other.rows)
    assert (
        load_table("table2").at_eps(16).rows[0].published["fgsm"] == load_table("table2").rows[0].published["fgsm"][-1:]
    )


def test_names_keep_their_options() -> None:
    assert parse_names("bpda:steps=2, spsa:steps=5,pairs=32,joint-score") == [
        "bpda:steps=2",
        "spsa:steps=5,pairs=32",
        "joint-score",
    ]


def test_the_tables_of_the_package_are_of_the_protocol() -> None:
    for name in ("adaptive", "adaptive-fashion-mnist"):
        table = load_table(name)
        ours = {column.name: (column.attack, column.options) for column in table.columns if column.attack}
        protocol = [(column.attack, column.options) for column in requested_columns(PROTOCOL) if column.attack]
        assert list(ours.values()) == protocol
        assert list(ours) == [attack for attack, _ in protocol]
        assert table.runs == 10
        assert {column.knows_defences for column in table.columns if column.attack not in (None, "blind-pgd")} == {True}
        assert all(find_attack(attack, **options).bounded for attack, options in ours.values())
    published = {row.name: row.published for row in load_table("adaptive").rows}
    assert set(published["adp-0.25"]) == {"natural", "blind-pgd", "bpda-eot", "joint-score", "joint-full", "spsa"}
    assert published["adp-0.25"]["bpda-eot"] == (70.01,)
    assert published["pixeldefend"]["bpda"] == (9,)
    fashion = load_table("adaptive-fashion-mnist")
    assert [row.name for row in fashion.rows] == list(published)
    assert not any(row.published for row in fashion.rows)


def command(world: World, out: Path, *words: object) -> list[str]:
    given = ["--images", 4, "--model", world.model, "--out", out, "--batch-size", 4, "--quiet", "--json", *words]
    return ["evaluate", "adaptive", *map(str, given)]


def test_the_command_judges_the_table(world, tmp_path, capsys, monkeypatch) -> None:
    from pxfast.cli.main import app

    load = load_table
    monkeypatch.setattr("pxfast.evaluation.specification.load_table", lambda name: load(world.table))
    (path,) = world.classifiers.glob("*-normal.safetensors")
    words = ["--rows", "shake", "--columns", "bpda:steps=1,blind-pgd", "--eps", 4, "--runs", 2, "--classifier", path]
    app(command(world, tmp_path, *words, "--surrogate", path), standalone_mode=False)
    table = json.loads(capsys.readouterr().out)
    assert [column["name"] for column in table["columns"]] == [
        *("natural", "blind-pgd", "bpda steps 1"),
        f"Transfer {path.stem}",
        "strongest",
    ]
    assert {cell["row"] for cell in table["cells"]} == {"none", "shake"}
    assert {cell["eps"] for cell in table["cells"]} == {None, 4}
    assert (table["settings"]["runs"]["shake"], table["images"]) == (2, 4)
    assert "Runs and budgets" in (tmp_path / "report.html").read_text()


def test_the_data_set_chooses_the_table() -> None:
    from pxfast.cli.evaluate_adaptive import table_of

    def name(*given: str | None, judged: bool = False) -> tuple[str, str]:
        table, dataset = table_of(*given, judged=judged)
        return table.name, dataset

    assert name("adaptive", None) == name("adaptive", "cifar10") == ("adaptive", "cifar10")
    assert name("adaptive", "fashion-mnist") == name("adaptive-fashion-mnist", None)
    assert name("adaptive-fashion-mnist", None) == ("adaptive-fashion-mnist", "fashion-mnist")
    assert name("adaptive", "folder", judged=True) == ("adaptive", "folder")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("adaptive --runner ray", "the protocol runs here: --runner must be local, got ray"),
        ("adaptive --dataset mine", "--dataset mine needs --purifier: there are tables of cifar10 and fashion-mnist"),
        ("adaptive-fashion-mnist --dataset cifar10", "is of fashion-mnist: it takes no --dataset cifar10"),
        ("adaptive --classifier cifar10 --classifiers x", "--classifier stands in for all of --classifiers"),
        ("adaptive --purifier adp --rows none", "--rows is of the table: --purifier takes no --rows"),
        ("adaptive --purifier adp --model cifar10", "density .--model. is of .* the purifier, .adp., takes none"),
        ("adaptive --purifier adp --train-budget 1m", "--purifier takes no --train-budget"),
        ("adaptive --classifier cifar10 --train-budget 1m", "it takes no --train-budget"),
        ("adaptive --columns bpda:step", "with one of the names steps, step, draws.* got 'step'"),
        ("table1 --columns bpda:steps=1", "the table has no column 'bpda:steps=1'"),
    ],
)
def test_options_that_mean_nothing_are_refused(words, said, tmp_path, monkeypatch) -> None:
    from pxfast.cli.main import app

    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match=said):
        app(["evaluate", *words.split(), "--root", "data", "--out", "out"], standalone_mode=False)
    assert not list(tmp_path.iterdir())
