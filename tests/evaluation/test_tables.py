"""Tables computed from real images: what is in them, and that kill -9 and other settings mix nothing up."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.evaluation_folder import World, entries, make_world, timeless, tiny_classifier
from support.helpers import environment

import pxfast
from pxfast.attacks import FGSM, DeepFool
from pxfast.classifiers import load_classifier, save_classifier
from pxfast.data.datasets import first_images, load_dataset
from pxfast.defences import Defended, FeatureSqueezing
from pxfast.engines.registry import select
from pxfast.evaluation.preparation import Settings
from pxfast.evaluation.results import Table, read_table, table_path
from pxfast.evaluation.run import evaluate_table
from pxfast.evaluation.specification import load_table
from pxfast.evaluation.text import table_text
from pxfast.tensors.safetensors import read_safetensors
from pxfast.tensors.store import FORMAT


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def evaluate(world: World, out: Path, *, rows=None, columns=None, table: Path | None = None, **settings) -> Table:
    defaults = {"classifiers": world.classifiers, "model": world.model, "train": False, "shard": 4}
    specification = load_table(table or world.table)
    return evaluate_table(specification, None, out, Settings(**{**defaults, **settings}), rows=rows, columns=columns)


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory) -> tuple[Path, Table]:
    """The table, computed in one go, and where."""
    out = tmp_path_factory.mktemp("whole")
    return out, evaluate(world, out)


def stored(file: Path) -> dict[str, list]:
    """A store's file without its seconds."""
    tensors, _ = read_safetensors(file, FORMAT)
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def test_cells_are_what_the_parts_of_pxfast_give(world: World, whole) -> None:
    _, table = whole
    images, labels = (first_images(world.data, part, 12) for part in load_dataset(world.data, train=False))
    classifier = load_classifier(world.classifiers / "data-resnet62-normal.safetensors")
    purifier = pxfast.Purifier(16, model=world.model)

    def correct(given, *defences) -> int:
        with torch.no_grad():
            return int((Defended(classifier, defences)(given).argmax(1) == labels).sum())

    for eps in (4, 12):
        attacked = FGSM()(classifier, images, labels, eps)
        assert table.cell("normal", "fgsm", eps).correct == correct(attacked)
        assert table.cell("squeezed", "fgsm", eps).correct == correct(attacked, FeatureSqueezing())
        assert table.cell("purified", "fgsm", eps).correct == correct(attacked, purifier)
        attacked = DeepFool(steps=5)(classifier, images, labels, eps)
        assert table.cell("normal", "deepfool", eps).correct == correct(attacked)
    assert table.cell("normal", "clean", None).correct == correct(images)
    assert table.cell("purified", "clean", None).correct == correct(images, purifier)
    assert table.images == 12
    assert all(cell.images == 12 for cell in table.cells)


def test_the_strongest_attack_is_the_least_of_its_row_and_eps(whole) -> None:
    _, table = whole
    for row in ("normal", "squeezed", "purified"):
        for eps in (4, 12):
            attacks = {name: table.cell(row, name, eps).correct for name in ("rand", "fgsm", "deepfool")}
            strongest = table.cell(row, "strongest", eps)
            assert strongest.correct == min(attacks.values())
            assert strongest.notes.lower() in [name for name, count in attacks.items() if count == strongest.correct]


def test_a_row_without_a_classifier_is_named(whole) -> None:
    _, table = whole
    assert {row.name: row.missing for row in table.rows} == {
        "normal": None,
        "squeezed": None,
        "purified": None,
        "bim": "there is no data-resnet62-bim.safetensors",
    }
    assert not [cell for cell in table.cells if cell.row == "bim"]
    assert table.finished


def test_published_numbers_stand_beside_ours(whole) -> None:
    _, table = whole
    assert [table.cell("purified", "fgsm", eps).published for eps in (4, 12)] == [50, 40]
    clean = table.cell("purified", "clean", None)
    assert (clean.published, clean.published_note) == (80, "printed as 80/70, the first of which stands here")
    assert table.cell("normal", "fgsm", 4).published is None


