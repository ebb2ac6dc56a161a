"""The Triton kernels without a GPU: their other test modules in the interpreter, and every kernel compiled for GPUs.

Triton decides at its import whether kernels are interpreted or compiled. So the modules that run kernels get processes
of their own, with TRITON_INTERPRET=1; the ahead-of-time compilation is done in this one.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.helpers import TESTS, environment
from support.triton_device import INTERPRETED
from support.triton_targets import TARGETS, compiles, needs_triton

from pxfast.base.checks import PRECISIONS
from pxfast.engines import triton as engine
from pxfast.engines.schedule import Schedule
from pxfast.pixelcnn.heads import HEADS
from pxfast.pixelcnn.network import PixelCNN, PixelCNNConfig

INTERPRETED_TESTS = Path(__file__).parent / "interpreted"
MODULES = sorted(path.name for path in INTERPRETED_TESTS.glob("test_*.py"))


@pytest.mark.interpret
@needs_triton
@pytest.mark.timeout(1200)  # less than a minute each on an idle core
@pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1: this process runs the modules itself")
@pytest.mark.parametrize("module", MODULES)
def test_in_the_interpreter(module):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "timeout=1100",
        str(INTERPRETED_TESTS / module),
    ]
    # without options of the run around it, such as -q, which would hide what is asserted
    alone = environment(TRITON_INTERPRET="1", PYTEST_ADDOPTS="")
    done = subprocess.run(command, env=alone, cwd=TESTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout, done.stdout


# --- ahead of time ---


AMD_LINKERS = (os.environ.get("TRITON_HIP_LLD_PATH", ""), "/opt/rocm/llvm/bin/ld.lld", "/usr/bin/ld.lld")


def compile_for(launch, name: str):
    """The launch's kernel as machine code for a target; the test is skipped where this Triton cannot make any."""
    import triton
    from triton.backends.compiler import GPUTarget

    if name == "sm_100" and triton.__version__.startswith("3.2."):
        pytest.skip("Triton 3.2 knows no sm_100")
    needs_linker = name == "gfx942" and triton.__version__.startswith(("3.2.", "3.3.", "3.4."))  # later: built in
    if needs_linker and not any(Path(linker).is_file() for linker in AMD_LINKERS):
        pytest.skip("this Triton brings no linker for AMD; TRITON_HIP_LLD_PATH names one, the ld.lld of LLVM 19")
    target = TARGETS[name]
    return launch.compile(GPUTarget(target.backend, target.architecture, target.warp))


@functools.cache
def paper_schedule(head: str) -> Schedule:
    """Of the CIFAR-10 network; a layer per level has the shapes of five."""
    with torch.random.fork_rng(devices=[]):
        return Schedule(PixelCNN(PixelCNNConfig((32, 32), 3, 160, 1, head=head)))


def everything(name: str) -> list:
    """A launch of every shape class of the CIFAR-10 network's decode, with each head, and of the likelihood."""
    from support.triton_shapes import decoding, likelihood

    launches = []
    for head in HEADS:
        schedule = paper_schedule(head)
        for precision in PRECISIONS:
            launches += decoding(schedule, precision, name)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        launches += likelihood(3, 10, dtype) + likelihood(1, 10, dtype)
    return list({launch.shape_class: launch for launch in launches}.values())


@needs_triton
@compiles
@pytest.mark.parametrize("name", list(TARGETS))
def test_every_kernel_compiles_for_a_gpu_that_is_not_here(name):
    launches = everything(name)
    steps = [launch.constants for launch in launches if launch.kernel.__name__ == "step_kernel"]
    assert {step["EPILOGUE"] for step in steps} == {0, 1, 2, 3}
    assert {step["CHANNELS"] for step in steps} == {320, 160, 4}
    assert {launch.kernel.__name__ for launch in launches} == {"step_kernel", "choose_kernel", "mixture_kernel"}
    if not os.environ.get("PXFAST_TEST_ALL_TARGETS"):  # minutes on one core
        biggest = [launch for launch in launches if has_a_big_tile(launch)]
        launches = launches[list(TARGETS).index(name) :: len(TARGETS)] + biggest  # each for one of the targets
    for launch in launches:
        compiled = compile_for(launch, name)
        assert compiled.asm["hsaco" if name == "gfx942" else "cubin"][:4] == b"\x7fELF", launch.shape_class
        shared = compiled.metadata.shared
        assert shared <= 1024 * TARGETS[name].shared, f"{shared} bytes of shared memory: {launch.shape_class}"
        if has_a_big_tile(launch):  # it lies in shared memory, once at least: the figure is one
            assert shared >= 2 * launch.constants["BLOCK_M"] * launch.constants["BLOCK_K"]


