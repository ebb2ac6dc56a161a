"""The engine's own exponential, sigmoid and tanh (csrc/cpu/vector.h) against double precision, compiled here."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.compile

CSRC = Path(__file__).resolve().parents[2] / "csrc"

DRIVER = """
#include "cpu/vector.h"
#include <cstdio>
int main() {
  float x[pxfast::kLanes], y[pxfast::kLanes];
  while (std::fread(x, sizeof x, 1, stdin) == 1) {
    const Vector v = load(x);
    store(y, exp(v)), std::fwrite(y, sizeof y, 1, stdout);
    store(y, sigmoid(v)), std::fwrite(y, sizeof y, 1, stdout);
    store(y, tanh(v)), std::fwrite(y, sizeof y, 1, stdout);
  }
}
"""


@pytest.mark.parametrize("flags", [[], ["-mavx2", "-mfma"]], ids=["portable", "avx2"])
def test_functions_are_within_a_few_units_in_the_last_place(tmp_path, flags):
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler to build the driver with")
    cpuinfo = Path("/proc/cpuinfo")
    if flags and not (cpuinfo.exists() and "avx2" in cpuinfo.read_text()):
        pytest.skip("this processor has no AVX2, as far as /proc/cpuinfo says")
    (tmp_path / "driver.cpp").write_text(DRIVER)
    command = [compiler, "-std=c++17", "-O2", "-ffp-contract=off", f"-I{CSRC}", *flags]
    subprocess.run([*command, str(tmp_path / "driver.cpp"), "-o", str(tmp_path / "driver")], check=True)
    x = np.concatenate((np.linspace(-87, 0, 160_000), np.linspace(0, 80, 40_000), [0.0] * 16)).astype(np.float32)
    done = subprocess.run([str(tmp_path / "driver")], input=x.tobytes(), capture_output=True, check=True)
    exp, sigmoid, tanh = np.frombuffer(done.stdout, np.float32).reshape(-1, 3, 16).transpose(1, 0, 2).reshape(3, -1)
    wide = x.astype(np.float64)

    def ulps(found: np.ndarray, exact: np.ndarray) -> float:
        return float((np.abs(found - exact) / np.spacing(np.abs(exact).astype(np.float32))).max())

    assert ulps(exp, np.exp(wide)) <= 2
    assert ulps(sigmoid, 1 / (1 + np.exp(-wide))) <= 4
    assert np.abs(tanh - np.tanh(wide)).max() <= 2e-7