def test_models_and_settings_are_recorded(world: World, whole) -> None:
    _, table = whole
    density, classifier = table.models
    assert (density["role"], density["name"]) == ("density model", "model")
    assert classifier["rows"] == ["normal", "squeezed", "purified"]
    assert len(classifier["sha256"]) == len(density["sha256"]) == 64
    assert table.settings["attack eps"] == [4, 12]
    assert table.settings["defences"]["purified"][0]["eps"] == 16
    assert {rate["what"] for rate in table.rates} >= {"attack by deepfool", "purifier, eps 16", "classification"}


def test_an_attack_that_eps_only_clips_is_searched_once(whole) -> None:
    _, table = whole
    assert next(rate for rate in table.rates if rate["what"] == "attack by deepfool")["images"] == 12
    assert next(rate for rate in table.rates if rate["what"] == "clipping of deepfool")["images"] == 24


def test_a_second_run_computes_nothing(world: World, whole) -> None:
    out, table = whole
    before = entries(out)
    assert before
    assert evaluate(world, out) == table
    assert entries(out) == before
    assert read_table(table_path(out, "small")) == table


@pytest.mark.process
def test_a_killed_run_goes_on(world: World, whole, tmp_path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pxfast.cli", *world.arguments(out, "--no-train")]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while len(entries(out)) < 8 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    before = entries(out)
    assert process.returncode == -signal.SIGKILL, errors
    assert 8 <= len(before) < len(entries(whole[0]))
    assert not read_table(table_path(out, "small")).finished
    table = evaluate(world, out)
    after = entries(out)
    assert {name: after[name] for name in before} == before
    assert timeless(table) == timeless(whole[1])
    assert set(after) == set(entries(whole[0]))


def test_more_images_take_up_those_that_are_there(world: World, whole, tmp_path) -> None:
    chosen = {"rows": ["purified"], "columns": ["fgsm"]}
    evaluate(world, tmp_path, images=8, **chosen)
    before = entries(tmp_path)
    table = evaluate(world, tmp_path, images=12, **chosen)
    after = entries(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(before) < set(after) < set(entries(whole[0]))
    cells = {(cell.eps, cell.correct, cell.images) for cell in table.cells}
    assert cells == {(eps, whole[1].cell("purified", "fgsm", eps).correct, 12) for eps in (4, 12)}
    assert timeless(evaluate(world, tmp_path, images=8, **chosen)) != timeless(table)  # the file has the last run's


def test_settings_do_not_mix_in_one_folder(world: World, tmp_path) -> None:
    """A table of each setting from one folder is the table from a folder of its own."""
    changed = tmp_path / "classifiers"
    changed.mkdir()
    save_classifier(tiny_classifier(1), changed / "data-resnet62-normal.safetensors")
    weaker = tmp_path / "weaker.toml"
    weaker.write_text(world.table.read_text().replace("eps = 16", "eps = 3").replace("steps = 5", "steps = 1"))
    other = "fp32" if select("auto").best_precision() == "bf16" else "bf16"  # 'auto' is one of them
    kinds = [{}, {"classifiers": changed}, {"table": weaker}, {"precision": other}]
    chosen = {"rows": ["normal", "purified"], "columns": ["deepfool"], "images": 6, "shard": 2}
    together = [evaluate(world, tmp_path / "together", **chosen, **kind) for kind in kinds]
    again = evaluate(world, tmp_path / "together", **chosen)
    alone = [evaluate(world, tmp_path / f"alone{i}", **chosen, **kind) for i, kind in enumerate(kinds)]
    assert [timeless(table) for table in together] == [timeless(table) for table in alone]
    assert timeless(again) == timeless(alone[0])
    assert len({json.dumps(timeless(table)["cells"]) for table in alone[:3]}) == 3
    assert len({json.dumps(timeless(table)["settings"]) for table in alone}) == 3  # a classifier is no setting


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("truncated", marks=pytest.mark.whole),
        "flipped",
        "another's",
        pytest.param("foreign", marks=pytest.mark.whole),
    ],
)
def test_a_damaged_file_is_computed_again(world: World, whole, tmp_path, damage: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole[0], out)
    files = sorted((out / "store").rglob("*.safetensors"))
    other = max(files, key=lambda file: file.stat().st_size)
    for file in files[:5]:
        content = file.read_bytes()
        file.write_bytes(
            {
                "truncated": content[: len(content) // 2],
                "flipped": content[:-1] + bytes([content[-1] ^ 1]),
                "another's": other.read_bytes() if file != other else files[-1].read_bytes(),
                "foreign": b"not a safetensors file",
            }[damage]
        )
    assert timeless(evaluate(world, out)) == timeless(whole[1])
    for file in files:
        assert stored(file) == stored(whole[0] / file.relative_to(out))


def test_rows_may_be_computed_one_after_the_other(world: World, whole, tmp_path) -> None:
    first = evaluate(world, tmp_path, rows=["purified"], columns=["fgsm", "strongest"])
    assert {cell.row for cell in first.cells} == {"purified"}
    assert first.cell("purified", "strongest", 4).notes == "FGSM; without RAND, DeepFool, not computed yet"
    assert "FGSM so far" in table_text(first)
    assert not first.finished
    second = evaluate(world, tmp_path, rows=["normal", "squeezed", "bim"])
    assert {cell.row for cell in second.cells} == {"normal", "squeezed", "purified"}
    assert not second.finished
    third = evaluate(world, tmp_path, rows=["purified"])
    assert third.finished
    assert {dataclasses.replace(cell, seconds=None) for cell in third.cells} == {
        dataclasses.replace(cell, seconds=None) for cell in whole[1].cells
    }


def test_rows_without_a_purifier_need_no_density_model(world: World, whole, tmp_path) -> None:
    """There is none of such images in the package."""
    found = evaluate(world, tmp_path, rows=["normal", "squeezed"], columns=["clean"], model=None)
    for row in ("normal", "squeezed"):
        assert found.cell(row, "clean", None).correct == whole[1].cell(row, "clean", None).correct
    assert {row.name: row.missing for row in found.rows if row.name == "purified"} == {
        "purified": "there is no density model of images of this shape"
    }
    with pytest.raises(ValueError, match=r"no shipped model takes images .*8, 8"):
        evaluate(world, tmp_path, rows=["normal", "purified"], columns=["clean"], model=None)


def test_what_is_no_longer_in_a_table_is_not_taken_over(world: World, tmp_path) -> None:
    """A row and a column that are gone would leave cells of no place; published numbers are those of now."""
    text, table, out = world.table.read_text(), tmp_path / "changing.toml", tmp_path / "out"
    table.write_text(text)
    evaluate(world, out, rows=["normal", "purified"], columns=["clean", "fgsm"], table=table)
    row = text[text.index('[[rows]]\nname = "normal"') : text.index('[[rows]]\nname = "squeezed"')]
    column = text[text.index('[[columns]]\nname = "clean"') : text.index('[[columns]]\nname = "rand"')]
    table.write_text(text.replace(row, "").replace("fgsm = [50, 40]", "fgsm = [51, 41]"))
    found = evaluate(world, out, rows=["squeezed"], columns=["clean"], table=table)
    assert read_table(table_path(out, "small")) == found
    assert {cell.row for cell in found.cells} == {"squeezed", "purified"}
    assert [found.cell("purified", "fgsm", eps).published for eps in (4, 12)] == [51, 41]
    assert {name for model in found.models for name in model.get("rows", ())} == {"squeezed", "purified"}

    table.write_text(text.replace(row, "").replace(column, "").replace("clean = [80, 70], ", ""))
    found = evaluate(world, out, rows=["squeezed"], columns=["fgsm"], table=table)
    assert read_table(table_path(out, "small")) == found
    assert {cell.column for cell in found.cells} == {"fgsm"}


def test_the_strongest_attack_is_found_again_when_others_come(world: World, whole, tmp_path) -> None:
    evaluate(world, tmp_path, rows=["purified"], columns=["fgsm", "strongest"])
    others = evaluate(world, tmp_path, rows=["purified"], columns=["clean", "rand", "fgsm", "deepfool"])
    for eps in (4, 12):
        found, expected = (each.cell("purified", "strongest", eps) for each in (others, whole[1]))
        assert (found.correct, found.notes) == (expected.correct, expected.notes)


def test_an_attack_may_know_the_defences(world: World, tmp_path) -> None:
    table = tmp_path / "knows.toml"
    text = world.table.read_text().replace('attack = "fgsm"', 'attack = "fgsm"\nknows_defences = true')
    table.write_text(text)
    found = evaluate(world, tmp_path / "out", rows=["normal", "purified"], columns=["fgsm"], table=table)
    images, labels = (first_images(world.data, part, 12) for part in load_dataset(world.data, train=False))
    classifier = load_classifier(world.classifiers / "data-resnet62-normal.safetensors")
    defended = Defended(classifier, [pxfast.Purifier(16, model=world.model)])
    with torch.no_grad():
        correct = int((defended(FGSM()(defended, images, labels, 12)).argmax(1) == labels).sum())
    assert found.cell("purified", "fgsm", 12).correct == correct
    assert found.cell("normal", "fgsm", 12) is not None


def test_an_attack_may_go_through_defences_in_one_row(world: World, tmp_path) -> None:
    """Those of the row's attacker, which may be others than the row's."""
    table = tmp_path / "through.toml"
    row = 'name = "squeezed"\n'
    through = 'through = { fgsm = [{ kind = "feature-squeezing", colours = 256 }] }\n'
    table.write_text(world.table.read_text().replace(row, row + through))
    found = evaluate(world, tmp_path / "out", rows=["normal", "squeezed"], columns=["fgsm"], table=table)
    images, labels = (first_images(world.data, part, 12) for part in load_dataset(world.data, train=False))
    classifier = load_classifier(world.classifiers / "data-resnet62-normal.safetensors")
    seen = Defended(classifier, [FeatureSqueezing(colours=256)])
    squeezed = Defended(classifier, [FeatureSqueezing()])
    attacked = FGSM()(seen, images, labels, 12)
    assert not torch.equal(attacked, FGSM()(classifier, images, labels, 12))
    with torch.no_grad():
        correct = int((squeezed(attacked.float() / 255).argmax(1) == labels).sum())
    assert found.cell("squeezed", "fgsm", 12).correct == correct
    assert found.cell("normal", "fgsm", 12) == evaluate(
        world, tmp_path / "out", rows=["normal"], columns=["fgsm"]
    ).cell("normal", "fgsm", 12)
    ((_, described),) = found.settings["through"].items()
    assert described["fgsm"][0]["colours"] == 256


@pytest.mark.parametrize(
    ("through", "message"),
    [
        ('{ clean = [{ kind = "feature-squeezing" }] }', "through is of columns whose attack is on the classifier"),
        ('{ fgsm = [{ kind = "blur" }] }', "blur"),
        ('{ fgsm = "feature-squeezing" }', "through.fgsm must be a list"),
    ],
)
def test_what_an_attack_goes_through_is_checked(world: World, tmp_path, through: str, message: str) -> None:
    table = tmp_path / "through.toml"
    row = 'name = "squeezed"\n'
    table.write_text(world.table.read_text().replace(row, f"{row}through = {through}\n"))
    with pytest.raises(ValueError, match=message):
        load_table(table)


def test_missing_classifiers_are_trained_first(world: World, tmp_path, run_here) -> None:
    folder = tmp_path / "classifiers"
    out, _ = run_here(*world.arguments(tmp_path / "out", "--classifiers", folder, "--train-budget", "0.5s",
                                       "--rows", "bim", "--columns", "clean", "--images", 4))  # fmt: skip
    assert "Adversarial BIM" in out
    assert (folder / "data-resnet62-bim.safetensors").is_file()
    table = read_table(table_path(tmp_path / "out", "small"))
    notes = table.models[1]["notes"]
    assert (notes["training"]["defence"], notes["training"]["budget"]) == ("bim", 0.5)


def test_the_command_prints_the_table(world: World, whole, tmp_path, run_here) -> None:
    shutil.copytree(whole[0], tmp_path / "out")
    text, _ = run_here(*world.arguments(tmp_path / "out", "--no-train"))
    assert text.strip() == table_text(whole[1])
    assert "left out: ResNet, Adversarial BIM: there is no data-resnet62-bim.safetensors" in text
    assert max(map(len, text.splitlines())) <= 120
    as_json, _ = run_here(*world.arguments(tmp_path / "out", "--no-train", "--json"))
    assert json.loads(as_json)["cells"] == json.loads(table_path(whole[0], "small").read_text())["cells"]


def test_what_attacks_need_is_asked_for_first(world: World, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(ImportError, match=r"foolbox is not installed: pip install 'pxfast\[attacks\]'"):
        evaluate_table(load_table("reproduction"), tmp_path, tmp_path / "out")
    table = tmp_path / "blind.toml"
    table.write_text(world.table.read_text().replace('attack = "fgsm"', 'attack = "bpda"'))
    with pytest.raises(ValueError, match=r"column 'fgsm': bpda is on defences: it needs knows_defences = true"):
        load_table(table)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", 21], "has 20 test images, and 21 were asked for"),
        (["--rows", "resnet"], "the table has no row 'resnet'; it has: normal, squeezed, purified, bim"),
        (["--columns", "cw"], "the table has no column 'cw'"),
        (["--runner", "cluster"], "unknown runner 'cluster'; known: local"),
        (["--model", "mine"], "mine"),
        (["--device", "tpu"], "device must be"),
        (["--train-budget", "soon"], "budget must be a duration"),
    ],
)
def test_errors_are_clear_and_leave_nothing(world: World, tmp_path, refused, arguments, message) -> None:
    assert message in refused(*world.arguments(tmp_path / "out", "--no-train", *arguments))
    assert not (tmp_path / "out").exists()