def has_a_big_tile(launch) -> bool:
    """Whether it is one of those that take the most shared memory: the gated layers' products in bf16."""
    return launch.constants.get("CHANNELS") == 320 and launch.arguments["caches"].dtype == torch.bfloat16


@needs_triton
@compiles
@pytest.mark.parametrize(
    ("name", "instruction"), [("sm_80", "mma.sync"), ("sm_90", "wgmma.mma_async"), ("sm_100", "tcgen05.mma")]
)
def test_matrix_cores_are_used_with_pipelined_copies(name, instruction):
    from support.triton_shapes import decoding

    launches = [launch for launch in decoding(paper_schedule("logistic"), "bf16", name) if has_a_big_tile(launch)]
    assert len(launches) == 6, "hidden and gate, of rows, of the pixels' early taps and of their late ones"
    for launch in launches:
        code = compile_for(launch, name).asm["ptx"]
        assert instruction in code, (name, launch.constants)
        assert "cp.async.cg.shared.global" in code, "16 bytes a thread, straight to shared memory"


@needs_triton
@compiles
def test_no_multiplication_and_addition_are_contracted(monkeypatch):
    # whatever the variable says, since every launch says it itself
    from support.triton_shapes import decoding

    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    launch = next(each for each in decoding(paper_schedule("logistic"), "bf16", "sm_90") if "HEAD" in each.constants)
    compiled = compile_for(launch, "sm_90")
    assert compiled.metadata.enable_fp_fusion is False


# --- where there is no GPU ---


def test_the_engine_says_why_it_cannot_run(monkeypatch):
    monkeypatch.setattr(engine.torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(engine, "_installed", lambda: True)
    assert engine.unavailable() == "torch finds no GPU"
    for yes in ("1", "true", "ON"):  # Triton takes all of these
        monkeypatch.setenv("TRITON_INTERPRET", yes)
        assert f"interpreted (TRITON_INTERPRET={yes})" in str(engine.unavailable())
    monkeypatch.setattr(engine, "_installed", lambda: False)
    assert engine.unavailable() == "triton is not installed"


def test_an_old_gpu_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(engine, "_installed", lambda: True)
    fake = SimpleNamespace(
        is_available=lambda: True,
        _is_in_bad_fork=lambda: False,
        get_device_capability=lambda: (7, 5),
        get_device_name=lambda: "an old one",
    )
    monkeypatch.setattr(engine.torch, "cuda", fake)
    monkeypatch.setattr(engine.torch.version, "hip", None)
    assert engine.unavailable() == "it needs compute capability 8.0, and an old one is older"


@needs_triton
def test_a_file_of_tiles_is_read_back_and_a_wrong_one_is_refused(tmp_path, monkeypatch):
    from pxfast.kernels import tiles
    from pxfast.kernels.launch import Tile

    path = tmp_path / "tiles.json"
    monkeypatch.setenv("PXFAST_TILES", str(path))
    assert tiles.tiles_file() == path
    assert tiles.read_tiles(path) == {}
    mine = {"sm_90": {"bf16 row": Tile(128, 32, 64, 4, 4)}}
    path.write_text(tiles.dump(mine))
    assert tiles.read_tiles(path) == mine
    assert tiles.tiles_for("sm_90") == {**tiles.TILES["default"], **mine["sm_90"]}
    assert tiles.tiles_for("sm_80") == tiles.TILES["default"]
    monkeypatch.setenv("PXFAST_TILES", str(tmp_path / "none.json"))
    assert tiles.tiles_for("sm_90") == {**tiles.TILES["default"], **tiles.TILES.get("sm_90", {})}
    for wrong in ("{", "{}", '{"format": "pxfast-tiles", "tiles": {"sm_90": {"bf16 diagonal": {}}}}'):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=r"expected .*tiles.json to be a file that `pxfast tune` wrote"):
            tiles.read_tiles(path)


def test_tuning_says_that_it_needs_a_gpu(monkeypatch, tmp_path):
    from pxfast.engines.triton_tuning import tune

    monkeypatch.setenv("PXFAST_TILES", str(tmp_path / "tiles.json"))
    monkeypatch.setattr(engine, "unavailable", lambda: "torch finds no GPU")
    with pytest.raises(RuntimeError, match="pxfast tune measures on a GPU, and none can be used here: torch finds no"):
        tune(paper_schedule("logistic"))
    assert not list(tmp_path.iterdir())
