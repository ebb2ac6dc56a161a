"""Every instruction set of the CPU engine is exact, and gives the same bits in any batch, order and team."""

from pathlib import Path

import pytest
import torch
from support.engine_cases import CASES, FEW, SMALL, assert_exact, assert_largest_below_255, attacked, decode
from support.engines import INSTRUCTION_SETS
from support.helpers import real_images, wide_component_model

from pxfast.engines.registry import select
from pxfast.engines.schedule import schedule_for
from pxfast.engines.settings import DecodeSettings


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request: pytest.FixtureRequest) -> str:
    return request.param


ISA_CASES = [  # both heads, even and odd sizes, one channel and three
    pytest.param(case, marks=[pytest.mark.whole] * (case not in FEW), id=str(case))
    for case in (SMALL, CASES[6], CASES[7], CASES[-1])
]


@pytest.mark.parametrize("case", ISA_CASES)
def test_every_instruction_set_is_exact_and_batch_invariant(isa, case, precision):
    model, images = case.model(), attacked(case, 7)
    result = decode("cpu", model, images, 16, precision, isa=isa)
    assert isa in {key[2] for key in schedule_for(model).compiled}, "the path was taken"
    assert_exact(model, images, result, 16, precision)
    assert torch.equal(decode("cpu", model, images[3:4], 16, precision, isa=isa), result[3:4])


def test_every_instruction_set_knows_components_wider_than_fp32(isa, precision):
    model, images = wide_component_model(3, "pixelcnn++"), real_images(3, (4, 4), 2).clamp(min=4)
    assert_largest_below_255(model, images, decode("cpu", model, images, 3, precision, isa=isa), precision)


@pytest.mark.parametrize("case", ISA_CASES)
def test_speculation_and_teams_give_the_sequential_bits(isa, case, precision):
    model, images = case.model(), attacked(case, 5)
    for eps in (16, 255):
        expected = decode("cpu", model, images, eps, precision, isa=isa, order="sequential")
        speculative = decode("cpu", model, images, eps, precision, isa=isa, order="speculative", threads=2)
        assert torch.equal(speculative, expected), eps
        # a single image is shared by a team, which takes turns in how it goes on from row to row
        for order, threads in (("speculative", 3), ("auto", 2), ("auto", 1), ("sequential", 3)):
            alone = decode("cpu", model, images[4:], eps, precision, isa=isa, order=order, threads=threads)
            assert torch.equal(alone, expected[4:]), f"eps {eps}, {order}, a team of {threads}"


@pytest.mark.engine("cpu")
@pytest.mark.parametrize(
    ("setting", "value", "error"),
    [
        ("threads", 0, ValueError),
        ("threads", "2", TypeError),
        ("threads", True, TypeError),
        ("team", 0, ValueError),
        ("order", "random", ValueError),
        ("isa", "avx1024", ValueError),
    ],
)
def test_a_wrong_setting_is_named(setting, value, error):
    with pytest.raises(error, match=f"{setting} must be .*{value!r}" if value != 0 else f"{setting} must be"):
        decode("cpu", SMALL.model(), attacked(SMALL, 1), 4, "fp32", **{setting: value})


@pytest.mark.engine("cpu")
def test_bf16_is_chosen_where_it_is_the_faster(isa):
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        pytest.skip("the processor's maker is read from /proc/cpuinfo")
    intel = "GenuineIntel" in cpuinfo.read_text()
    faster = isa == "avx512amx" or (isa == "avx512bf16" and not intel)
    assert select("cpu").best_precision(DecodeSettings(isa=isa)) == ("bf16" if faster else "fp32")
