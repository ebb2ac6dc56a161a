"""Tables of attacks that know the defence: what their cells are, and that they go on where they were."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from support.evaluation_folder import World, entries, make_world, timeless

import pxfast
from pxfast.adp.files import save_score_network
from pxfast.adp.purifier import ADPPurifier
from pxfast.adp.score_network import ScoreNetwork, ScoreNetworkConfig
from pxfast.attacks import BPDAEOT, SPSA, BlindPGD, JointScore
from pxfast.classifiers import load_classifier
from pxfast.data.datasets import load_dataset
from pxfast.defences import Defended
from pxfast.evaluation.preparation import Settings
from pxfast.evaluation.results import Table
from pxfast.evaluation.run import evaluate_table
from pxfast.evaluation.specification import load_table

TABLE = """
name = "adaptive"
title = "Attacks that know the defence"
dataset = "{data}"
images = 6
attack_eps = [8]
columns = [
  {{ name = "natural", label = "Natural" }},
  {{ name = "blind-pgd", label = "Blind", attack = "blind-pgd", options = {{ steps = 2 }} }},
  {{ name = "eot", label = "EOT", attack = "bpda-eot", options = {{ steps = 2, draws = 2 }}, knows_defences = true }},
  {{ name = "spsa", label = "SPSA", attack = "spsa", options = {{ steps = 1, pairs = 2 }}, knows_defences = true }},
  {{ name = "joint", label = "Joint", attack = "joint-score", options = {{ steps = 1 }}, knows_defences = true }},
  {{ name = "strongest", label = "Strongest", strongest = true }},
]

[source]
title = "a paper"
where = "Table 9"

[[rows]]
name = "pixeldefend"
network = "ResNet"
technique = "PixelDefend"
architecture = "resnet62"
defences = [{{ kind = "purifier", eps = 16 }}]

[[rows]]
name = "adp"
network = "ResNet"
technique = "ADP"
architecture = "resnet62"
defences = [{{ kind = "adp", sigma = 0.1, runs = 2, steps = 2, model = "{score}" }}]

[[rows]]
name = "absent"
network = "ResNet"
technique = "ADP"
architecture = "resnet62"
defences = [{{ kind = "adp", sigma = 0.1, model = "{score}-absent.safetensors" }}]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    world = make_world(tmp_path_factory.mktemp("world"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ScoreNetwork(ScoreNetworkConfig((8, 8), 1, ngf=4)).eval()
    score = world.table.parent / "score.safetensors"
    save_score_network(network, score)
    table = world.table.parent / "adaptive.toml"
    table.write_text(TABLE.format(data=world.data, score=score))
    return dataclasses.replace(world, table=table)


def evaluate(world: World, out: Path, **chosen) -> Table:
    settings = Settings(classifiers=world.classifiers, model=world.model, train=False, shard=4)
    return evaluate_table(load_table(world.table), None, out, settings, **chosen)


def test_cells_are_what_the_attacks_leave_and_a_second_run_computes_nothing(world: World, tmp_path: Path) -> None:
    table = evaluate(world, tmp_path)
    images, labels = (part[:6] for part in load_dataset(world.data, train=False))
    classifier = load_classifier(world.classifiers / "data-resnet62-normal.safetensors")
    rows = {
        "pixeldefend": pxfast.Purifier(16, model=world.model),
        "adp": ADPPurifier(0.1, runs=2, steps=2, model=world.table.parent / "score.safetensors"),
    }
    for name, purifier in rows.items():
        defended = Defended(classifier, [purifier])
        attacked = {
            "natural": images,
            "blind-pgd": BlindPGD(steps=2)(classifier, images, labels, 8),
            "eot": BPDAEOT(steps=2, draws=2)(defended, images, labels, 8),
            "spsa": SPSA(steps=1, pairs=2)(defended, images, labels, 8),
            "joint": JointScore(steps=1)(defended, images, labels, 8),
        }
        with torch.no_grad():
            right = {column: int((defended(x).argmax(1) == labels).sum()) for column, x in attacked.items()}
        eps = {column: None if column == "natural" else 8 for column in right}
        assert {column: table.cell(name, column, eps[column]).correct for column in right} == right
        assert table.cell(name, "strongest", 8).correct == min(right[c] for c in right if c != "natural")
    missing = {row.name: row.missing for row in table.rows}
    assert missing == {
        "pixeldefend": None,
        "adp": None,
        "absent": "there is no score network score.safetensors-absent.safetensors",
    }
    assert {cell.row for cell in table.cells} == {"pixeldefend", "adp"}
    assert table.finished
    before = entries(tmp_path)
    assert timeless(evaluate(world, tmp_path)) == timeless(table)
    assert entries(tmp_path) == before


def test_a_shipped_table_names_the_published_numbers() -> None:
    table = load_table("adaptive")
    rows = {row.name: row for row in table.rows}
    published = {
        (row.name, column.name): table.published(row, column, eps)
        for row in table.rows
        for column in table.columns
        for eps in column.eps(table.attack_eps)
    }
    assert {name for (row, name), value in published.items() if row == "adp-0.25" and value is not None} == {
        column.name for column in table.columns if not column.strongest
    }
    assert published["adp-0.25", "bpda-eot"] == 70.01
    assert published["pixeldefend", "bpda-eot"] == 9
    assert rows["adaptive-pixeldefend"].defences[0]["adaptive"] == "image"
    assert {column.name for column in table.columns if column.knows_defences} == {
        "bpda-eot",
        "spsa",
        "joint-score",
        "joint-full",
    }
    fashion = load_table("adaptive-fashion-mnist")
    assert [row.name for row in fashion.rows] == list(rows)
    assert not any(row.published for row in fashion.rows)
