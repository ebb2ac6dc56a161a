"""The CUDA engine's own sources, run on the host: no GPU has a part in this.

tests/support/cuda_shim turns a grid of threads into fibers with real barriers, shared memory into a buffer, and each
function that holds a PTX instruction into a twin; the kernels, the packing of the weights and the planning are the ones
that nvcc compiles. What is judged is what test_engines.py asks of every engine: exact, batch-invariant, bounded.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import cuda_shim
from support.cuda_shim import Settings
from support.helpers import (
    assert_as_exact,
    assert_chosen,
    cells,
    made_once,
    noisy,
    real_images,
    trained_model,
    wide_component_model,
)
from torch import Tensor

from pxfast.base.checks import PRECISIONS
from pxfast.engines import compiled, cpu
from pxfast.engines.choosers import Chooser, Greedy, Sample
from pxfast.engines.schedule import schedule_for
from pxfast.pixelcnn.network import PixelCNN
from pxfast.pixeldefend.verify import verify

pytestmark = [pytest.mark.compile, pytest.mark.engine("cpu")]

SEQUENTIAL, SPECULATIVE = 1, 2
SMALL_SHARED, LARGE_SHARED = 99 * 1024, 227 * 1024  # of Ada's multiprocessors, of Hopper's

# (image size, channels, filters, resnets, head, steps of training)
CASES = {
    "logistic": ((8, 8), 1, 8, 1, "logistic", 12),
    "logistic-colour": ((4, 8), 3, 10, 1, "logistic", 12),
    "softmax": ((8, 8), 1, 17, 1, "softmax", 12),
    "softmax-colour": ((8, 8), 3, 9, 1, "softmax", 12),
    "pixelcnn++": ((8, 8), 3, 8, 1, "pixelcnn++", 12),
    "one-filter": ((4, 8), 1, 1, 1, "logistic", 12),
}
MODELS = {
    **CASES,
    "wide": ((4, 8), 1, 48, 1, "logistic", 25),  # takes both halves of a warpgroup's tile
    "smallest": ((4, 4), 1, 8, 1, "logistic", 0),  # for the sanitizers: too small to be trained
}
KERNELS = {"fp32": Settings(), "bf16": Settings(bf16=True), "bf16-wgmma": Settings(bf16=True, groups=True)}


@functools.cache
def compiler() -> str | None:
    return shutil.which("g++")


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine compiled for the host, without sanitizers."""
    if compiler() is None:
        pytest.skip("there is no g++ to build the shim with")
    folder = made_once(tmp_path_factory, "cuda-shim", lambda folder: cuda_shim.build(folder, "g++"))
    return folder / cuda_shim.PROGRAM


def model_of(name: str) -> PixelCNN:
    return trained_model(*MODELS[name])


def images_of(name: str, count: int) -> Tensor:
    size, channels, *_ = MODELS[name]
    return noisy(real_images(channels, size, count))


def decode(program: Path, name: str, images: Tensor, settings: Settings, **environment: str) -> tuple[Tensor, str]:
    described = compiled.program_of(schedule_for(model_of(name)))
    result, said = cuda_shim.decode(program, described, images.numpy(), settings, **environment)
    return torch.from_numpy(result.copy()), said


def by_cpu_engine(name: str, images: Tensor, chooser: Chooser, precision: str) -> Tensor:
    return cpu.decode(schedule_for(model_of(name)), images, chooser, precision=precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CASES)
def test_exact_and_as_the_cpu_engine(program, name, precision):
    eps = (16, 255, 3, 1)  # so 33, 256, 7 and 3 values for 32 lanes
    images = images_of(name, len(eps))
    chooser = Greedy(torch.tensor(eps, dtype=torch.uint8))
    result, _ = decode(program, name, images, Settings(bf16=precision == "bf16", chooser=chooser, multiprocessors=3))
    for n, amount in enumerate(eps):
        verdict = verify(images[n : n + 1], result[n : n + 1], amount, model=model_of(name), precision=precision)
        assert verdict.passed, f"eps {amount}: {verdict}"
    expected = by_cpu_engine(name, images, chooser, precision)
    assert_as_exact(model_of(name), images, result, expected, chooser, precision)


@pytest.mark.parametrize("head", ["logistic", "pixelcnn++"])
def test_a_component_wider_than_fp32_hides_no_other(program, head):
    model, images = wide_component_model(3, head), real_images(3, (4, 4), 2).clamp(min=4)
    described = compiled.program_of(schedule_for(model))
    result, _ = cuda_shim.decode(program, described, images.numpy(), Settings(chooser=Greedy(3)))
    assert torch.equal(torch.from_numpy(result.copy()).int(), (images.int() + 3).clamp(max=255))


