"""The choice of an engine: by name, or the first that can run."""

import dataclasses
import warnings
from pathlib import Path

import pytest

from pxfast.engines import registry
from pxfast.engines.registry import ENGINES, select


def test_an_unknown_engine_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown engine 'gpu'; known: auto, .*reference"):
        select("gpu")


def test_an_engine_that_cannot_run_says_why(monkeypatch):
    for name, entry in list(ENGINES.items()):
        if name != "reference":
            monkeypatch.setitem(ENGINES, name, dataclasses.replace(entry, unavailable=lambda: "the moon is full"))
    with pytest.raises(RuntimeError, match="'cpu' can't run here: the moon is full"):
        select("cpu")
    registry._tell_of_the_slow_way.cache_clear()
    with pytest.warns(
        RuntimeWarning, match="passes over the cpu engine: the moon is full; the reference engine"
    ) as told:
        assert select("auto").name == "reference"
    assert [Path(warning.filename).name for warning in told] == ["test_registry.py"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert select("auto").name == "reference", "it is said once"
    registry._tell_of_the_slow_way.cache_clear()
