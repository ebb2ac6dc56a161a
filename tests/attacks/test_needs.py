"""Attacks say before they run which defences they can be made on, and which library they call."""

from __future__ import annotations

import sys

import pytest
from torch import nn

import pxfast
from pxfast import attacks
from pxfast.attacks import ADAPTIVE, ATTACKS
from pxfast.defences import FeatureSqueezing

KNOWING = {attack.name for attack in ADAPTIVE} - {"blind-pgd"}
SQUEEZING, PURIFIER = FeatureSqueezing(), pxfast.Purifier(4)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_on_defences_need_one(name: str) -> None:
    attack = attacks.find_attack(name)
    assert attack.knows_defences == (name in KNOWING)
    if attack.knows_defences:
        with pytest.raises(ValueError, match=f"{name} (attacks a purifier|needs)"):
            attack.check_defences([])
    else:
        attack.check_defences([])
    if name != "full-gradient":
        attack.check_defences([PURIFIER])


@pytest.mark.parametrize(
    ("name", "defences", "words"),
    [
        ("joint-score", [SQUEEZING], "needs a single purifier with a score, got FeatureSqueezing"),
        ("joint-score", [PURIFIER, SQUEEZING], "needs a single purifier with a score, got Purifier, FeatureSqueezing"),
        ("full-gradient", [PURIFIER, SQUEEZING], "needs purifiers that can be differentiated, got "),
        ("unrolled-bim", [pxfast.ADPPurifier()], "needs a pxfast.Purifier as the only defence, got ADPPurifier"),
    ],
)
def test_defences_that_do_not_suit_are_named(name: str, defences: list[nn.Module], words: str) -> None:
    with pytest.raises(ValueError, match=f"{name} {words}"):
        attacks.find_attack(name).check_defences(defences)


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack.library is not None])
def test_a_library_that_is_missing_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = ATTACKS[name].library
    assert library is not None
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"{library} is not installed: pip install 'pxfast\[attacks\]'"):
        attacks.find_attack(name).check_installed()


def test_those_that_call_none_need_none() -> None:
    assert sum(attack.library is not None for attack in ATTACKS.values()) == 10
    for name in ("fgsm", "deepfool", "bpda"):
        attacks.find_attack(name).check_installed()
