"""A cancelled decode ends soon: how often it asks is counted, in a program of the CPU engine's own sources."""

from __future__ import annotations

import numpy as np
import pytest
from support import cpu_driver
from support.building import portable_commands
from support.helpers import noisy, random_model, real_images

from pxfast.engines import compiled
from pxfast.engines.schedule import Schedule, schedule_for

pytestmark = pytest.mark.compile

PANEL = 120  # rows of a matrix product that are computed without a question
IMAGES, SIZE = 40, (8, 16)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    commands = portable_commands("g++", "-O1")
    commands["isa_portable.cpp"].append("-DkBackendFp32_portable=kWatchedBackend")
    return cpu_driver.build(tmp_path_factory, "watched", commands, ["watched_backend.cpp"])


def panels_of_rows(schedule: Schedule) -> int:
    """The panels of the vertical stream's products with cells of their own level, of a whole block."""
    H, W = SIZE
    return sum(
        (H >> step.level) * -(-(W >> step.level) * IMAGES // PANEL)
        for step in schedule.steps
        if step.per_row and step.scale == 0
    )


def test_a_decode_asks_before_every_panel_and_ends_at_the_first_no(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = schedule_for(random_model(SIZE, 1))
    described = compiled.program_of(schedule)
    images = noisy(real_images(1, SIZE, IMAGES)).numpy()

    def decode(after: int) -> tuple[np.ndarray, bool, int]:
        monkeypatch.setenv("CANCELLED_AFTER", str(after))
        found, said = cpu_driver.decode([program], described, images, isa="portable", precision="fp32")
        return found, said[0] == "1", int(said[1])

    whole, finished, total = decode(10**9)
    assert finished
    assert total >= SIZE[0] * SIZE[1] + panels_of_rows(schedule)
    again, finished, asked = decode(total)
    assert finished
    assert asked == total
    np.testing.assert_array_equal(again, whole)
    for after in (0, 1, 7, total // 3, total // 2, total - 2, total - 1):
        _, finished, asked = decode(after)
        assert not finished
        # each step and stretch that is left of a row asks once more, and then the pixel
        assert asked <= after + 2 * len(schedule.steps) * SIZE[1]
