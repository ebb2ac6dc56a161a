"""Files of every kind that pxfast reads, spoiled in some hundred ways: each is read, or refused by a named error.

No traceback of a foreign kind, no five seconds, no gibibyte, and nothing executed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.helpers import environment

LEAST = 500  # spoiled files


@pytest.mark.process
def test_spoiled_files_are_refused_by_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "support.spoiled_files", str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]  # a hang ends the program with the traceback of all threads
    found = json.loads(done.stdout)
    assert found["problems"] == []
    outcomes: dict[str, dict[str, int]] = found["outcomes"]
    assert len(outcomes) >= 38
    assert sum(sum(counts.values()) for counts in outcomes.values()) >= LEAST
    # what is only kept to save work is read as nothing, and computed anew
    kept = {name for name, counts in outcomes.items() if "refused" not in counts}
    assert {name.partition("/")[0] for name in kept} == {"store", "cache"}
    assert not any(counts.get("read", 0) > counts["refused"] for name, counts in outcomes.items() if name not in kept)