def test_a_classifier_of_other_images_is_refused(world: World, tmp_path) -> None:
    shutil.copy(Path(pxfast.__file__).parent / "assets" / "fashion-mnist-resnet62.safetensors",
                tmp_path / "data-resnet62-normal.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match=r"classifier of images of shape \(C, H, W\) = \(1, 28, 28\), not \(1, 8, 8\)"):
        evaluate(world, tmp_path / "out", classifiers=tmp_path)


def test_a_classifier_of_another_folder_of_that_name_is_refused(world: World, tmp_path) -> None:
    name = "data-resnet62-normal.safetensors"
    classifier = load_classifier(world.classifiers / name)
    save_classifier(classifier, tmp_path / name, notes={"dataset": "/elsewhere/data"})
    with pytest.raises(ValueError, match=r"is a classifier of /elsewhere/data, expected one of .*data: keep"):
        evaluate(world, tmp_path / "out", classifiers=tmp_path)


def test_cells_of_a_network_that_a_row_no_longer_has_are_not_taken_over(world: World, tmp_path) -> None:
    """They would stand in the row of another network; a row that is as it was keeps its own."""
    text, table, out = world.table.read_text(), tmp_path / "changing.toml", tmp_path / "out"
    table.write_text(text)
    evaluate(world, out, rows=["normal", "purified"], columns=["clean"], table=table)
    row = text[text.index('[[rows]]\nname = "normal"') : text.index('[[rows]]\nname = "squeezed"')]
    table.write_text(text.replace(row, row.replace("resnet62", "vgg16")))
    found = evaluate(world, out, rows=["squeezed"], columns=["clean"], table=table)
    assert {cell.row for cell in found.cells} == {"squeezed", "purified"}
    assert {name for model in found.models for name in model.get("rows", ())} == {"squeezed", "purified"}
    assert not found.finished