@pytest.mark.parametrize("name", [*CASES, "wide"])
def test_row_steps_by_warpgroups_as_the_cpu_engine(program, name):
    count = 17 if name == "wide" else 3  # 136 rows: more than a tile
    images = images_of(name, count)
    settings = Settings(bf16=True, groups=True, order=SEQUENTIAL, members=1, multiprocessors=1)
    result, _ = decode(program, name, images, settings)
    verdict = verify(images, result, 16, model=model_of(name), precision="bf16")
    assert verdict.passed, verdict
    expected = by_cpu_engine(name, images, Greedy(16), "bf16")
    assert_as_exact(model_of(name), images, result, expected, Greedy(16), "bf16")
    if name == "wide":
        team = dataclasses.replace(settings, members=2, multiprocessors=2, eager_copies=True)
        by_team, said = decode(program, name, images, team)
        assert "teams 1 members 2" in said
        assert torch.equal(by_team, result), "the width of a tile changes bits"


@pytest.mark.parametrize("kernel", KERNELS)
def test_order_teams_memory_and_batch_change_no_bit(program, kernel):
    chosen, images = KERNELS[kernel], images_of("logistic-colour", 5)
    bf16, groups = chosen.bf16, chosen.groups
    alone = dataclasses.replace(chosen, order=SEQUENTIAL, members=1, multiprocessors=1)
    expected, said = decode(program, "logistic-colour", images, alone)
    stages = "stages 0 pieces 0" if groups else "stages 4 pieces 16"
    assert f"teams 1 members 1 capacity 5 cluster 1 speculative 0 {stages}" in said, "the path was taken"
    for settings, path in (
        (Settings(bf16, SPECULATIVE, 3, 11, False, 3), "teams 1 members 3 capacity 5 cluster 1 speculative 1"),
        (Settings(bf16, SPECULATIVE, 1, 5, True, 5), "teams 5 members 1 capacity 1 cluster 1 speculative 1"),
        (Settings(bf16, SEQUENTIAL, 2, 7, True, 4), "teams 2 members 2 capacity 3 cluster 1 speculative 0"),
        (
            Settings(bf16, SEQUENTIAL, 1, 3, False, 2, LARGE_SHARED if groups else SMALL_SHARED),
            "" if groups else "stages 2",
        ),
        (Settings(bf16, SEQUENTIAL, 4, 9, clusters=True), "teams 1 members 4 capacity 5 cluster 4 speculative 0"),
        (
            Settings(bf16, SPECULATIVE, 0, 2, True, 9, clusters=True),
            "teams 2 members 4 capacity 3 cluster 4 speculative 1",
        ),
    ):
        result, said = decode(program, "logistic-colour", images, dataclasses.replace(settings, groups=groups))
        assert path in said, "the path was taken"
        assert torch.equal(result, expected), said
    last, _ = decode(program, "logistic-colour", images[4:].contiguous(), dataclasses.replace(chosen, seed=1))
    assert torch.equal(last, expected[4:]), "an image's result depends on its batch"


@pytest.mark.parametrize("name", ["logistic-colour", "softmax-colour", "pixelcnn++"])
def test_the_other_choosers(program, name):
    images = images_of(name, 3)
    for chooser in (
        Sample(2**40 + 3, first=7),
        Sample(5, temperature=0.5),
        Greedy(within=cells(images, 32)),
        Greedy(within=cells(images, 250)),
        Sample(6, within=cells(images, 100)),
        Greedy(16, keep_bits=7.0),
    ):
        result, _ = decode(program, name, images, Settings(chooser=chooser))
        assert_chosen(model_of(name), images, result, chooser)
    assert not torch.equal(result, by_cpu_engine(name, images, Greedy(16), "fp32")), "some sub-pixel is likely enough"


def test_bounds_and_the_identity(program):
    images = torch.cat((images_of("logistic", 1), torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 255))).byte()
    result, _ = decode(program, "logistic", images, Settings(chooser=Greedy(0)))
    assert torch.equal(result, images)
    result, _ = decode(program, "logistic", images, Settings(chooser=Greedy(40)))
    assert int((result.int() - images.int()).abs().max()) <= 40


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(sanitizer, program, tmp_path):
    checking = cuda_shim.build(tmp_path, "g++", sanitizer)
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_stack_use_after_return=0"}
    environment["UBSAN_OPTIONS"] = "halt_on_error=1"
    for settings, count in (
        (Settings(bf16=True, order=SPECULATIVE, members=2, multiprocessors=2), 2),
        (Settings(order=SEQUENTIAL, members=2, multiprocessors=2, shared_bytes=SMALL_SHARED), 2),
        (Settings(bf16=True, order=SPECULATIVE, members=2, eager_copies=True, multiprocessors=2, groups=True), 2),
        (Settings(bf16=True, order=SEQUENTIAL, clusters=True, groups=True), 4),
    ):
        images = images_of("smallest", count)
        settings = dataclasses.replace(settings, chooser=Greedy(within=cells(images, 64)))
        result, _ = decode(checking, "smallest", images, settings, **environment)
        expected, _ = decode(program, "smallest", images, settings)
        assert torch.equal(result, expected)


