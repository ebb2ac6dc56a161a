"""The referee's work: what is kept belongs to all that it depends on, and is of the images that were asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.small_defences import Halves, Noisy
from torch import Tensor, nn

from pxfast.attacks import BPDA, FGSM, Attack, BlindPGD
from pxfast.attacks.result import AttackResult
from pxfast.defences import Defended
from pxfast.evaluation.judge import CLEAN, Job, Judge, Target
from pxfast.evaluation.results import FAILED, INCONCLUSIVE, PASSED
from pxfast.tensors.store import Store

EPS = 4
IMAGES = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval().requires_grad_(False)


LABELS = network()(IMAGES / 255.0).argmax(1)


def judged(
    folder: Path,
    *,
    classifier: nn.Module | None = None,
    purifier: nn.Module | None = None,
    attack: Attack | None = None,
    images: Tensor = IMAGES,
    labels: Tensor = LABELS,
    eps: int = EPS,
    seed: int = 0,
    runs: int = 3,
    count: int = 4,
) -> tuple[Tensor, Tensor, float]:
    """The first ``count`` images attacked, what all images are predicted as, and the attack's seconds."""
    judge = Judge(Store(folder), images, labels, eps, seed, runs, 3)
    target = judge.target(Defended(classifier or network(), [purifier or Noisy()]))
    moved, _, seconds = judge.attacked(target, attack or BPDA(steps=3, draws=2), eps, count)
    return moved, judge.predicted(target, images), seconds


def same(one: tuple[Tensor, Tensor, float], other: tuple[Tensor, Tensor, float]) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize(
    "change",
    [
        {"classifier": network(1)},
        {"purifier": Noisy(0.4)},
        {"attack": BPDA(steps=2, draws=2)},
        {"images": 255 - IMAGES},
        {"labels": (LABELS + 1) % 5},
        {"eps": 2},
        {"seed": 1},
        {"runs": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_kept_is_taken_for_nothing_else(tmp_path, change: dict) -> None:
    """After another judgement in the same folder the result is that of a folder of its own."""
    first = judged(tmp_path / "kept")
    alone = judged(tmp_path / "alone", **change)
    assert not same(first, alone)
    assert same(judged(tmp_path / "kept", **change), alone)
    assert same(judged(tmp_path / "kept"), first)


def counting(monkeypatch: pytest.MonkeyPatch) -> list[AttackResult]:
    """Pieces of results, as attacks make them from now on."""
    pieces: list[AttackResult] = []
    real = Attack.in_pieces

    def in_pieces(self: Attack, take, *arguments, **options) -> None:
        def taken(places: Tensor, result: AttackResult) -> None:
            pieces.append(result)
            take(places, result)

        real(self, taken, *arguments, **options)

    monkeypatch.setattr(Attack, "in_pieces", in_pieces)
    return pieces


def test_an_attack_is_made_once_and_anew_by_other_code_or_libraries(tmp_path, monkeypatch) -> None:
    pieces = counting(monkeypatch)
    first = judged(tmp_path)
    assert sum(len(piece.images) for piece in pieces) == 4
    assert first[2] == pytest.approx(sum(piece.seconds for piece in pieces)), "all images' seconds, each once"
    pieces.clear()
    assert judged(tmp_path)[2] == pytest.approx(first[2])
    assert torch.equal(judged(tmp_path, count=2)[0], first[0][:2]), "the first images"
    assert pieces == []
    for name, value in (("attack_code", lambda name: "another"), ("library_versions", lambda: {"torch": "another"})):
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(f"pxfast.evaluation.judge.{name}", value)
            assert torch.equal(judged(tmp_path)[0], first[0])
        assert sum(len(piece.images) for piece in pieces) == 4, name
        pieces.clear()


class InPairs(FGSM):
    """An attack whose results depend on the others of the block, as the libraries' do."""

    alone, block = False, 2


def test_attacks_of_whole_blocks_are_kept_by_the_block(tmp_path, monkeypatch) -> None:
    given = {"attack": InPairs(), "purifier": Halves()}
    expected = judged(tmp_path / "fgsm", attack=FGSM(), purifier=Halves())[0]
    assert torch.equal(judged(tmp_path / "at once", **given)[0], expected)
    pieces = counting(monkeypatch)
    assert torch.equal(judged(tmp_path / "kept", count=2, **given)[0], expected[:2])
    assert len(pieces) == 1
    assert torch.equal(judged(tmp_path / "kept", **given)[0], expected)
    assert [len(piece.images) for piece in pieces] == [2, 2]
    assert torch.equal(judged(tmp_path / "kept", **given)[0], expected)
    assert len(pieces) == 2


def test_checks_compare_the_right_attacks_on_the_first_images(tmp_path, monkeypatch) -> None:
    """What the attacks made for the checks find is given here; those of the row come with ``found``."""
    count, most = 6, 8
    images = IMAGES.repeat(2, 1, 1, 1)
    labels = LABELS.repeat(2)
    judge = Judge(Store(tmp_path), images, labels, EPS, 0, 1, 3)
    target = judge.target(Defended(network(), [Halves()]))

    def right_at(*which: int) -> Tensor:
        wrong = (labels + 1) % 5
        wrong[list(which)] = labels[list(which)]
        return wrong[None]

    everywhere = range(most)
    jobs = [
        Job("BlindPGD", BlindPGD(steps=40)),
        Job("Transfer", BPDA(steps=40), source=target),
        Job("FGSM", FGSM()),
        Job("BPDA, steps 40", BPDA(steps=40)),
    ]
    found = {
        CLEAN: right_at(*everywhere),
        "BlindPGD": right_at(*everywhere),
        "Transfer": right_at(6, 7),
        "FGSM": right_at(*everywhere),
        "BPDA, steps 40": right_at(0, 1, 2, 3, 4, 7),
    }
    left_by = {"bpda": right_at(1, 2, 3, 4, 5, 6), "apgd-bpda": right_at(6), "random-search": right_at(7)}
    asked = []

    def attacked(self: Judge, to: Target, attack: Attack, eps: int, few: int) -> tuple[Attack, dict, float]:
        asked.append((attack.name, attack.options.get("steps"), eps, few))
        return attack, {}, 0.0

    monkeypatch.setattr(Judge, "attacked", attacked)
    monkeypatch.setattr(Judge, "predicted", lambda self, to, attack: left_by[attack.name][:, :count])
    checks = judge.checks(target, jobs, found, count)
    assert asked == [("bpda", 4, EPS, count), ("apgd-bpda", 100, 255, count), ("random-search", 100, EPS, count)]
    black_box = "black-box does not beat white-box"
    assert [(check.name, check.outcome) for check in checks] == [
        ("more steps never help the defence", PASSED),
        ("a large eps reaches 0 %", PASSED),
        ("random search does not beat gradients", FAILED),
        (f"{black_box}: BlindPGD", PASSED),
        (f"{black_box}: Transfer", FAILED),
    ]
    of_the_first = "5 of 6 right under BPDA of 4 steps, 5 under 40 steps", "0 of 6 right under APGD, eps 255"
    assert tuple(check.numbers for check in checks[:2]) == of_the_first
    assert checks[2].numbers == "0 of 6 right under random search, 5 under the attacks with gradients; p 0.031"

    without = judge.checks(target, jobs[:2], {label: found[label] for label in (CLEAN, "BlindPGD", "Transfer")}, count)
    assert [(check.name, check.outcome) for check in without] == [
        ("more steps never help the defence", INCONCLUSIVE),
        ("a large eps reaches 0 %", PASSED),
    ]
