"""The measurements: what ``pxfast bench`` and ``pytest bench/`` report, on a batch small enough for a test."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from support.helpers import bench_script, environment

from pxfast.engines import benchmark, yardstick
from pxfast.engines.schedule import schedule_for
from pxfast.engines.yardstick import Yardstick, matrix_precision
from pxfast.pixelcnn.network import forward_flops

pytestmark = pytest.mark.engine("cpu")
SHIPPED = "shipped-fashion-mnist"
profile = bench_script("cpu_report.py")["profile"]


@pytest.mark.process
def test_bench_prints_an_object_for_every_row():
    command = [sys.executable, "-m", "pxfast.cli", "bench", "--network", SHIPPED, "--batch-size", "4", "--json"]
    command += ["--rounds", "1", "--isa", "portable"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    disturbed = [row.pop("yardstick_disturbed") for row in printed]
    rows = [benchmark.Row(**row) for row in printed]
    assert disturbed == [row.fraction_of_limit > 1 for row in rows]
    assert [row.precision for row in rows] == ["fp32", "bf16"]
    for row in rows:
        assert (row.network, row.engine, row.isa, row.batch) == (SHIPPED, "cpu", "portable", 4)
        assert row.gflops == pytest.approx(
            row.images_per_second * 1e-9 * forward_flops(benchmark.network(SHIPPED).config)
        )
        assert row.fraction_of_limit == pytest.approx(row.gflops / row.matrix_gflops)
        assert row.matrix_precision == "fp32", "torch emulates bf16 without its instructions"
        assert row.bytes_per_image < 8e6


@pytest.mark.process
def test_a_yardstick_keeps_to_the_instruction_set_or_says_so(monkeypatch):
    with Yardstick("portable", "fp32", 1, cpu_time=True) as measure:
        with monkeypatch.context() as patch:
            patch.setitem(yardstick.CAPABILITY, "portable", "AVX2")
            with pytest.raises(RuntimeError, match="held to AVX2, and says that it uses DEFAULT"):
                measure.rate()
        assert measure.rate() > 0, "it is kept for further rounds"
        measure._process.kill()
        with pytest.raises(RuntimeError, match="the process that measures torch's matrix rate ended with"):
            measure.rate()


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")
def test_both_of_torchs_fp32_products_are_tried():
    a, b = torch.randn(5, 7), torch.randn(7, 3)
    for name in yardstick.products_in("fp32", (yardstick.BLAS, yardstick.ONEDNN)):
        multiply = yardstick.product_of(name, a, b)
        for _ in range(2):
            torch.testing.assert_close(multiply().to_dense(), a @ b)
    assert yardstick.products_in("bf16", yardstick.PRODUCTS["portable"]) == (yardstick.BLAS,), "which is oneDNN there"


def test_bf16_is_held_against_fp32_where_torch_emulates_it():
    for isa in ("portable", "avx2", "avx512", "neon"):
        assert matrix_precision(isa, "bf16") == "fp32", isa
    for isa in ("avx512bf16", "avx512amx", "neonbf16"):
        assert matrix_precision(isa, "bf16") == "bf16", isa
    assert matrix_precision("avx512bf16", "fp32") == "fp32"


def test_a_profile_accounts_for_the_time_of_a_decode():
    spent = profile(SHIPPED, precision="bf16", batch=2, order="speculative")
    height = benchmark.network(SHIPPED).config.image_size[0]
    assert height <= spent.pop("sweeps") <= height * height, "a row takes at least one sweep, at most one a column"
    assert all(seconds > 0 for seconds in spent.values())
    assert set(spent) == {"row_products", "pixel_products", "gather", "elementwise", "head"}


def test_a_profile_takes_an_instruction_set():
    profile(SHIPPED, precision="fp32", batch=1, isa="portable")
    compiled = schedule_for(benchmark.network(SHIPPED)).compiled
    assert compiled["cpu", "fp32", "portable"].isa == "portable", "the path was taken"
    with pytest.raises(ValueError, match="isa must be one of"):
        profile(SHIPPED, precision="fp32", batch=1, isa="avx1024")


def test_the_table_has_a_line_for_every_row():
    row = benchmark.Row("net", "cpu", "avx2", "bf16", 2, 1, 3.0, 50.0, 100.0, "fp32", 0.5, 10**6)
    lines = benchmark.table([row, dataclasses.replace(row, network="other", fraction_of_limit=1.04)]).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| net | cpu | avx2 | bf16 | 2 | 1 | 3.00 | 50 | 100 fp32 | 50 % | 1.00 |"
    assert "| 104 %, yardstick disturbed |" in lines[3], "no engine can be faster than its limit"


def test_unknown_names_are_listed():
    with pytest.raises(ValueError, match="unknown network 'resnet'; known: paper-cifar10"):
        benchmark.measure("resnet", precision="bf16", batch=1)
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, got 'fp8'"):
        benchmark.measure(SHIPPED, precision="fp8", batch=1)
