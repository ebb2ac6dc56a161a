"""What the triton engine and the fused likelihood do on a GPU, as far as it can be seen without one.

Triton compiles here for a GPU that is not here, by a driver that only names it; what runs in between is Triton's own.
"""

import collections
import json
from types import SimpleNamespace

import pytest
import torch
from support.helpers import random_model, run_python
from support.triton_targets import TARGETS, compiles, needs_triton

from pxfast.engines import compiled
from pxfast.engines import triton as engine
from pxfast.engines.benchmark import PAPER_NETWORKS
from pxfast.engines.registry import select
from pxfast.engines.schedule import Scale, Schedule
from pxfast.pixelcnn.network import PixelCNN


class NamesAGPU:
    """The part of Triton's driver that is asked when a kernel is compiled and not launched."""

    def __init__(self, target) -> None:
        self.target = target

    def get_current_target(self):
        return self.target

    def get_current_device(self) -> int:
        return -1  # so that what is compiled is not taken for that of a GPU that is here

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture
def sm_90():
    """Triton believes that there is such a GPU; gives its name for it."""
    import triton
    from triton.backends.compiler import GPUTarget

    target = GPUTarget(*TARGETS["sm_90"][:3])
    state = vars(triton.runtime.driver)
    before = dict(state)  # without a GPU there is no driver that could be asked for and put back
    triton.runtime.driver.set_active(NamesAGPU(target))
    yield target
    state.clear()
    state.update(before)


def workspace(images: int = 16):
    """Of a small network in bf16, on no device."""
    from pxfast.engines.triton_program import Program, Workspace
    from pxfast.kernels.tiles import tiles_for

    schedule = Schedule(random_model((8, 8), 1, 8, 1, mixtures=2))
    return Workspace(Program(schedule, "bf16", torch.device("meta"), tiles_for("sm_90")), images)


@needs_triton
@compiles
def test_a_capture_compiles_nothing_and_runs_what_was_compiled_ahead_of_time(sm_90):
    # before a capture every shape class is launched once: whatever else is launched must be the same machine code
    from pxfast.engines.triton_program import PHASES, ChooserShape

    space, chooser = workspace(), ChooserShape(sample=False, values=64)
    hashes = collections.defaultdict(set)
    kept = {}
    for phase in set(PHASES):
        for launch in space.launches(phase, chooser):
            kernel = launch.kernel.warmup(**launch.arguments, **launch.constants, **launch.options, grid=launch.grid)
            hashes[launch.shape_class].add(kernel.hash)
            kept[launch.shape_class] = launch, kernel
    assert len(hashes) > 8
    assert {len(found) for found in hashes.values()} == {1}
    epilogues = {}
    for launch, kernel in kept.values():
        epilogues[launch.constants.get("EPILOGUE")] = launch, kernel
    assert epilogues.keys() == {0, 1, 2, 3, None}, "every kind of step, and the choice"
    for launch, kernel in epilogues.values():
        assert launch.compile(sm_90).asm["cubin"] == kernel.asm["cubin"], launch.shape_class


@needs_triton
def test_what_changes_from_row_to_row_is_data():
    # everything else is baked into the graph of a phase, which is replayed for rows 4 apart
    from pxfast.engines.triton_program import PHASES, ChooserShape

    space, chooser = workspace(), ChooserShape(sample=False, values=64)
    for row in range(8):
        replayed = space.launches(PHASES[row % 4], chooser)
        wanted = space.launches(row % 4, chooser)
        assert len(replayed) == len(wanted)
        for a, b in zip(replayed, wanted, strict=True):
            assert a.shape_class == b.shape_class
            assert a.grid == b.grid
            assert a.arguments.keys() == b.arguments.keys()
            for name, value in a.arguments.items():
                other = b.arguments[name]
                if isinstance(value, torch.Tensor):
                    assert value.storage_offset() == other.storage_offset()
                    assert value.shape == other.shape
                else:
                    assert value == other, name


