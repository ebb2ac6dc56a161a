"""bench/training_rate.py: a row of the table, and the operations that take longest."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
from support.helpers import SOURCE


def test_a_row_and_the_longest_operations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.syspath_prepend(str(SOURCE / "bench"))
    module = importlib.import_module("training_rate")
    monkeypatch.setattr(module, "matrix_rate", lambda *_, **__: 100.0)
    rows = tmp_path / "rows.jsonl"
    size = ["--filters", "4", "--resnets", "1", "--batch-size", "2", "--steps", "1", "--threads", "1"]
    chosen = ["--device", "cpu", "--compile", "no", "--optimiser", "adam", "--profile", "4", "--json", str(rows)]
    monkeypatch.setattr(sys, "argv", ["training_rate.py", *size, *chosen])
    module.main()
    shown = re.findall(r"^ +([\d.]+) % +(\d+)  (\S+)$", capsys.readouterr().out, flags=re.MULTILINE)
    (row,) = map(json.loads, rows.read_text().splitlines())
    assert [name for _, _, name in shown] == [each["operation"] for each in row["operations"]]
    shares = [each["share"] for each in row["operations"]]
    assert shares == sorted(shares, reverse=True)
    assert 0.0 < sum(shares) < 1.0
    assert "aten::convolution_backward" in {name for _, _, name in shown}
    assert (row["filters"], row["batch"], row["compiled"]) == (4, 2, False)
