"""The referee: numbers that are known beforehand, checks that notice, and runs that go on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from support.helpers import environment, random_model
from support.small_defences import Halves
from torch import Tensor, nn

import pxfast
from pxfast.attacks import BPDA, PGD, LikelihoodAware, UnrolledBIM, defence_aware
from pxfast.defences import Defended
from pxfast.evaluation.judge import CLEAN, Job, Judge
from pxfast.evaluation.purifier_check import check_purifier
from pxfast.evaluation.results import read_tables
from pxfast.evaluation.sanity import compare, none_left, sign_test
from pxfast.evaluation.verdict import votes_right
from pxfast.tensors.seeds import image_seeds, standard_normal, unseen_seed
from pxfast.tensors.store import Store

QUICK = ["blind-pgd:steps=5", "bpda:steps=10", "apgd-bpda:steps=10"]
EPS = 4


class Shake(nn.Module):
    """Noise from the seeds."""

    stochastic, runs = True, 1

    def draw(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        return (images + 0.1 * standard_normal(seeds, images)).clamp(0.0, 1.0)

    def forward(self, images: Tensor) -> Tensor:
        return self.draw(images, image_seeds(images, 0))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def judged(net: nn.Module, purifier: nn.Module, images: Tensor, out: Path, **rest) -> pxfast.evaluation.Verdict:
    """The verdict on images that the network is right about behind the purifier."""
    labels = Defended(net, [purifier])(images).argmax(1)
    given = {"attacks": QUICK, "eps": EPS, "progress": False, "report": False, **rest}
    return pxfast.referee(net, purifier.eval(), (images, labels), out=out, **given)


def test_the_identity_has_the_numbers_of_the_plain_attacks(net, images, tmp_path) -> None:
    verdict = judged(net, nn.Identity(), images, tmp_path, name="PixelDefend", report=True)
    assert verdict.defended == verdict.static or [(a.attack, a.majority, a.queries) for a in verdict.defended] == [
        (a.attack, a.majority, a.queries) for a in verdict.static
    ]
    labels = net(images.float() / 255).argmax(1)
    plain = BPDA(steps=10).run(Defended(net, [nn.Identity()]), images, labels, EPS)
    score = next(score for score in verdict.defended if score.attack.startswith("BPDA"))
    assert score.majority == score.worst == 24 - int(plain.rounded.sum())
    assert score.queries == (round(float(plain.queries.double().mean()), 2), int(plain.queries.max()))
    assert verdict.strongest.majority <= min(each.majority for each in verdict.defended)
    assert verdict.sound
    assert verdict.runs == 1
    assert "the strongest of Transfer, undefended, steps 5, BPDA, steps 10 and" in verdict.report.read_text()
    (table,) = read_tables(tmp_path)
    assert table.name == verdict.table
    assert [cell.queries for cell in table.cells] == [each.queries for each in (*verdict.defended, *verdict.static)]
    assert table.cell("defended", "strongest", EPS).correct == verdict.strongest.majority
    assert "95 % interval" in str(verdict)
    (written,) = (tmp_path / "verdicts").glob("*.json")
    assert json.loads(written.read_text()) == json.loads(verdict.to_json())


def test_ten_runs_of_a_random_purifier_by_their_seeds(net, images, tmp_path) -> None:
    verdict = judged(net, Shake(), images, tmp_path, seed=5)
    labels = Defended(net, [Shake()])(images).argmax(1)
    x = images.float() / 255
    runs = torch.stack([Defended(net, [Shake()], seed=unseen_seed(5, run))(x).argmax(1) for run in range(10)])
    clean = verdict.defended[0]
    assert clean.average == pytest.approx(float((runs == labels).double().mean()), abs=1e-6)
    assert clean.worst == int((runs == labels).all(0).sum())
    assert clean.majority == int((runs.mode(dim=0).values == labels).sum())
    assert 0 < clean.worst < clean.majority < 24
    for score in verdict.defended:
        assert score.worst <= score.majority
        assert score.worst / 24 <= score.average
    assert verdict.runs == 10


def test_no_run_has_the_noise_that_an_attack_has_seen(net, images, tmp_path) -> None:
    """Forty steps against one draw of the noise leave nothing of it; other draws have more left."""
    verdict = judged(net, Shake(), images, tmp_path, attacks=["pgd"], seed=5)
    labels = Defended(net, [Shake()])(images).argmax(1)
    attacked = PGD()(Defended(net, [Shake()], seed=5), images, labels, EPS, seed=5)
    score = next(score for score in verdict.defended if score.attack == "PGD")
    unseen = [Defended(net, [Shake()], seed=unseen_seed(5, run))(attacked).argmax(1) == labels for run in range(10)]
    assert score.average == pytest.approx(float(torch.stack(unseen).double().mean()), abs=1e-6)
    seen = Defended(net, [Shake()], seed=5)(attacked).argmax(1) == labels
    assert score.average > float(seen.double().mean())


def test_attacks_on_the_row_are_said_to_know_it_and_count_as_white_box(net, images, tmp_path) -> None:
    verdict = judged(net, Halves(), images, tmp_path, attacks=["pgd", "blind-pgd:steps=2"], check_images=8)
    (table,) = read_tables(tmp_path)
    known = {settings["attack"]: settings["knows the defences"] for settings in table.settings["attacks"].values()}
    assert known == {"pgd": True, "blind-pgd": False}
    names = [check.name for check in verdict.checks]
    assert "random search does not beat gradients" in names
    assert not [name for name in names if name.startswith("black-box") and "PGD" in name and "Transfer" not in name]


def test_blind_attacks_are_made_once_for_a_classifier(net, images, tmp_path, monkeypatch) -> None:
    asked = []
    real = defence_aware.loss_gradient

    def counted(classifier: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        asked.append(len(x))
        return real(classifier, x, labels)

    monkeypatch.setattr(defence_aware, "loss_gradient", counted)
    judged(net, Halves(), images, tmp_path, attacks=["blind-pgd:steps=2"], check_images=1)
    assert sum(asked) == 2 * len(images)


def test_the_unrolled_attack_may_be_the_only_one(net, tmp_path) -> None:
    """Its number of steps follows eps unless it is given."""
    labels = torch.zeros(1, dtype=torch.int64)
    judge = Judge(Store(tmp_path), torch.zeros(1, 1, 8, 8, dtype=torch.uint8), labels, EPS, 0, 1, 8)
    target = judge.target(Defended(net, [Halves()]))
    found = {CLEAN: labels[None], "Unrolled BIM": labels[None]}
    checks = judge.checks(target, [Job("Unrolled BIM", UnrolledBIM())], found, 1)
    assert checks[0].outcome == "inconclusive"


def test_images_of_an_attack_are_those_of_its_own_networks(net, tmp_path) -> None:
    """A density model that is written anew at the same place is another one."""
    path, found = tmp_path / "density.safetensors", []
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    labels = net(images.float() / 255).argmax(1)
    for seed in (0, 1):
        pxfast.save(random_model((8, 8), seed=seed), path, force=True)
        attack = LikelihoodAware(steps=3, searches=1, model=path)
        judge = Judge(Store(tmp_path / "store"), images, labels, EPS, 0, 1, 8)
        target = judge.target(Defended(net, [nn.Identity()]))
        found.append(judge.attacked(target, attack, EPS, 2)[0])
        assert torch.equal(found[-1], attack(target.module, images, labels, EPS, seed=0))
    assert not torch.equal(*found)


def test_votes_and_ties() -> None:
    predicted = torch.tensor([[0, 1, 0, 2], [0, 2, 1, 2], [1, 1, 2, 1], [2, 2, 0, 2]])
    assert votes_right(predicted, torch.tensor([0, 1, 0, 1])).tolist() == [True, False, True, False]


def test_a_wrong_gradient_is_noticed_and_shown_beside_the_row(net, images, tmp_path) -> None:
    many = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))

    class Against(nn.Module):
        """A value that is right, and a gradient of the opposite sign."""

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = net(x) if not x.requires_grad else 2.0 * net(x).detach() - net(x)
            return logits

    verdict = pxfast.referee(
        Against().eval(),
        nn.Identity().eval(),
        (many, net(many.float() / 255).argmax(1)),
        out=tmp_path,
        attacks=["bpda:steps=20", "spsa:steps=5,pairs=32"],
        eps=8,
        progress=False,
    )
    failed = {check.name for check in verdict.checks if check.outcome == "failed"}
    assert "a large eps reaches 0 %" in failed
    assert any(name.startswith("black-box") for name in failed)
    assert not verdict.sound
    (table,) = read_tables(tmp_path)
    assert set(table.rows[0].failed) == failed
    assert table.rows[0].checks == list(verdict.checks)
    assert verdict.report.read_text().count("a sanity check failed: ") == 1


def test_checks_by_hand() -> None:
    yes, no = torch.ones(20, dtype=torch.bool), torch.zeros(20, dtype=torch.bool)
    assert compare("c", ("w", yes), ("s", no), yes).outcome == "passed"
    assert compare("c", ("w", no), ("s", yes), yes).outcome == "failed"
    assert compare("c", ("w", yes), ("s", yes), yes).outcome == "inconclusive"
    assert compare("c", ("w", no), ("s", no), yes).outcome == "passed"
    one = yes.clone()
    one[0] = False
    assert compare("c", ("w", one), ("s", yes), yes).outcome == "inconclusive"
    assert compare("c", ("w", one), ("s", one), one).outcome == "inconclusive", "it broke what was broken"
    assert sign_test(5, 0) == 1 / 32
    assert sign_test(0, 0) == 1.0
    assert [none_left("n", "a", each).outcome for each in (no, ~one, yes)] == ["passed", "inconclusive", "failed"]
    assert compare("c", ("w", no), ("s", no), no).outcome == "passed"


def test_levels_of_the_checks() -> None:
    """A win of 4 to 0 has a chance of 1/16, one of 5 to 0 of 1/32, one of 8 to 1 of 10/512; the level is 5 %.

    Wilson's lower bound of 2 of 20 is 2.8 %, that of 3 is 5.2 %; the limit is 5 %.
    """
    yes = torch.ones(20, dtype=torch.bool)
    for wins, losses, outcome, chance in (
        (4, 0, "inconclusive", "0.062"),
        (5, 0, "failed", "0.031"),
        (8, 1, "failed", "0.02"),
    ):
        weak, strong = yes.clone(), yes.clone()
        weak[:wins], strong[20 - losses :] = False, False
        check = compare("c", ("w", weak), ("s", strong), yes)
        assert check.outcome == outcome
        assert check.numbers == f"{20 - wins} of 20 right under w, {20 - losses} under s; p {chance}"
    for count, outcome in ((0, "passed"), (2, "inconclusive"), (3, "failed")):
        check = none_left("n", "a", torch.arange(20) < count)
        assert (check.outcome, check.numbers) == (outcome, f"{count} of 20 right under a")


def test_another_classifier_is_transferred_from(net, images, tmp_path) -> None:
    """Its own weights: what transfers from a copy is what transfers from the undefended classifier."""
    verdict = judged(net, nn.Identity(), images, tmp_path, surrogates={"a copy": net}, attacks=["blind-pgd", "bpda"])
    by_name = {score.attack: score for score in verdict.defended}
    assert by_name["Transfer, a copy"].majority == by_name["Transfer, undefended"].majority < 24


def test_attacks_and_surrogates_of_one_name_are_refused(net, images, tmp_path) -> None:
    with pytest.raises(ValueError, match="of different names, got 'Transfer, undefended' twice"):
        judged(net, nn.Identity(), images, tmp_path / "a", surrogates={"undefended": net}, attacks=["blind-pgd"])
    assert not (tmp_path / "a").exists()
    both = ["blind-pgd:steps=1", "blind-pgd:steps=2"]
    verdict = judged(net, nn.Identity(), images, tmp_path, attacks=both)
    assert [score.gradients for score in verdict.defended[1:3]] == [(1.0, 1), (2.0, 2)]


class Flips(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.rand_like(images)


class Shrinks(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 1:]


class Centres(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (images - images.mean(dim=0) + 0.5).clamp(0.0, 1.0)


class Wide(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return 255.0 * images


class Hollow(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images / 0.0 * 0.0


class Bytes(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (255.0 * images).to(torch.uint8)


@pytest.mark.parametrize(
    ("purifier", "error", "words"),
    [
        (Flips(), ValueError, "second call: a random one needs stochastic = True"),
        (Shrinks(), ValueError, r"shape \(24, 1, 8, 8\), got \(24, 1, 7, 8\)"),
        (Centres(), ValueError, "depends on the others in its batch"),
        (Wide(), ValueError, r"values in \[0, 1\], got 0 to 255"),
        (Hollow(), ValueError, "got NaN or infinity"),
        (Bytes(), TypeError, "expected floating images, got torch.uint8"),
    ],
)
def test_what_is_wrong_with_a_purifier_is_said_first(purifier, error, words, images) -> None:
    with pytest.raises(error, match=words):
        check_purifier(purifier.eval(), images)


def test_wrong_requests_leave_nothing(net, images, tmp_path) -> None:
    with pytest.raises(ValueError, match="must be in eval mode"):
        pxfast.referee(net, nn.Identity(), (images, [0] * 24), out=tmp_path / "a", progress=False)
    with pytest.raises(ValueError, match="unknown defence 'other'"):
        pxfast.referee(net, "other", (images, [0] * 24), out=tmp_path / "a", progress=False)
    with pytest.raises(ValueError, match="got 'none'"):
        pxfast.referee(net, "none", (images, [0] * 24), out=tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()


def test_a_purifier_by_name_takes_a_density_model_of_ones_own(images, tmp_path) -> None:
    """There is no shipped one of images of other shapes."""
    path = tmp_path / "density.safetensors"
    pxfast.save(random_model((8, 8)), path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval()
    purifier = pxfast.Purifier(eps=4, model=path)
    labels = Defended(net, [purifier])(images[:4]).argmax(1)
    given = {"out": tmp_path / "out", "attacks": ["bpda:steps=2"], "eps": EPS, "progress": False, "report": False}
    with pytest.raises(ValueError, match=r"pass density= \(--model on the command line\)"):
        pxfast.referee(net, "pixeldefend:eps=4", (images[:4], labels), **given)
    with pytest.raises(ValueError, match="the purifier, a Purifier, takes none"):
        pxfast.referee(net, purifier, (images[:4], labels), density=path, **given)
    named = pxfast.referee(net, "pixeldefend:eps=4", (images[:4], labels), density=path, **given)
    own = pxfast.referee(net, purifier, (images[:4], labels), **given)
    assert named.defended[0].average == 1.0
    assert [score.majority for score in named.defended] == [score.majority for score in own.defended]
    assert [score.queries for score in named.defended] == [score.queries for score in own.defended]


SCRIPT = """
import sys, torch, pxfast
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval().requires_grad_(False)
images = torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8)
labels = net(images.float() / 255).argmax(1)
verdict = pxfast.referee(net, nn.Identity().eval(), (images, labels), out=sys.argv[1], batch_size=4,
    attacks=["bpda:steps=10", "spsa:steps=20,pairs=200"], eps=4, progress=False, report=False)