@needs_triton
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.whole)])
def test_an_image_of_the_papers_network_takes_less_than_8_mb(precision):
    from pxfast.engines.triton_program import Program
    from pxfast.kernels.tiles import tiles_for

    schedule = Schedule(PixelCNN(PAPER_NETWORKS["paper-cifar10"]))
    program = Program(schedule, precision, torch.device("meta"), tiles_for("sm_90"))
    assert len(program.early) > 10, "early taps are summed for whole rows"
    assert 2e6 < program.bytes_per_image < 8e6


@needs_triton
def test_a_gated_layer_is_two_launches():
    from pxfast.engines.triton_program import ChooserShape

    space = workspace()
    launches = space.launches(0, ChooserShape(sample=False, values=64))
    schedule, width = space.program.schedule, 8
    steps = sum(1 if s.per_row else width >> s.level for s in schedule.steps)
    halves = sum(s.per_row and {tap.column_parity for tap in s.taps} == {0, 1} for s in schedule.steps)
    assert halves == 2, "a transposed step of a row, once a level: even and odd columns"
    early = sum(0 < s.early < len(s.taps) and s.scale != Scale.UP for s in schedule.steps)
    assert early > 10, "nearly every step of a pixel has taps that a row sums"
    assert len(launches) == steps + halves + early + width, "one launch a step, and a choice a pixel"


# --- tuning ---


@needs_triton
def test_what_is_tuned_is_every_step_under_the_kind_of_its_tile():
    space = workspace()
    steps = space.program.schedule.steps
    for per_row in (False, True):
        for gated in (False, True):
            launches = space.launches_of(per_row=per_row, gated=gated)
            wanted = [s for s in steps if s.per_row == per_row and (s.epilogue == 1) == gated]
            assert len(launches) >= len(wanted) > 0
            for launch in launches:
                assert (launch.constants["EPILOGUE"] == 1) == gated
                assert (launch.arguments["columns"] > 1) == per_row or launch.arguments["columns"] == 1


@needs_triton
def test_tuning_keeps_the_fastest_tile_that_fits(monkeypatch, tmp_path):
    from pxfast.engines import triton_tuning as tuning
    from pxfast.kernels import tiles
    from pxfast.kernels.launch import Tile

    path = tmp_path / "settings" / "tiles.json"
    monkeypatch.setenv("PXFAST_TILES", str(path))
    monkeypatch.setattr(engine, "unavailable", lambda: None)
    monkeypatch.setattr(tiles, "architecture", lambda: "sm_86")
    first = tiles.TILES["default"]["bf16 row"]

    def time(schedule, tried, kind, precision, images):
        assert precision == "bf16"
        if kind == "bf16 row" and tried[kind] == first:
            return None  # what is recorded does not fit into this one
        if kind == "bf16 pixel gate":
            raise KeyboardInterrupt
        return 1.0 if tried[kind] == Tile(64, 64, 64, 8, 3) else 2.0

    monkeypatch.setattr(tuning, "_time", time)
    lines = []
    with pytest.raises(KeyboardInterrupt):
        tuning.tune(None, log=lines.append)
    kept = tiles.read_tiles(path)
    assert kept["sm_86"].keys() == {"bf16 row", "bf16 row gate", "bf16 pixel"}, "of a run that was stopped"
    assert set(kept["sm_86"].values()) == {Tile(64, 64, 64, 8, 3)}
    assert "before, Tile(block_m=128" in lines[0]
    assert "too much for this GPU" in lines[0]
    assert "2.000 ms" in lines[1]
    assert tiles.tiles_for("sm_86")["bf16 pixel"] == Tile(64, 64, 64, 8, 3)
    monkeypatch.setattr(tuning, "_time", lambda *arguments: None)
    with pytest.raises(RuntimeError, match="none of the tiles of 'bf16 row' fit into sm_86"):
        tuning.tune(None, log=lines.append)
    assert json.loads(path.read_text())["format"] == tiles.FORMAT


@needs_triton
def test_a_pipeline_on_amd_has_two_stages_at_most():
    from pxfast.engines.triton_tuning import candidates
    from pxfast.kernels.tiles import KINDS, tiles_for

    for kind in KINDS:
        assert {fields[-1] for fields in candidates(kind, "gfx942")} == {1, 2}
        assert tiles_for("gfx942")[kind].num_stages == 2
        assert {fields[-1] for fields in candidates(kind, "sm_90")} > {3}


