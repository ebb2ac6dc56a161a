"""``pxfast info``."""

import json

import numpy as np
import pytest
from support.helpers import run_command

import pxfast


@pytest.mark.process
def test_info(run_here):
    facts = json.loads(run_command("info", "--json").stdout)
    assert facts["pxfast"] == pxfast.__version__
    assert facts["packages"]["numpy"] == np.__version__
    engines = {engine["name"]: engine for engine in facts["engines"]}
    assert engines["reference"]["usable"]
    assert all(engine["usable"] == (engine["reason"] is None) for engine in engines.values())
    assert engines[facts["default_engine"]]["usable"]
    assert [name for name, engine in engines.items() if engine["auto"]] == [facts["default_engine"]]
    assert facts["cpu"]["threads"] >= 1
    assert isinstance(facts["cuda"]["compiled"], bool)
    text, _ = run_here("info")
    for word in (*engines, "fashion-mnist", np.__version__):
        assert word in text
