"""The CUDA engine's Python side and its planning, as far as no GPU has a part in them; and what only a GPU shows.

That kernels are right is test_cuda_shim.py's and, on a GPU, test_engines.py's concern.
"""

import types

import pytest
import torch
from support.helpers import assert_as_exact, assert_chosen, noisy, real_images, trained_model

from pxfast.base.checks import PRECISIONS
from pxfast.engines import benchmark, compiled, cuda, cuda_plans, triton
from pxfast.engines.choosers import Greedy, Sample
from pxfast.engines.registry import select
from pxfast.engines.schedule import schedule_for
from pxfast.engines.settings import DecodeSettings
from pxfast.pixelcnn.network import PixelCNN
from pxfast.pixeldefend import trial

SEQUENTIAL, SPECULATIVE = compiled.ORDERS["sequential"], compiled.ORDERS["speculative"]


@pytest.mark.parametrize("images", [1, 63, 64, 65, 1000, 100_000])
@pytest.mark.parametrize("free", [0, 10**8, 10**11])
@pytest.mark.parametrize("plannable", [0, 40, 10**6])
def test_chunks_hold_all_images_within_memory_and_size(images, free, plannable):
    sizes = cuda.chunks(images, 4_000_000, free, 132, plannable)
    assert sum(sizes) == images
    assert max(sizes) - min(sizes) <= 1
    most = max(1, min(int(0.9 * free) // 4_000_000, 64 * 132, plannable))
    assert max(sizes) <= most
    assert len(sizes) == -(-images // most), "no more parts than needed"


def test_why_it_cannot_run_is_said(monkeypatch):
    monkeypatch.setattr(compiled, "_C", types.SimpleNamespace(cuda=False))
    assert "no CUDA part; build it where nvcc is installed" in cuda.unavailable()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(compiled, "_C", types.SimpleNamespace(cuda=True))
    assert cuda.unavailable() == "torch finds no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    old = "it needs compute capability 8.0 or newer, and this is Tesla T4 (compute capability 7.5)"
    monkeypatch.setattr(cuda, "_problem", lambda device: old)
    assert cuda.unavailable() == old


@pytest.mark.parametrize("engine", [cuda, triton])
def test_a_forked_worker_uses_no_gpu(monkeypatch, engine):
    """In a DataLoader's worker, if its parent has used the GPU, CUDA raises whatever it is asked."""

    def refuse(*_):
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess.")

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(compiled, "_C", types.SimpleNamespace(cuda=True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    for call in ("current_device", "get_device_capability", "get_device_name", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, call, refuse)
    assert "forked from one that uses the GPU" in engine.unavailable()
    assert select("auto").name in ("cpu", "reference")


def test_out_of_memory_names_what_was_asked_for(monkeypatch):
    def refuse(*args, **kwargs):
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(torch.OutOfMemoryError, match=r"cpu for 12\.0 MB for 3 images in flight: none left"):
        cuda._allocate(12_000_000, torch.device("cpu"), "3 images in flight")


def test_images_that_there_is_no_room_for_at_once_are_decoded_in_halves():
    """133 images on 132 multiprocessors are given memory for 264: teams of one block with two images each."""
    decoded: list[int] = []

    def decode_part(done: int, count: int) -> None:
        assert done == len(decoded)
        if count > most:
            raise cuda.NoRoom(f"no room for {count} images")
        decoded.extend(range(done, done + count))

    most = 40
    cuda.in_parts([133, 132], decode_part)
    assert decoded == list(range(265))
    most = 0
    decoded.clear()
    with pytest.raises(torch.OutOfMemoryError, match="no room for 1 images"):
        cuda.in_parts([133], decode_part)


# --- planning, for an H200 and a smaller GPU ---


@pytest.fixture(scope="module")
def module():
    return compiled._C


@pytest.fixture(scope="module")
def engines(module):
    """The paper's CIFAR-10 network by precision; a plan does not depend on its weights."""
    program = compiled.program_of(schedule_for(PixelCNN(benchmark.PAPER_NETWORKS["paper-cifar10"])))
    return {precision: module.CudaEngine(program, precision == "bf16") for precision in PRECISIONS}


def h200(module):
    return module.CudaDevice("H200", 9, 0, multiprocessors=132, shared_bytes=232_448, clusters=32, groups=True)


def ada(module):
    return module.CudaDevice("L4", 8, 9, multiprocessors=58, shared_bytes=101_376, clusters=0)


@pytest.mark.engine("cuda-plan")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_papers_network_stays_under_8_mb_an_image(engines, precision):
    assert engines[precision].bytes_per_image() < 8e6
    assert engines[precision].bytes_per_image(speculative=True) < 8e6
    parameters = 53.6e6
    element = 2 if precision == "bf16" else 4
    assert engines[precision].weight_bytes == pytest.approx(parameters * element, rel=0.02)


@pytest.mark.engine("cuda-plan")
@pytest.mark.parametrize("images", [1, 2, 64, 131, 133, 2048, 8000])
@pytest.mark.parametrize("device", [h200, ada])
def test_a_plan_fits_the_gpu(module, engines, images, device):
    gpu = device(module)
    for order in compiled.ORDERS.values():
        plan = engines["bf16"].plan(images, gpu, order)
        assert plan.teams * plan.members <= gpu.multiprocessors
        assert plan.teams <= images <= plan.teams * plan.capacity
        assert plan.shared_bytes <= (232_448 if device is h200 else 101_376)
        assert plan.speculative == (order == SPECULATIVE) or order == compiled.ORDERS["auto"]
        most = engines["bf16"].bytes_per_image(plan.speculative) * plan.teams * plan.capacity
        assert engines["bf16"].workspace_bytes(plan) < 1.05 * most + 1e6


@pytest.mark.engine("cuda-plan")
@pytest.mark.parametrize("wgmma", [None, True, False])
@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_are_packed_for_the_devices_instruction(module, monkeypatch, precision, groups, wgmma):
    monkeypatch.setattr(cuda, "_gpu", lambda device: types.SimpleNamespace(groups=groups))
    schedule = schedule_for(benchmark.network("shipped-fashion-mnist"))
    found = bytes(cuda.packed(schedule, precision, torch.device("cpu"), DecodeSettings(wgmma=wgmma)).block.numpy())
    program, bf16 = compiled.program_of(schedule), precision == "bf16"
    packed = {groups: module.CudaEngine(program, bf16, groups).block().tobytes() for groups in (True, False)}
    assert (packed[True] == packed[False]) == (precision == "fp32"), "only bf16 has two orders"
    assert found == packed[groups and wgmma is not False]


@pytest.mark.engine("cuda-plan")
@pytest.mark.whole  # other plans of the same networks are in the inner loop
def test_few_grey_images_are_guessed_and_others_are_not(module, engines):
    gpu, auto = h200(module), compiled.ORDERS["auto"]
    grey = module.CudaEngine(compiled.program_of(schedule_for(benchmark.network("paper-fashion-mnist"))), True)
    assert grey.plan(1, gpu, auto).speculative
    assert not grey.plan(2048, gpu, auto).speculative
    colour = engines["bf16"].plan(1, gpu, auto)
    assert not colour.speculative, "a row of a natural colour image takes as many sweeps as it has pixels"
    assert colour.members > 8, "one image is shared by many blocks"


@pytest.mark.engine("cuda-plan")
def test_a_plan_that_cannot_be_is_refused(module, engines):
    engine, gpu = engines["bf16"], h200(module)
    with pytest.raises(ValueError, match="one image or more"):
        engine.plan(0, gpu, SEQUENTIAL)
    with pytest.raises(ValueError, match="a block for each multiprocessor at most"):
        engine.plan(1, gpu, SEQUENTIAL, members=133)
    with pytest.raises(ValueError, match="no clusters of blocks: L4"):
        engine.plan(64, ada(module), SEQUENTIAL, clusters=True)
    with pytest.raises(ValueError, match="a team that is a cluster has four members, not 2"):
        engine.plan(64, gpu, SEQUENTIAL, members=2, clusters=True)
    plan = engine.plan(2048, gpu, SEQUENTIAL, clusters=True)
    assert (plan.cluster, plan.teams, plan.members, plan.capacity) == (4, 32, 4, 64)


@pytest.mark.engine("cuda-plan")
@pytest.mark.parametrize(("members", "clusters"), [(0, False), (1, False), (132, False), (50, False), (0, True)])
def test_there_is_a_plan_for_as_many_images_as_the_engine_says(module, engines, members, clusters):
    engine, gpu = engines["bf16"], h200(module)
    most = engine.most_images(gpu, members, clusters)
    assert engine.plan(most, gpu, SEQUENTIAL, members, clusters).capacity * engine.bytes_per_image() < 2**34
    with pytest.raises(RuntimeError, match="too many images at once"):
        engine.plan(most + 1, gpu, SEQUENTIAL, members, clusters)


# size, channels, filters, layers a level; the second's row steps take more than half of a tile's outputs
PLANNED = [((8, 12), 3, 10, 1), ((4, 8), 1, 48, 1)]


@pytest.mark.engine("cuda-plan")
@pytest.mark.parametrize("shape", PLANNED, ids=str)
def test_the_plans_that_are_held_against_each_other_are_what_they_say(module, shape):
    """One team, three and many, each with several images, tiles of rows beyond the first and both warpgroups of one."""
    gpu, count = h200(module), cuda_plans.images_of(132)
    engine = module.CudaEngine(compiled.program_of(schedule_for(trained_model(*shape, steps=0))), True, True)
    found = []
    for way in cuda_plans.plans(gpu.multiprocessors, clusters=True):
        plan = engine.plan(count, gpu, compiled.ORDERS[way.order], way.team or 0, way.clusters)
        assert plan.speculative == (way.order == "speculative")
        assert plan.members == (way.team or 4)
        found.append((plan.teams, plan.capacity, plan.cluster))
    teams = [(132, 3, 1), (3, 95, 1), (1, 284, 1)]
    clusters = (32, 9, 4)
    assert found == [*teams, clusters, *teams, clusters]
    assert shape[0][1] * 95 > 2 * 128, "three teams have more than two tiles of rows"


# --- on a GPU ---


@pytest.mark.gpu
@pytest.mark.engine("cuda")
@pytest.mark.parametrize("shape", PLANNED, ids=str)
@pytest.mark.parametrize("wgmma", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_plan_changes_a_bit(precision, wgmma, shape):
    model = trained_model(*shape)
    count, plans = cuda_plans.plans_of(torch.cuda.current_device())
    images = noisy(real_images(model.config.channels, model.config.image_size, count))
    settings = DecodeSettings(wgmma=wgmma)
    assert trial.judge_decode(cuda.decode, model, images, precision, plans, settings=settings) is None


@pytest.mark.gpu
@pytest.mark.engine("cuda")
def test_as_the_cpu_engine_for_every_chooser():
    model = trained_model((8, 12), 3, 10, 1)
    images = noisy(real_images(3, (8, 12), 24))
    for chooser in (Greedy(16), Greedy(16, keep_bits=7.0), Sample(2**40 + 3, temperature=0.5, first=7)):
        ours, theirs = (
            select(name).decode(schedule_for(model), images, chooser, precision="fp32") for name in ("cuda", "cpu")
        )
        assert_chosen(model, images, ours, chooser)
        if isinstance(chooser, Greedy):
            assert_as_exact(model, images, ours, theirs, chooser, "fp32")


@pytest.mark.gpu
@pytest.mark.engine("cuda")
def test_images_on_the_gpu_stay_there_and_parts_change_no_bit(monkeypatch):
    model = trained_model((8, 8), 1, 8, 1)
    images = noisy(real_images(1, (8, 8), 50))
    whole = cuda.decode(schedule_for(model), images, Greedy(16), precision="bf16")
    there = cuda.decode(schedule_for(model), images.cuda(), Greedy(16), precision="bf16")
    assert there.is_cuda
    assert not whole.is_cuda
    assert torch.equal(there.cpu(), whole)
    monkeypatch.setattr(cuda, "chunks", lambda images, *rest: [7] * (images // 7) + [images % 7])
    seen: list[int] = []
    parts = cuda.decode(schedule_for(model), images, Greedy(16), precision="bf16", report=seen.append)
    assert torch.equal(parts, whole)
    assert seen == sorted(seen)
    assert seen[-1] == 50
