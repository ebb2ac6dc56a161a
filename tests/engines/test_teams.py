"""A team that decodes one image: whatever its clock says, it ends, and the result is the same bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from support import cpu_driver
from support.building import portable_commands
from support.helpers import noisy, real_images, trained_model

from pxfast.engines import compiled
from pxfast.engines.schedule import schedule_for

pytestmark = pytest.mark.compile

SEEDS = 12
# what a member reads late, after the first has gone on alone, is seen by the thread sanitizer alone
BUILDS = {"plain": ("-static",), "thread-sanitizer": ("-fsanitize=thread", "-O1")}


@pytest.fixture(scope="session", params=BUILDS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    flags = BUILDS[request.param]
    commands = portable_commands("g++", "-DPXFAST_TEST_CLOCK", *flags)
    return cpu_driver.build(tmp_path_factory, f"teams-{request.param}", commands, ["jumping_clock.cpp"], flags)


@pytest.mark.parametrize("order", ["sequential", "speculative", "auto"])
def test_a_team_ends_and_agrees_whatever_its_clock_says(
    program: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained_model((16, 16), 3, 10, 1, "logistic", 12)
    described = compiled.program_of(schedule_for(model))
    images = noisy(real_images(3, (16, 16), 2)).numpy()

    def decode(threads: int, order: str) -> tuple[np.ndarray, list[str]]:
        return cpu_driver.decode(
            [program], described, images, isa="portable", precision="fp32", threads=threads, order=order
        )

    monkeypatch.setenv("JUMPING_CLOCK", "0")
    expected, _ = decode(1, "sequential")
    for seed in range(SEEDS):
        monkeypatch.setenv("JUMPING_CLOCK", str(seed))
        for threads in (1, 6):  # the latter in two teams of three
            found, said = decode(threads, order)
            assert "WARNING" not in said, " ".join(said)
            np.testing.assert_array_equal(found, expected)
