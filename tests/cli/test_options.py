"""Options mean the same in every command, and what they are parsed to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import typer

from pxfast.cli.main import app
from pxfast.cli.options import parse_budget, parse_names, settled


def leaves(command: typer.core.TyperCommand, name: str = "") -> Iterator[tuple[str, typer.core.TyperCommand]]:
    """All commands that do something, with their names."""
    for word, each in getattr(command, "commands", {}).items():
        yield from leaves(each, f"{name} {word}".strip())
    if not hasattr(command, "commands"):
        yield name, command


LEAVES = dict(leaves(typer.main.get_command(app)))
DESCRIBING = {"report", "convert openai-tf", "info"}  # they compute nothing that takes long
HERE = {"bench", "tune"}  # they measure one part of the machine: the CPU, and the GPU


def flags(command: typer.core.TyperCommand) -> dict[str, typer.core.TyperOption]:
    """A command's options by the flag that sets them."""
    return {parameter.opts[0]: parameter for parameter in command.params if parameter.param_type_name == "option"}


def declaration(option: typer.core.TyperOption) -> tuple[object, ...]:
    """What an option is but for its default: type, help and how often it is given."""
    limited = getattr(option, "type", option)  # typer 0.29 has dropped click's types
    kind = option.type_descriptor.annotation if limited is option else type(limited)
    limits = getattr(limited, "min", None), getattr(limited, "max", None)
    return kind, limits, option.help, option.multiple, option.is_flag, tuple(option.secondary_opts)


def test_a_flag_means_the_same_in_every_command() -> None:
    found: dict[str, dict[tuple[object, ...], list[str]]] = {}
    for name, command in LEAVES.items():
        for flag, option in flags(command).items():
            # one of training, by name alone; and one that may be several
            if (name, flag) not in (("train-classifier", "--defence"), ("evaluate figures", "--dataset")):
                found.setdefault(flag, {}).setdefault(declaration(option), []).append(name)
    assert len(found) > 40
    assert {flag: list(kinds.values()) for flag, kinds in found.items() if len(kinds) > 1} == {}


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_has_the_options_of_all(name: str) -> None:
    own = flags(LEAVES[name])
    assert "--json" in own
    if name not in DESCRIBING:
        assert "--quiet" in own
        assert "--threads" in own or name == "tune"
        assert "--device" in own or name in HERE
    assert all(option.help for option in own.values())
    assert not any("defense" in flag for flag in own)


def test_names_and_precisions() -> None:
    assert parse_names(None) is None
    assert parse_names("a, b,") == ["a", "b"]
    assert settled("auto") is None
    assert settled("fp32") == "fp32"
    with pytest.raises(ValueError, match="precision must be one of auto, fp32, bf16, got 'fp8'"):
        settled("fp8")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("2h", 7200), ("1h30m", 5400), ("0.5h", 1800)]
)
def test_budget(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "2 h", "h", "-1h", "30m1h", "forever"])
def test_bad_budget(text):
    with pytest.raises(ValueError, match="budget must be a duration such as 45m"):
        parse_budget(text)
