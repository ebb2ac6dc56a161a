"""The options of every attack: shown by its signature and its docstring, checked, and enough to make it again."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from pxfast import attacks
from pxfast.attacks import ATTACKS, Attack, find_attack


@pytest.fixture(params=list(ATTACKS))
def attack(request: pytest.FixtureRequest) -> type[Attack]:
    return ATTACKS[request.param]


def test_signature_shows_the_options_and_their_defaults(attack: type[Attack]) -> None:
    for parameter in inspect.signature(attack).parameters.values():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, parameter
        assert parameter.default is not inspect.Parameter.empty, parameter
        assert parameter.annotation is not inspect.Parameter.empty, parameter


def test_docstring_names_every_option_and_the_source(attack: type[Attack]) -> None:
    text = attack.__doc__
    assert text is not None
    assert "Source: " in text
    for option in inspect.signature(attack).parameters:
        assert re.search(rf"(?<!\w){option}[:,]", text), option
    assert attack.source


def test_unknown_options_are_refused(attack: type[Attack]) -> None:
    with pytest.raises(TypeError):
        attack(speed=3)
    with pytest.raises(TypeError):
        find_attack(attack.name, speed=3)


def test_options_make_the_attack_again(attack: type[Attack]) -> None:
    made = find_attack(attack.name)
    assert type(made) is attack
    assert made.options == {name: p.default for name, p in inspect.signature(attack).parameters.items()}
    assert find_attack(attack.name, **made.options).options == made.options
    assert pickle.loads(pickle.dumps(made)).options == made.options
    assert repr(made) == f"{attack.__name__}({', '.join(f'{name}={value!r}' for name, value in made.options.items())})"


def test_counts_are_whole_numbers_and_no_negative_ones(attack: type[Attack]) -> None:
    counts = [name for name, p in inspect.signature(attack).parameters.items() if p.annotation in ("int", "int | None")]
    for name in counts:
        with pytest.raises(ValueError, match=rf"{name} must be .*integer of at least \d, got -1"):
            attack(**{name: -1})
        for wrong in (1.5, True, "1"):
            with pytest.raises(TypeError, match=rf"{name} must be .*integer of at least"):
                attack(**{name: wrong})


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("fgsm", {"label_rule": "true"}, ValueError, r"label_rule must be one of given, predicted, got 'true'"),
        ("pgd", {"step": 0.0}, ValueError, r"step must be a number in \(0, inf\), got 0.0"),
        ("pgd", {"step": "2"}, TypeError, "step must be a number"),
        ("deepfool", {"overshoot": -0.1}, ValueError, r"overshoot must be a number in \[0, inf\), got -0.1"),
        (
            "cw-l2",
            {"learning_rate": float("inf")},
            ValueError,
            r"learning_rate must be .* \(0, inf\), got inf",
        ),
        ("cw-linf", {"shrinkage": 1}, ValueError, r"shrinkage must be a number in \(0, 1\), got 1"),
        ("cw-linf", {"smallest": float("nan")}, ValueError, r"smallest must be a number in \(0, 1\], got nan"),
        ("saliency-map", {"theta": 1.5}, ValueError, r"theta must be a number in \[-1, 1\], got 1.5"),
        ("saliency-map", {"theta": 0}, ValueError, "theta must not be 0"),
        ("lbfgs", {"first_const": True}, TypeError, "first_const must be a number"),
        ("autoattack", {"version": "custom"}, ValueError, "version must be one of standard, plus, rand, got 'custom'"),
        ("blind-pgd", {"random_start": 1}, TypeError, "random_start must be True or False, got 1"),
        ("bpda-eot", {"draws": 0}, ValueError, "draws must be an integer of at least 1, got 0"),
        ("bpda", {"max_queries": -1}, ValueError, "max_queries must be None or an integer of at least 0, got -1"),
        ("joint-full", {"at": "middle"}, ValueError, "at must be one of image, purified, got 'middle'"),
        ("joint-full", {"weight": 1.5}, ValueError, r"weight must be a number in \[0, 1\], got 1.5"),
        ("unrolled-bim", {"temperature": 0}, ValueError, r"temperature must be a number in \(0, inf\), got 0"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        find_attack(name, **options)


def test_every_attack_is_exported() -> None:
    assert {attack.__name__ for attack in ATTACKS.values()} <= set(attacks.__all__)
    assert all(hasattr(attacks, name) for name in attacks.__all__)