# --- memory ---


@needs_triton
@pytest.mark.parametrize("gigabytes", [1.0, 1.9, 3.0, 11.0])
def test_the_next_decode_finds_the_workspace_of_the_last(monkeypatch, gigabytes):
    """On a GPU with so much memory, where a batch has more images than half of it holds."""
    program = SimpleNamespace(device=torch.device("cuda", 0), bytes_per_image=5_000_000, elements_per_image=2_000_000)
    runners = []

    class Runner:
        def __init__(self, program, images: int) -> None:
            self.workspace = SimpleNamespace(images=images)
            runners.append(self)

    total = int(gigabytes * 1e9)
    monkeypatch.setattr(engine, "Runner", Runner)
    monkeypatch.setattr(
        torch.cuda,
        "mem_get_info",
        lambda device: (total - sum(each.workspace.images for each in runners) * program.bytes_per_image, total),
    )
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    decoder = engine.Decoder(program)
    for _ in range(4):
        decoder.give_back(decoder.take(100_000))
    assert len(runners) == 1
    assert total / 4 < runners[0].workspace.images * program.bytes_per_image <= total / 2


@needs_triton
@pytest.mark.parametrize(
    ("elements", "most"), [(1_821_528, 1024), (33_554_000, 1024), (33_560_000, 512), (1 << 31, 16)]
)
def test_as_many_images_are_in_flight_as_tables_have_places_for(monkeypatch, elements, most):
    """On a GPU of any memory. The first are those of an image of the paper's network; places count 16 of them."""
    program = SimpleNamespace(device=torch.device("cuda", 0), bytes_per_image=2 * elements, elements_per_image=elements)
    monkeypatch.setattr(engine, "free_bytes", lambda device: 1 << 50)
    assert engine.Decoder(program).images_for(100_000) == most


# --- which engine ---


@pytest.mark.engine("cpu")
@pytest.mark.parametrize(
    ("hip", "capability", "triton_is_there", "expected"),
    [
        (None, (9, 0), True, "triton"),
        (None, (7, 5), True, "cpu"),
        (None, (9, 0), False, "cpu"),
        ("6.4", (9, 4), True, "triton"),
    ],
)
def test_a_gpu_without_the_compiled_cuda_part_gets_the_triton_engine(
    monkeypatch, hip, capability, triton_is_there, expected
):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("PXFAST_TRIAL", "0")  # on a GPU that is not there
    there = SimpleNamespace(
        is_available=lambda: True,
        get_device_capability=lambda: capability,
        get_device_name=lambda: "a GPU",
        current_device=lambda: 0,
        _is_in_bad_fork=lambda: False,
    )
    monkeypatch.setattr(compiled, "_C", SimpleNamespace(cuda=False))
    monkeypatch.setattr(engine, "_installed", lambda: triton_is_there)
    monkeypatch.setattr(torch, "cuda", there)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert select("auto").name == expected


# --- torch.compile ---

COMPILED = """
import torch
import pxfast.pixelcnn.heads
from pxfast.pixelcnn.heads import make_head

pxfast.pixelcnn.heads.FUSED_DEVICES = ("cpu",)
head = make_head("logistic", 3, 2)
features = torch.randn(2, head.features, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)

def loss(features):
    with torch.autocast("cpu", torch.bfloat16):
        return -head.log_prob(2.0 * features, images).mean()

# in one graph, with the operator's module imported by the traced function itself
compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
(found,) = torch.autograd.grad(compiled(features), features)
(wanted,) = torch.autograd.grad(loss(features), features)
pxfast.pixelcnn.heads.FUSED_DEVICES = ()
(plain,) = torch.autograd.grad(loss(features), features)
torch.testing.assert_close(found, wanted)
torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6)
print("alike")
"""


@pytest.mark.interpret
@needs_triton
def test_torch_compile_makes_one_graph_of_a_heads_likelihood():
    assert run_python(COMPILED, TRITON_INTERPRET="1") == "alike\n"
