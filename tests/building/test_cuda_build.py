"""nvcc compiles the CUDA kernels for every architecture without a warning, and none of them spills registers."""

import runpy
import subprocess

import pytest
from support.helpers import SOURCE

resources = runpy.run_path(str(SOURCE / "bench" / "scripts" / "cuda_resources.py"))
ARCHS = resources["default_archs"]()
KERNELS = (["bf16", "fp32"], ["bf16", "bf16, wgmma", "fp32"])
# wait_for_team stands in two places, either with an arrival at a count and a meeting of a cluster
MEETINGS = 4


@pytest.mark.compile
@pytest.mark.parametrize("arch", ARCHS)
def test_compiles_without_a_warning_and_without_a_spill(arch):
    nvcc = resources["find_nvcc"]()
    if nvcc is None:
        pytest.skip("there is no nvcc here")
    if arch.rstrip("af") not in resources["known_archs"](nvcc):
        pytest.skip(f"this nvcc does not know sm_{arch}")
    kernels = resources["compile_for"](nvcc, arch)
    assert [kernel.precision for kernel in kernels] == KERNELS[arch == "90a"]
    for kernel in kernels:
        assert kernel.registers <= 255
        assert (kernel.stack, kernel.spill_stores, kernel.spill_loads) == (0, 0, 0), kernel
        if kernel.precision == "bf16, wgmma":
            assert kernel.registers <= 168, "384 threads share 65,536"
    if resources["find_tool"]("cuobjdump") is None:
        pytest.skip("there is no cuobjdump here to count the barriers with")
    for kernel in kernels:
        assert 0 < kernel.barriers <= MEETINGS, f"{kernel}: a barrier of the whole GPU's memory where no team meets"


def test_the_kept_table_is_of_these_architectures():
    text = (SOURCE / "docs" / "cuda-resources.md").read_text()
    for arch in ARCHS:
        assert text.count(f"| sm_{arch} |") == len(KERNELS[arch == "90a"])


def test_a_spill_is_seen():
    report = (
        "ptxas info    : Compiling entry function '_ZN6pxfast4cuda11decode_rowsIfEEvNS0_6LaunchE' for 'sm_80'\n"
        "    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n"
        "ptxas info    : Used 255 registers\n"
    )
    (kernel,) = resources["parse"]("80", report)
    assert (kernel.registers, kernel.stack, kernel.spill_stores, kernel.spill_loads) == (255, 8, 4, 12)


def test_products_that_wait_for_each_other_are_seen(monkeypatch):
    loss = "ptxas info : (C7520) Potential Performance Loss: wgmma.mma_async instructions are serialized\n"
    monkeypatch.setattr(subprocess, "run", lambda command, **rest: subprocess.CompletedProcess(command, 0, "", loss))
    with pytest.raises(RuntimeError, match="instructions are serialized"):
        resources["compile_for"]("nvcc", "90a")
