"""Defences by name, as the command line takes them: 'purifier:eps=16,adaptive=image'."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..adp.purifier import ADPPurifier
from ..base.checks import check_text
from ..pixeldefend.purify import Purifier
from .feature_squeezing import FeatureSqueezing

DEFENCES: dict[str, type[nn.Module]] = {
    "purifier": Purifier,
    "adp": ADPPurifier,
    "feature-squeezing": FeatureSqueezing,
}


def fraction(text: str) -> float:
    """'16/255' as a number. ValueError for other texts."""
    match = re.fullmatch(r"(\d+)/([1-9]\d*)", text, re.ASCII)
    if match is None:
        raise ValueError(f"expected a fraction, got {text!r}")
    return int(match[1]) / int(match[2])


def parse_value(text: str) -> bool | int | float | str:
    """True or false or a number where the text is one, as a fraction too (16/255), or else the text itself."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float, fraction):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parse_setting(text: str, known: list[str]) -> tuple[str, bool | int | float | str]:
    """'NAME=VALUE' as both. ValueError for text without '=' and for a name that is not known."""
    name, equals, value = check_text("a setting", text).partition("=")
    if not equals or name not in known:
        raise ValueError(f"expected NAME=VALUE with one of the names {', '.join(known) or '(none)'}, got {text!r}")
    return name, parse_value(value)


def parse_settings(texts: Iterable[str], known: list[str]) -> dict[str, bool | int | float | str]:
    """'NAME=VALUE' each, by name. ValueError as :func:`parse_setting` has it, and for a name that is there twice."""
    found: dict[str, bool | int | float | str] = {}
    for text in texts:
        name, value = parse_setting(text, known)
        if name in found:
            raise ValueError(f"{name} is given twice: {found[name]} and {value}")
        found[name] = value
    return found


def parse_defence(text: str, **more: Any) -> nn.Module:
    """'NAME' or 'NAME:SETTING=VALUE,...' as a defence: one of ``DEFENCES``, with settings of its own.

    text: as above. more: settings that are values already.
    Raises ValueError for another name or setting, TypeError for what is no text, and what the defence raises.
    """
    name, _, settings = check_text("a defence", text).partition(":")
    if name not in DEFENCES:
        raise ValueError(f"unknown defence {name!r}; known: {', '.join(DEFENCES)}")
    known = [setting for setting in inspect.signature(DEFENCES[name]).parameters if setting != "progress"]
    for setting, value in more.items():
        if setting not in known:
            raise ValueError(f"{name} has no setting {setting}={value!r}; it takes {', '.join(known)}")
    given = parse_settings((part for part in settings.split(",") if part), known)
    if twice := given.keys() & more.keys():
        (setting, *_) = sorted(twice)
        raise ValueError(f"{setting} is given twice: in {text!r}, and as {setting} = {more[setting]!r}")
    return DEFENCES[name](**given, **more)
