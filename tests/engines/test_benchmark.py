"""The measurements: what ``pxfast bench`` and ``pytest bench/`` report, on a batch small enough for a test."""

import dataclasses
import json
import runpy
import subprocess
import sys

import pytest
from support.helpers import SOURCE, environment

from pxfast.engines import benchmark
from pxfast.pixelcnn.network import forward_flops

pytestmark = pytest.mark.engine("cpu")
SHIPPED = "shipped-fashion-mnist"
profile = runpy.run_path(str(SOURCE / "bench" / "cpu_report.py"))["profile"]


@pytest.mark.process
def test_bench_prints_an_object_for_every_row():
    command = [sys.executable, "-m", "pxfast.cli", "bench", "--network", SHIPPED, "--batch-size", "4", "--json"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    rows = [benchmark.Row(**row) for row in json.loads(done.stdout)]
    assert [row.precision for row in rows] == ["fp32", "bf16"]
    for row in rows:
        assert (row.network, row.engine, row.batch) == (SHIPPED, "cpu", 4)
        limit = row.matrix_gflops / (1e-9 * forward_flops(benchmark.network(SHIPPED).config))
        assert row.fraction_of_limit == pytest.approx(row.images_per_second / limit)
        assert row.bytes_per_image < 8e6


def test_a_profile_accounts_for_the_time_of_a_decode():
    spent = profile(SHIPPED, precision="bf16", batch=2, order="speculative")
    height = benchmark.network(SHIPPED).config.image_size[0]
    assert height <= spent.pop("sweeps") <= height * height, "a row takes at least one sweep, at most one a column"
    assert all(seconds > 0 for seconds in spent.values())
    assert set(spent) == {"row_products", "pixel_products", "gather", "elementwise", "head"}


def test_the_table_has_a_line_for_every_row():
    row = benchmark.Row("net", "cpu", "avx2", "fp32", 2, 1, 3.0, 100.0, 0.5, 10**6)
    lines = benchmark.table([row, dataclasses.replace(row, network="other")]).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert "| net | cpu | avx2 | fp32 | 2 | 1 | 3.00 | 100 | 50 % | 1.00 |" in lines


def test_unknown_names_are_listed():
    with pytest.raises(ValueError, match="unknown network 'resnet'; known: paper-cifar10"):
        benchmark.measure("resnet", precision="bf16", batch=1)
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, got 'fp8'"):
        benchmark.measure(SHIPPED, precision="fp8", batch=1)