# 64 x 80 outputs from operands that lie in shared memory without a gap
PRODUCT = (
    "float sums[5][8] = {}; sync_block();"
    " const uint64_t rows = describe_matrix(0, 128, 256), outputs = describe_matrix(2048, 128, 256);"
    " begin_products(); multiply_group(sums, rows, outputs);"
)
# a barrier, and what bulk copies bring
BULK = (
    "alignas(16) static unsigned char from[2048]; static CopyBarrier barrier;"
    " if (thread_index() == 0) { std::memset(from, 7, 2048); start_barrier(&barrier, 1); } sync_block();"
)
# what the shim must notice; each ends the process
FAULTS = {
    "a thread that misses a barrier": ("if (thread_index() != 5) sync_block();", "", "deadlock"),
    "a wait for a block that never comes": (
        "static unsigned int count; wait_for_arrivals(&count, 1);",
        "",
        "livelock",
    ),
    "a read without a barrier": (
        "auto* shared = shared_memory(); shared[thread_index()] = 1; total += shared[thread_index() ^ 1];",
        "thread",
        "data race",
    ),
    "a read that only the next barrier comes after": (
        "sync_block(); if (thread_index() == 255) shared_memory()[0] = 1;"
        " if (thread_index() == 0) total += shared_memory()[0]; sync_block();",
        "thread",
        "data race",
    ),
    "a read past the shared memory": (
        "total += shared_memory()[16384 + thread_index()];",
        "address",
        "buffer-overflow",
    ),
    "a stage that is filled while products read it": (
        f"{PRODUCT} commit_products(); sync_block(); shared_memory()[2 * thread_index()] = 1; sync_block();"
        " wait_products<0>();",
        "",
        "an operand has changed",
    ),
    "a sum that is read before it is there": (
        f'{PRODUCT} commit_products(); if (std::isnan(sums[4][7])) shim::fail("no sum yet"); wait_products<0>();',
        "",
        "no sum yet",
    ),
    "products of copies that are not fenced": (
        "alignas(16) static unsigned char from[16]; copy_async(shared_memory() + 16 * thread_index(), from);"
        f" commit_copies(); wait_copies<0>(); {PRODUCT}",
        "",
        "no fence has published",
    ),
    "a bulk copy into an operand of products under way": (
        f"shim::grid().eager_copies = true; {BULK} {PRODUCT} commit_products(); sync_block(); if (thread_index() == 0)"
        " copy_bulk(shared_memory(), from, 2048, &barrier); sync_block(); wait_products<0>();",
        "",
        "an operand has changed",
    ),
    "a bulk copy that nobody has waited for": (
        f"{BULK} if (thread_index() == 0) copy_bulk(shared_memory(), from, 2048, &barrier); sync_block();"
        ' if (shared_memory()[2047] != 7) shim::fail("not yet there");',
        "",
        "not yet there",
    ),
    "a barrier for copies whose bytes are not those copied": (
        f"{BULK} if (thread_index() == 0) {{ expect_bytes(&barrier, 2048);"
        " copy_bulk(shared_memory(), from, 1024, &barrier); } wait_for_barrier(&barrier, 0);",
        "",
        "livelock",
    ),
    "a bulk copy of what no fence has published": (
        f"{BULK} store_shared_between_blocks(reinterpret_cast<uint32_t*>(from) + thread_index(), 1u); sync_block();"
        " if (thread_index() == 0) copy_bulk(shared_memory(), from, 2048, &barrier);",
        "",
        "the copy engine reads what no fence has published",
    ),
    "products before the registers are fenced": (
        f"{PRODUCT} commit_products(); multiply_group(sums, rows, outputs);",
        "",
        "without begin_products",
    ),
    "a matrix described as larger than the memory": (
        f"sync_block(); {PRODUCT} multiply_group(sums, describe_matrix(0, 128, 2560), outputs);",
        "",
        "leaves the shared memory",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_shim_notices(fault, tmp_path):
    if compiler() is None:
        pytest.skip("there is no g++ to build the shim with")
    code, sanitizer, message = FAULTS[fault]
    source = tmp_path / "fault.cpp"
    source.write_text(
        '#include "group_tile.cuh"\n#include <cstdio>\nusing namespace pxfast::cuda;\nint total;\n'
        f"void kernel(void*) {{ {code} }}\n"
        "int main() {\n  auto& grid = shim::grid();\n  grid.block.resize(1);\n  grid.block[0].start(16384, 256);\n"
        '  fibers::run(1, 256, 0, kernel, nullptr);\n  std::puts("unnoticed");\n}\n'
    )
    program = cuda_shim.compile_program(tmp_path, "g++", sanitizer, [source])
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run([str(program)], capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    assert message in done.stderr
    assert "unnoticed" not in done.stdout


def test_the_plan_refuses_what_it_cannot_hold(program):
    images = images_of("logistic", 1)
    described = compiled.program_of(schedule_for(model_of("logistic")))
    with pytest.raises(AssertionError, match="too little shared memory: 49152 bytes"):
        cuda_shim.decode(program, described, images.numpy(), Settings(shared_bytes=48 * 1024))


def change(*path: str | int, to: object) -> Callable[[dict[str, Any]], None]:
    """Makes a program's description wrong in one place, which ``path`` leads to. It is made for one test."""

    def apply(described: dict[str, Any]) -> None:
        *way, last = path
        place: Any = described
        for key in way:
            if isinstance(place[key], tuple):
                place[key] = list(place[key])
            place = place[key]
        place[last] = to

    return apply


MANY = 10_000  # more than there are caches
BAD_PROGRAMS = {
    "channels": (change("channels", to=2), "channels"),
    "a cache's level": (change("caches", 1, 0, to=3), "cache"),
    "a negative level": (change("caches", 1, 0, to=-1), "cache"),
    "a cache without channels": (change("caches", 1, 1, to=0), "cache"),
    "a cache of odd channels": (change("caches", 1, 1, to=7), "cache"),
    "a cache without rows": (change("caches", 1, 2, to=0), "cache"),
    "an input cache that is not there": (change("input_cache", to=MANY), "input cache"),
    "a negative input cache": (change("input_cache", to=-1), "input cache"),
    "the input cache's level": (change("caches", 0, 0, to=1), "input cache's shape"),
    "the input cache's channels": (change("caches", 0, 1, to=4), "input cache's shape"),
    "a tap's cache that is not there": (change("steps", 0, "taps", 0, 0, to=MANY), "tap's cache"),
    "a negative tap's cache": (change("steps", 0, "taps", 0, 0, to=-1), "tap's cache"),
    "a tap's matrix": (change("steps", 0, "taps", 0, 5, to=np.zeros((1, 1), np.float32)), "tap's matrix"),
    "a tap left of the zeros beside a row": (change("steps", 0, "taps", 0, 2, to=-2), "tap's column"),
    "a tap right of them": (change("steps", 0, "taps", 0, 2, to=1_000_000), "tap's column"),
    "a tap of a row below": (change("steps", 0, "taps", 0, 1, to=1), "tap's row"),
    "a tap of a row that is not kept": (change("steps", 0, "taps", 0, 1, to=-3), "tap's row"),
    "a tap of a cache of another level": (change("steps", 0, "scale", to=1), "tap's level"),
    "a written cache that is not there": (change("steps", 0, "raw", to=MANY), "written cache"),
    "a written cache of another shape": (change("steps", 0, "raw", to=0), "written cache's shape"),
    "too few outputs": (change("steps", -1, "outputs", to=1), "outputs"),
    "an unknown head": (change("head", to=3), "kind of head"),
    "a negative head": (change("head", to=-1), "kind of head"),
    "an unknown epilogue": (change("steps", 0, "epilogue", to=4), "kind of step"),
    "an unknown scale": (change("steps", 0, "scale", to=3), "kind of step"),
    "tables of a mixture": (change("tables", to=np.zeros(7, np.float32)), "tables"),
    "a step's level": (change("steps", 0, "level", to=3), "level"),
    "no steps": (change("steps", to=[]), "the last step is the output"),
    "an output before the last step": (change("steps", 0, "epilogue", to=3), "the last step is the output"),
    "an output for whole rows": (change("steps", -1, "per_row", to=True), "the last step is the output"),
    "an output of a coarse level": (change("steps", -1, "level", to=1), "the last step is the output"),
}


@pytest.mark.parametrize("what", BAD_PROGRAMS)
def test_both_engines_refuse_a_bad_program(program, what):
    spoil, message = BAD_PROGRAMS[what]
    described = compiled.program_of(schedule_for(model_of("logistic")))
    spoil(described)
    with pytest.raises(ValueError, match=f"^bad program: {message}$"):
        compiled._C.CpuEngine(described, "portable", False)
    images = np.zeros((1, described["channels"], 8, 8), np.uint8)
    with pytest.raises(AssertionError, match=f"^bad program: {message}\n"):
        cuda_shim.decode(program, described, images, Settings())
