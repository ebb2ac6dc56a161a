"""The CPU engine on aarch64: its own sources, cross-compiled with setup.py's flags and run by an emulator.

What is judged is what test_instruction_sets.py asks of every one: exact, and the same bits in any batch, order and
team. On an aarch64 machine test_instruction_sets.py itself runs there.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from support import cpu_driver
from support.building import compile_commands
from support.engines import INSTRUCTION_SETS
from support.helpers import cells, noisy, real_images, trained_model
from torch import Tensor

from pxfast.engines import compiled, cpu
from pxfast.engines.choosers import Greedy
from pxfast.engines.schedule import schedule_for
from pxfast.engines.settings import DecodeSettings
from pxfast.pixelcnn.network import PixelCNN
from pxfast.pixeldefend.verify import verify

pytestmark = pytest.mark.compile

# (image size, channels, filters, resnets, head, steps of training); both heads, and filters that fill no vector
CASES = {
    "logistic-colour": ((8, 8), 3, 10, 1, "logistic", 12),
    "softmax-odd": ((8, 8), 1, 17, 1, "softmax", 12),
}
WAYS = [("neon", "fp32"), ("neon", "bf16"), ("neonbf16", "bf16")]


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that decodes on an aarch64 processor with all that the emulator has."""
    for tool in ("aarch64-linux-gnu-g++", "qemu-aarch64"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool} here")

    commands = compile_commands("aarch64-linux-gnu-g++", "aarch64")
    return ["qemu-aarch64", "-cpu", "max", cpu_driver.build(tmp_path_factory, "cpu-driver-aarch64", commands)]


def model_of(name: str) -> PixelCNN:
    return trained_model(*CASES[name])


def images_of(name: str, count: int) -> Tensor:
    size, channels, *_ = CASES[name]
    return noisy(real_images(channels, size, count))


def decode(command: list[str], name: str, images: Tensor, isa: str, precision: str, **way) -> Tensor:
    described = compiled.program_of(schedule_for(model_of(name)))
    result, usable = cpu_driver.decode(command, described, images.numpy(), isa=isa, precision=precision, **way)
    assert usable == ["neonbf16", "neon", "portable"]
    return torch.from_numpy(result)


@pytest.mark.parametrize(("isa", "precision"), WAYS)
@pytest.mark.parametrize("name", CASES)
def test_exact_and_the_same_bits_in_any_batch_order_and_team(emulated, name, isa, precision):
    images = images_of(name, 7)  # a full tile of rows, and a ragged one
    result = decode(emulated, name, images, isa, precision)
    verdict = verify(images, result, 16, model=model_of(name), precision=precision)
    assert verdict.passed, f"{verdict}"
    for first, last, way in (
        (3, 4, {}),
        (0, 7, {"threads": 3}),
        (0, 2, {"order": "speculative"}),
        (2, 3, {"order": "speculative", "threads": 3}),
    ):
        part = decode(emulated, name, images[first:last], isa, precision, **way)
        assert torch.equal(part, result[first:last]), f"images {first} to {last}, {way}"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("isa", "other", "precision"),
    [
        ("neon", "avx2", "fp32"),
        ("neon", "avx2", "bf16"),
        ("neonbf16", "avx2", "fp32"),
        ("portable", "portable", "fp32"),
        ("portable", "portable", "bf16"),
    ],
)
def test_the_same_bits_as_on_x86(emulated, name, isa, other, precision):
    """Both round alike: products and sums fused and in the same order, or neither. bfdot rounds as no x86 set does."""
    if other not in INSTRUCTION_SETS:
        pytest.skip(f"{other} can't run here")
    images = images_of(name, 3)
    expected = cpu.decode(
        schedule_for(model_of(name)), images, Greedy(16), precision=precision, settings=DecodeSettings(isa=other)
    )
    assert torch.equal(decode(emulated, name, images, isa, precision), expected)
    chooser = Greedy(within=cells(images, 64))
    expected = cpu.decode(
        schedule_for(model_of(name)), images, chooser, precision=precision, settings=DecodeSettings(isa=other)
    )
    assert torch.equal(decode(emulated, name, images, isa, precision, chooser=chooser), expected)


def test_without_bf16_instructions_neon_is_left(emulated):
    """A Cortex-A72 (Graviton 1, Raspberry Pi 4) knows no bfdot: the set is not offered, and to ask for it is wrong."""
    older = ["qemu-aarch64", "-cpu", "cortex-a72", emulated[-1]]
    described = compiled.program_of(schedule_for(model_of("softmax-odd")))
    images = images_of("softmax-odd", 1)
    result, usable = cpu_driver.decode(older, described, images.numpy(), isa="", precision="fp32")
    assert usable == ["neon", "portable"]
    assert torch.equal(torch.from_numpy(result), decode(emulated, "softmax-odd", images, "neon", "fp32"))
    with pytest.raises(
        AssertionError, match="unknown or unusable instruction set 'neonbf16'; usable here: neon, portable"
    ):
        cpu_driver.decode(older, described, images.numpy(), isa="neonbf16", precision="bf16")
