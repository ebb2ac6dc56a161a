"""The CPU engine's products on AMX's tiles, by its own source with the instructions in plain code: for any machine.

On a machine with AMX test_instruction_sets.py and test_blocks.py judge the real one.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from support import cpu_driver
from support.building import portable_commands
from support.helpers import noisy, real_images, trained_model

from pxfast.engines import compiled
from pxfast.engines.schedule import schedule_for
from pxfast.pixeldefend.verify import verify

pytestmark = pytest.mark.compile

SIZE = (8, 8)
# channels, filters, head: cells of 20 and 34 channels have room for 32 and 64, and 80 outputs are five tiles
CASES = {"colour": (3, 10, "logistic"), "grey": (1, 17, "softmax"), "wide": (1, 40, "logistic")}


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ here")
    commands = portable_commands("g++", "-O1")
    commands["isa_portable.cpp"].append("-DkBackendBf16_portable=kReplacedBackend")
    return cpu_driver.build(tmp_path_factory, "emulated-tiles", commands, ["emulated_tiles.cpp"])


@pytest.mark.parametrize("case", CASES)
def test_products_on_tiles_are_exact_and_of_equal_bits_in_any_batch(program, case):
    """Of as many images as two tiles have rows, fewer and more, so that every shape of tiles is taken."""
    channels, filters, head = CASES[case]
    model = trained_model(SIZE, channels, filters, 1, head, 12)
    images = noisy(real_images(channels, SIZE, 70))
    described = compiled.program_of(schedule_for(model))

    def decode(first: int, last: int, **way) -> torch.Tensor:
        part = images[first:last].contiguous().numpy()
        found, _ = cpu_driver.decode([program], described, part, isa="portable", precision="bf16", **way)
        return torch.from_numpy(found)

    whole = decode(0, 70)
    verdict = verify(images, whole, 16, model=model, precision="bf16")
    assert verdict.passed, str(verdict)
    for first, last in ((0, 1), (1, 4), (2, 17), (3, 19), (0, 17), (5, 36), (6, 39), (7, 54), (6, 70)):
        assert torch.equal(decode(first, last), whole[first:last]), f"{last - first} images"
    assert torch.equal(decode(0, 70, threads=3), whole)
    for threads in (1, 2):
        assert torch.equal(decode(8, 9, order="speculative", threads=threads), whole[8:9])