print([(s.attack, s.majority, s.queries) for s in verdict.defended])
"""


@pytest.mark.process
def test_a_killed_run_goes_on(tmp_path) -> None:
    def start(out: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SCRIPT, str(out)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())

    whole, _ = start(tmp_path / "whole").communicate(timeout=120)
    process = start(tmp_path / "cut")
    while process.poll() is None and len(list((tmp_path / "cut").glob("store/*/*.safetensors"))) < 12:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("store/*/*.safetensors")}
    assert kept
    again, _ = start(tmp_path / "cut").communicate(timeout=120)
    assert again == whole
    assert whole.startswith("[('Clean', 24")
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


@pytest.mark.parametrize("name", [pytest.param("median", marks=pytest.mark.whole), "shaken"])
def test_the_example_that_is_not_ours_on_the_command_line(name, tmp_path, capsys, monkeypatch) -> None:
    from support.evaluation_folder import make_world

    from pxfast.cli.main import app

    world = make_world(tmp_path / "world")
    monkeypatch.chdir(Path(__file__).parents[2])
    words = ["evaluate", "adaptive", "--purifier", f"examples.own_purifier:{name}", "--dataset", world.data]
    words += ["--classifier", world.classifiers / "data-resnet62-normal.safetensors", "--images", 4]
    words += ["--columns", "bpda:steps=2", "--out", tmp_path / "out", "--quiet", "--json"]
    app([str(word) for word in words], standalone_mode=False)
    table = json.loads(capsys.readouterr().out)
    assert [row["technique"] for row in table["rows"]] == [
        {"median": "MedianBlur", "shaken": "ShakenMedian"}[name],
        "No defence",
    ]
    assert table["settings"]["runs"] == {"defended": {"median": 1, "shaken": 10}[name], "static": 1}
    assert table["columns"][0]["label"] == "Clean"
    assert len(table["rows"][0]["checks"]) == 3
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Runs and budgets" in page
    assert f"Under BPDA, steps 2 at eps 8, {table['rows'][0]['technique']} takes the" in page
    assert {"median": "Accuracy in % in one run", "shaken": "by the majority of 10 runs"}[name] in page


def test_surrogates_of_one_name_are_refused(tmp_path, monkeypatch) -> None:
    from support.evaluation_folder import make_world

    from pxfast.cli.main import app

    world = make_world(tmp_path / "world")
    (path,) = world.classifiers.glob("*-normal.safetensors")
    words = ["evaluate", "adaptive", "--purifier", "pixeldefend", "--dataset", world.data, "--classifier", path]
    words += ["--surrogate", path, "--surrogate", path, "--out", tmp_path / "out"]
    with pytest.raises(ValueError, match=f"expected surrogates of different names, got {path.stem!r} twice"):
        app([str(word) for word in words], standalone_mode=False)
    assert not (tmp_path / "out").exists()


def test_a_file_whose_name_has_a_colon_is_no_name_of_a_module(tmp_path) -> None:
    from pxfast.classifiers.weights import SHIPPED
    from pxfast.cli.evaluate_adaptive import network

    path = tmp_path / "run 12:30.safetensors"
    path.write_bytes(SHIPPED.path("fashion-mnist").read_bytes())
    assert network(str(path)).config.classes == 10
    with pytest.raises(ValueError, match=r"expected a classifier as package.module:name"):
        network(str(tmp_path / "run 12:31.safetensors"))
