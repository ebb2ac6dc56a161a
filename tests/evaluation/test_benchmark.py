"""A user's own classifier evaluated: the same table as the shipped pipeline's, kept, resumed and never mixed up."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.evaluation_folder import World, entries, make_world, timeless
from support.helpers import environment
from support.own_classifiers import Features, SmallCNN, Wrapped, plain
from torch import nn

import pxfast
from pxfast.adp.files import save_score_network
from pxfast.adp.score_network import ScoreNetwork, ScoreNetworkConfig
from pxfast.attacks import BPDA, FGSM
from pxfast.classifiers import load_classifier
from pxfast.data.datasets import first_images, load_dataset
from pxfast.evaluation import BenchmarkTable, read_table
from pxfast.evaluation.preparation import Settings
from pxfast.evaluation.report.comparison import view_table
from pxfast.evaluation.results import table_path, wilson_interval
from pxfast.evaluation.run import evaluate_table
from pxfast.evaluation.specification import load_table
from pxfast.tensors.seeds import unseen_seed

DEFENCES = ("none", "feature-squeezing", "pixeldefend:eps=16")
ATTACKS = ("rand", "fgsm", "deepfool:steps=5")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def evaluate(world: World, model: nn.Module, out: Path, **settings) -> BenchmarkTable:
    defaults = {"density": world.model, "images": 12, "batch_size": 4, "eps": (4, 12), "progress": False}
    given = {"defences": DEFENCES, "attacks": ATTACKS, **defaults, **settings}
    return pxfast.benchmark(model, given.pop("dataset", world.data), out=out, **given)


def numbers(table: BenchmarkTable) -> dict[tuple[str, str, int | None], int]:
    return {(cell.row, cell.column, cell.eps): cell.correct for cell in table.cells}


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory) -> tuple[Path, BenchmarkTable]:
    """A small CNN's table, computed in one go, and where."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, evaluate(world, SmallCNN().eval(), out)


def test_a_wrapped_classifier_has_the_table_of_its_file(world: World, tmp_path):
    """Cell by cell, what the pipeline computes of a classifier's file is what the benchmark computes of the module."""
    classifier = load_classifier(world.classifiers / "data-resnet62-normal.safetensors")
    given = tuple(first_images(world.data, part, 5) for part in load_dataset(world.data, train=False))  # two shards
    ours = evaluate(world, plain(classifier), tmp_path / "ours", dataset=given)
    settings = Settings(images=5, classifiers=world.classifiers, model=world.model, train=False, shard=4)
    theirs = evaluate_table(load_table(world.table), None, tmp_path / "theirs", settings)
    rows = {"none": "normal", "feature-squeezing": "squeezed", "pixeldefend eps 16": "purified"}
    columns = {column: column for column in ("clean", "rand", "fgsm", "strongest")} | {"deepfool steps 5": "deepfool"}
    assert len(ours.cells) == 3 * (1 + 4 * 2)
    for cell in ours.cells:
        other = theirs.cell(rows[cell.row], columns[cell.column], cell.eps)
        assert (cell.correct, cell.images, cell.interval) == (other.correct, other.images, other.interval), cell
    assert ours.finished


