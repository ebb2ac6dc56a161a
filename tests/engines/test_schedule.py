"""The schedule: what it costs, and that it is made anew when the weights change."""

import gc
import weakref

import pytest
import torch
from support.helpers import bench_script

from pxfast import purify
from pxfast.engines import benchmark
from pxfast.engines.schedule import ANY, Epilogue, Scale, schedule_for
from pxfast.pixelcnn.network import forward_flops
from pxfast.pixelcnn.oracle import frozen, oracle

count = bench_script("cpu_report.py")["count"]


@pytest.mark.parametrize(
    ("name", "row_gflop", "pixel_gflop"),
    [
        pytest.param("paper-cifar10", 28.16, 20.58, marks=pytest.mark.process),
        ("paper-fashion-mnist", 1.348, 0.986),
    ],
)
def test_a_decode_costs_exactly_one_forward_pass(name, row_gflop, pixel_gflop):
    found = count(name)
    assert found["row_gflop"] == pytest.approx(row_gflop, abs=5e-3)
    assert found["pixel_gflop"] == pytest.approx(pixel_gflop, abs=5e-3)
    total = 1e-9 * forward_flops(benchmark.network(name).config)
    assert found["row_gflop"] + found["pixel_gflop"] == pytest.approx(total, rel=1e-9)


def test_every_cell_is_written_before_it_is_read(tiny_model):
    schedule = schedule_for(tiny_model)
    written = {schedule.input_cache}
    for step in schedule.steps:
        for tap in step.taps:
            # a cell of this very position must come from an earlier step; cells before it may come from any
            assert tap.row < 0 or tap.column < 0 or tap.cache in written
            assert schedule.caches[tap.cache].rows >= 1 - tap.row
        outputs = {step.concat_elu, step.raw, step.elu} - {None}
        assert outputs or step.epilogue == Epilogue.OUTPUT, "a step that nobody reads"
        written |= outputs


@pytest.mark.parametrize("channels", [1, 3])
def test_early_taps_read_what_is_there_before_the_rows_first_pixel(make_model, channels):
    """Counted by walking the image in the engines' order, and about half of what a pixel costs."""
    schedule = schedule_for(make_model((8, 12), channels))
    H, W = schedule.config.image_size
    done: dict[int, int] = {}  # of every cache, the rows of its level that are whole when a row's pixels begin
    late = early = 0
    for row in range(H):
        for step in schedule.steps:
            if step.per_row and row % (1 << step.level) == 0:
                done.update(dict.fromkeys((step.concat_elu, step.raw, step.elu), (row >> step.level) + 1))
        for step in schedule.steps:
            if step.per_row or row % (1 << step.level):
                continue
            r, columns = row >> step.level, W >> step.level
            base = {Scale.SAME: r, Scale.DOWN: 2 * r, Scale.UP: r // 2}[step.scale]
            for i, tap in enumerate(step.taps):
                if tap.row_parity in (ANY, r % 2):
                    known = base + tap.row < done.get(tap.cache, 0)
                    assert known == (i < step.early), "early taps come first, and are all that could be early"
                    cost = columns * tap.matrix.numel()
                    early, late = early + cost * known, late + cost * (not known)
        done[schedule.input_cache] = row + 1
        for step in schedule.steps:
            if not step.per_row and row % (1 << step.level) == 0:
                done.update(dict.fromkeys((step.concat_elu, step.raw, step.elu), (row >> step.level) + 1))
    assert 0.45 < early / (early + late) < 0.55


def test_a_schedule_is_kept_until_the_weights_change(make_model):
    model = make_model()
    first = schedule_for(model)
    assert schedule_for(model) is first
    with torch.no_grad():
        model.output.b.add_(1.0)
    second = schedule_for(model)
    assert second is not first
    assert torch.equal(second.model.output.b, model.output.b)


@pytest.mark.parametrize("own", [False, True])
def test_a_model_is_freed_with_its_schedule_whether_or_not_it_is_a_frozen_copy(make_model, own):
    model = make_model()
    network = frozen(model) if own else model
    schedule = weakref.ref(schedule_for(network))
    gone = weakref.ref(network)
    assert schedule() is not None
    del model, network
    gc.collect()
    assert gone() is None
    assert schedule() is None


def test_the_bf16_oracle_has_the_engines_weights(tiny_model):
    schedule = schedule_for(tiny_model)
    for (_, mine), (_, full) in zip(
        oracle(schedule.model, "bf16").convolutions(), oracle(schedule.model, "fp32").convolutions(), strict=True
    ):
        rounded = full.weight().bfloat16()
        assert torch.equal(mine.weight().bfloat16(), rounded)
        torch.testing.assert_close(mine.weight(), rounded.float(), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, got 'fp8'"):
        oracle(schedule.model, "fp8")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("name", "spoil"),
    [("output.bias", lambda model: model.output.b), ("input_left.weight", lambda model: model.input_left.v)],
)
def test_a_model_whose_weights_are_not_finite_is_refused(make_model, value, name, spoil):
    model = make_model()
    with torch.no_grad():
        spoil(model).flatten()[0] = value
    with pytest.raises(ValueError, match=rf"the model's {name} has values that are not finite"):
        purify(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), model=model)