@pytest.mark.parametrize("make", [SmallCNN, Features])
def test_cells_are_what_the_parts_give(world: World, tmp_path, make):
    network = make().eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    table = evaluate(world, network, tmp_path, attacks=["fgsm", "bpda:steps=2"], eps=12, report=False)
    images, labels = (first_images(world.data, part, 12) for part in load_dataset(world.data, train=False))
    defended = pxfast.Defended(network, [pxfast.Purifier(16, model=world.model)])
    attacked = {"clean": images, "fgsm": FGSM()(network, images, labels, 12)}
    attacked["bpda steps 2"] = BPDA(steps=2)(defended, images, labels, 12)
    for column, x in attacked.items():
        with torch.no_grad():
            correct = int((defended(x).argmax(1) == labels).sum())
        cell = table.cell("pixeldefend eps 16", column, None if column == "clean" else 12)
        assert (cell.correct, cell.interval) == (correct, wilson_interval(correct, 12))
    assert table.cell("none", "bpda steps 2", 12) is None  # there is no defence to know
    assert table.cell("none", "strongest", 12).notes == "FGSM"
    assert table.finished
    assert table.report is None
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_random_defence_before_a_purifier_is_averaged_over_its_runs(world: World, tmp_path, monkeypatch):
    """All of its runs are purified, in noise that no attack has seen: nothing of one run is kept for all."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        save_score_network(ScoreNetwork(ScoreNetworkConfig((8, 8), 1, ngf=4)).eval(), tmp_path / "score.safetensors")
    monkeypatch.chdir(tmp_path)
    network, row = SmallCNN().eval(), "adp:sigma=0.3,steps=1,runs=3,model=score.safetensors+pixeldefend:eps=4"
    logits, forward = [], pxfast.Defended.forward
    monkeypatch.setattr(pxfast.Defended, "forward", lambda self, x: logits.append(forward(self, x)) or logits[-1])
    evaluate(world, network, tmp_path / "out", defences=[row], attacks=["rand"], eps=4, batch_size=32, report=False)
    images = first_images(world.data, load_dataset(world.data, train=False)[0], 12)
    defences = [
        pxfast.ADPPurifier(0.3, steps=1, runs=3, model="score.safetensors"),
        pxfast.Purifier(4, model=world.model),
    ]
    with torch.no_grad():
        expected = pxfast.Defended(network, defences, seed=unseen_seed(0))(images)
    torch.testing.assert_close(logits[0][:12], expected)


def test_a_row_of_two_views_is_what_its_parts_give(world: World, tmp_path):
    network, rows = SmallCNN().eval(), ["feature-squeezing", "feature-squeezing+flip", "none+flip"]
    table = evaluate(world, network, tmp_path, defences=rows, attacks=["fgsm", "bpda:steps=2"], eps=12, report=False)
    images, labels = (first_images(world.data, part, 12) for part in load_dataset(world.data, train=False))
    defended = pxfast.Defended(network, [pxfast.defences.FeatureSqueezing()], views="flip")
    attacked = {"clean": images, "fgsm": FGSM()(network, images, labels, 12)}
    attacked["bpda steps 2"] = BPDA(steps=2)(defended, images, labels, 12)
    for column, x in attacked.items():
        with torch.no_grad():
            correct = int((defended(x).argmax(1) == labels).sum())
        assert table.cell("feature-squeezing + flip", column, None if column == "clean" else 12).correct == correct
    with torch.no_grad():
        flipped = pxfast.Defended(network, views="flip")(images).argmax(1) == labels
    assert table.cell("none + flip", "clean", None).correct == int(flipped.sum())
    kept = len(entries(tmp_path))
    again = evaluate(world, network, tmp_path, defences=rows, attacks=["fgsm", "bpda:steps=2"], eps=12, report=False)
    assert numbers(again) == numbers(table)
    assert len(entries(tmp_path)) == kept


def test_the_views_of_a_row_are_part_of_what_is_kept(world: World, tmp_path):
    verdicts = [
        pxfast.referee(
            SmallCNN().eval(),
            f"feature-squeezing{views}",
            world.data,
            out=tmp_path,
            images=12,
            attacks=["bpda:steps=2"],
            eps=12,
            check_images=2,
            report=False,
            progress=False,
        )
        for views in ("", "+flip")
    ]
    assert [verdict.purifier for verdict in verdicts] == ["Feature Squeezing", "Feature Squeezing two views"]
    spent = [verdict.defended[1].gradients for verdict in verdicts]
    assert spent[1][1] in (4, 8)  # a gradient for each view and its mirror image
    assert spent[1] != spent[0]


def test_it_prints_itself_and_is_json(whole):
    out, table = whole
    text = str(table)
    assert text.startswith("data: SmallCNN; 12 images\nAccuracy in %; below it its 95 % interval.")
    assert "PixelDefend, eps 16" in text
    low, high = table.cell("none", "clean", None).interval
    assert f"{100 * low:.0f}-{100 * high:.0f}" in text
    assert max(map(len, text.splitlines())) <= 120
    values = json.loads(table.to_json())
    assert [row["name"] for row in values["rows"]] == ["none", "feature-squeezing", "pixeldefend eps 16"]
    assert len(values["cells"]) == len(table.cells)
    assert "No defence" in table.report.read_text()
    kept = read_table(table_path(out, table.name))
    assert timeless(kept) == timeless(read_table(table_path(out, table.name)))
    assert kept.cells == table.cells
    classifier = table.models[-1]
    assert (classifier["role"], classifier["name"]) == ("classifier", "SmallCNN")
    assert classifier["notes"]["class"].endswith("SmallCNN")


def test_a_second_run_computes_nothing_and_has_the_same_table(world: World, whole):
    out, table = whole
    before = entries(out)
    assert numbers(evaluate(world, SmallCNN().eval(), out)) == numbers(table)
    assert entries(out) == before


def test_the_command_prints_the_same_table(world: World, whole, run_here):
    out, table = whole
    before = entries(out)
    words = [word for defence in DEFENCES for word in ("--row", defence)]
    words += [word for attack in ATTACKS for word in ("--column", attack)]
    words += ["--dataset", world.data, "--model", world.model, "--images", 12, "--batch-size", 4, "--eps", 12]
    text, _ = run_here("evaluate", "classifier", "support.own_classifiers:small", *words, "--out", out, "--json")
    cells = json.loads(text)["cells"]
    assert [cell["correct"] for cell in cells] == [cell.correct for cell in table.cells if cell.eps in (None, 12)]
    assert entries(out) == before


@pytest.mark.process
def test_two_at_once_are_told_apart(world: World, tmp_path):
    """Two models in one folder, at once: each gets its own table, and the report has both."""
    code = (
        "import sys, pxfast\nfrom support.own_classifiers import SmallCNN\n"
        "data, density, out, seed = sys.argv[1:]\n"
        "table = pxfast.benchmark(SmallCNN(int(seed)).eval(), data, density=density, out=out, attacks=['fgsm', 'bim'],"
        " defences=['none', 'pixeldefend:eps=16'], images=12, batch_size=4, progress=False)\n"
        "print(sorted((cell.row, cell.column, cell.correct) for cell in table.cells))"
    )
    words = [sys.executable, "-c", code, str(world.data), str(world.model)]
    options = {"env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    together = [subprocess.Popen([*words, str(tmp_path / "both"), seed], **options) for seed in ("1", "2")]
    said = [process.communicate(timeout=200) for process in together]
    assert [process.returncode for process in together] == [0, 0], said
    for seed, (text, _) in zip((1, 2), said, strict=True):
        chosen = {"attacks": ["fgsm", "bim"], "defences": ["none", "pixeldefend:eps=16"], "eps": 8}
        alone = evaluate(world, SmallCNN(seed).eval(), tmp_path / str(seed), report=False, **chosen)
        assert text.strip() == str(sorted((cell.row, cell.column, cell.correct) for cell in alone.cells))
    assert len(list((tmp_path / "both" / "tables").glob("*.json"))) == 2
    page = (tmp_path / "both" / "report.html").read_text()
    assert page.count('class="table"') == 2


def test_models_in_one_folder_do_not_get_each_others_results(world: World, whole, tmp_path):
    """Weights, preprocessing and code: each makes another model, whose table is the one from a folder of its own."""

    def halved(network, x):
        return network(x / 2)

    def darker(network, x):
        return network((x - 0.3).clamp(min=0))

    models = [
        SmallCNN(7).eval(),
        Wrapped(SmallCNN(), halved).eval(),
        Wrapped(SmallCNN(), darker).eval(),
        Features().eval(),
    ]
    chosen = {"defences": ["none", "feature-squeezing"], "attacks": ["fgsm"], "eps": 12, "report": False}
    together = [evaluate(world, model, tmp_path / "together", **chosen) for model in models]
    again = evaluate(world, models[0], tmp_path / "together", **chosen)
    alone = [evaluate(world, model, tmp_path / f"alone{i}", **chosen) for i, model in enumerate(models)]
    assert [numbers(table) for table in together] == [numbers(table) for table in alone]
    assert numbers(again) == numbers(alone[0])
    assert len({json.dumps(list(numbers(table).values())) for table in alone}) > 1
    assert len({table.name for table in together}) == len(models)
    assert len(list((tmp_path / "together" / "tables").glob("*.json"))) == len(models)


def test_a_function_that_changes_without_its_code_has_another_key(world: World, tmp_path):
    """What a module reads from outside when it is called is in no key: its logits tell."""
    outside = tmp_path / "factor.txt"

    def reading(network, x):
        return float(outside.read_text()) * network(x)

    names = []
    for factor in ("1", "-1", "1"):
        outside.write_text(factor)
        model = Wrapped(SmallCNN(), reading).eval()
        table = evaluate(world, model, tmp_path / "out", defences=["none"], attacks=["rand"], report=False)
        names.append((table.name, table.cell("none", "clean", None).correct))
    assert names[0] == names[2] != names[1]
    assert names[0][0] != names[1][0]


@pytest.mark.process
def test_a_killed_run_goes_on_from_the_command_line(world: World, whole, tmp_path):
    """With a module in the current folder, as users have it; then the same command again, to the end."""
    (tmp_path / "my_networks.py").write_text(
        "from support.own_classifiers import SmallCNN\n\n\ndef make_model():\n    return SmallCNN().eval()\n"
    )
    rows = [word for defence in DEFENCES for word in ("--row", defence)]
    columns = [word for attack in ATTACKS for word in ("--column", attack)]
    command = [sys.executable, "-m", "pxfast.cli", "evaluate", "classifier", "my_networks:make_model", *rows, *columns]
    command += ["--dataset", world.data, "--model", world.model, "--images", "12", "--batch-size", "4"]
    command += ["--eps", "12", "--out", "out"]
    out = tmp_path / "out"
    process = subprocess.Popen(command, env=environment(), cwd=tmp_path, stdout=-3, stderr=-1, text=True)
    deadline = time.monotonic() + 200
    while len(entries(out)) < 8 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    before = entries(out)
    assert process.returncode == -signal.SIGKILL, errors
    assert len(before) >= 8
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = entries(out)
    assert len(after) > len(before)
    assert {name: after[name] for name in before} == before
    (path,) = (out / "tables").glob("*.json")
    found, expected = numbers(read_table(path)), numbers(whole[1])
    assert found
    assert all(expected[place] == correct for place, correct in found.items())
    assert "PixelDefend, eps 16" in done.stdout
    assert done.stdout.splitlines()[-1] == str(Path("out") / "report.html")


def test_without_a_density_model_the_rows_that_need_it_are_named(world: World, tmp_path):
    table = evaluate(world, SmallCNN().eval(), tmp_path, defences=None, attacks=["rand"], density=None, eps=4)
    missing = {row.name: row.missing for row in table.rows}
    assert missing["none"] is None
    assert missing["feature-squeezing"] is None
    assert missing["pixeldefend"] == "there is no density model of images of this shape"
    assert {cell.row for cell in table.cells} == {"none", "feature-squeezing"}
    assert table.finished
    assert "left out: SmallCNN, PixelDefend: there is no density model" in str(table)


def test_rows_that_no_attack_can_be_made_on_and_attacks_without_eps(world: World, tmp_path):
    chosen = {"defences": ["none", "feature-squeezing"], "eps": 4}
    knowing = evaluate(world, SmallCNN().eval(), tmp_path, attacks=["bpda:steps=1", "joint-score:steps=1"], **chosen)
    places = {(cell.row, cell.column) for cell in knowing.cells}
    squeezed = {("feature-squeezing", column) for column in ("clean", "bpda steps 1", "strongest")}
    assert places == {("none", "clean"), *squeezed}
    assert knowing.finished
    assert "be made on this</span>" in knowing.report.read_text()
    assert view_table(knowing).planned == len(knowing.cells) + 2  # joint-score, which squeezing has no score for
    unbounded = evaluate(world, SmallCNN().eval(), tmp_path, attacks=["saliency-map"], **{**chosen, "eps": None})
    assert unbounded.finished
    assert {(cell.column, cell.eps) for cell in unbounded.cells} == {
        ("clean", None),
        ("saliency-map", None),
        ("strongest", None),
    }
    through = evaluate(
        world, SmallCNN().eval(), tmp_path, attacks=["fgsm", "fgsm:knows_defences=true"], report=False, **chosen
    )
    assert through.settings["attacks"]["fgsm through defences"]["knows the defences"]
    assert through.cell("none", "fgsm through defences", 4).correct == through.cell("none", "fgsm", 4).correct


WRONG = {
    "training mode": ({"model": SmallCNN()}, ValueError, "in eval mode"),
    "a name": ({"model": "resnet"}, TypeError, "a classifier is an nn.Module .* got str"),
    "classes": ({"model": nn.Sequential(nn.Flatten(1), nn.Linear(64, 7)).eval()}, ValueError, "of 5 classes .* got 7"),
    "device": ({"device": "cuda"}, ValueError, "device 'cuda' was asked for|expected a classifier on cuda"),
    "no defence": ({"defences": []}, ValueError, "defences must be a list of at least one"),
    "unknown defence": ({"defences": ["jpeg"]}, ValueError, "unknown defence 'jpeg'; known: none, pixeldefend, adap"),
    "a text": ({"defences": "none"}, TypeError, "defences must be a list of texts"),
    "setting": ({"defences": ["adp:eps=3"]}, ValueError, "expected NAME=VALUE with one of the names sigma, steps"),
    "eps of a defence": ({"defences": ["pixeldefend:eps=300"]}, ValueError, "eps must be an integer in 0..255"),
    "twice": ({"defences": ["none", "none"]}, ValueError, "each defence must be there once, got 'none' twice"),
    "unknown attack": ({"attacks": ["sgd"]}, ValueError, "unknown attack 'sgd'; known: rand, fgsm.* paper, adaptive"),
    "option": ({"attacks": ["bim:step=3"]}, ValueError, "expected NAME=VALUE with one of the names steps"),
    "value": ({"attacks": ["bim:steps=-3"]}, ValueError, "steps must be"),
    "attacks twice": ({"attacks": ["fgsm", "paper"]}, ValueError, "each attack must be there once, got 'fgsm' twice"),
    "eps": ({"eps": 0.03}, TypeError, "write eps=8 for 8/255"),
    "several eps": ({"eps": (8, 8)}, ValueError, "each eps must be there once"),
    "an eps for nobody": (
        {"eps": 8, "attacks": ["saliency-map"]},
        ValueError,
        "no attack is bounded, got 8 for sal",
    ),
    "no eps": ({"eps": ()}, ValueError, "or several, got none"),
    "images": ({"images": 0}, ValueError, "images must be an integer of at least 1"),
    "one image": ({"images": 1}, ValueError, "expected at least 2 images, got 1"),
    "dataset": (
        {"dataset": "imagenet"},
        ValueError,
        "unknown data set 'imagenet'; known: cifar10, cifar100",
    ),
    "no root": ({"dataset": "cifar10"}, ValueError, "needs a root"),
    "labels": ({"dataset": (torch.zeros(4, 1, 8, 8), [0, 1, 2])}, ValueError, r"expected labels \(4,\)"),
    "other labels": ({"dataset": (torch.zeros(4, 1, 8, 8), [0, 1, 2, 9])}, ValueError, "in 0..4, the classifier's 5"),
    "channels": ({"dataset": (torch.zeros(4, 2, 8, 8), [0, 1, 2, 3])}, ValueError, "channels must be 1 or 3, got 2"),
    "range": ({"dataset": (torch.full((4, 1, 8, 8), 9.0), [0] * 4)}, ValueError, r"must be in \[0, 1\], got values"),
    "name": ({"name": "my/net"}, ValueError, "name must be of letters"),
    "no density": ({"density": None}, ValueError, "no shipped model takes images of shape"),
    "density": ({"density": "nothing"}, ValueError, "unknown model 'nothing'"),
    "engine": ({"engine": "abacus"}, ValueError, "unknown engine 'abacus'"),
    "batch": ({"batch_size": 0}, ValueError, "batch_size must be an integer of at least 1"),
    "seed": ({"seed": -1}, ValueError, "seed must be"),
    "progress": ({"progress": 1}, TypeError, "progress must be True or False"),
}


@pytest.mark.parametrize("what", WRONG)
def test_errors_come_before_any_work(world: World, tmp_path, what):
    changes, error, words = WRONG[what]
    given = {"model": SmallCNN().eval(), **changes}
    with pytest.raises(error, match=words):
        evaluate(world, given.pop("model"), tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_folders_of_other_things_are_refused(world: World, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file is a file, expected a folder for the results"):
        evaluate(world, SmallCNN().eval(), tmp_path / "file")
    with pytest.raises(FileExistsError, match=r"holds other things, such as file: pass an empty folder"):
        evaluate(world, SmallCNN().eval(), tmp_path)
    (tmp_path / "out" / "tables").mkdir(parents=True)
    (tmp_path / "out" / "tables" / "broken.json").write_text("{}")
    with pytest.raises(ValueError, match=r"broken.json"):  # or the report would fail after all the work
        evaluate(world, SmallCNN().eval(), tmp_path / "out")
    assert not entries(tmp_path / "out")


def test_extras_are_asked_for_first(world: World, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(ImportError, match=r"foolbox is not installed: pip install 'pxfast\[attacks\]'"):
        evaluate(world, SmallCNN().eval(), tmp_path / "out", attacks=["gradient-sign"], eps=None)
    assert not (tmp_path / "out").exists()


def test_the_command_names_what_it_cannot_load(refused, world: World, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # where the command looks first, in processes of its own
    (tmp_path / "networks_of_mine.py").write_text(
        "from support.own_classifiers import SmallCNN\nVALUE = 3\n"
        "def trains():\n    return SmallCNN()\ndef fails():\n    raise KeyError('weights')\n"
        "def sized(size):\n    pass\n"
    )
    (tmp_path / "needs_more.py").write_text("import no_such_library\n")
    for text, words in {
        "networks_of_mine": "expected a classifier as package.module:name",
        "networks_of_mine.py:trains": "a file is no name of a module",
        "no_such_module:make": "there is no module 'no_such_module', neither in",
        "needs_more:make": "needs_more imports 'no_such_library', which is not installed",
        "networks_of_mine:make": "there is no 'make' in networks_of_mine; it has SmallCNN, trains, fails, sized",
        "networks_of_mine:VALUE": "expected an nn.Module, or a function that gives one, got int",
        "networks_of_mine:sized": "needs arguments (size)",
        "networks_of_mine:fails": "networks_of_mine:fails failed: KeyError: 'weights'",
        "networks_of_mine:trains": "in eval mode, got one in training mode",
    }.items():
        arguments = ["--dataset", world.data, "--model", world.model, "--out", tmp_path / "out"]
        assert words in refused("evaluate", "classifier", text, *arguments), text
    assert not (tmp_path / "out").exists()
