"""The five promises of every engine: exact, batch-invariant, bounded, flat, polite.

The models are small but trained for some dozens of steps on real images, so that their distributions have peaks; two
are the authors' own (tests/data). Exactness is judged by a teacher-forced pass over the result, never by comparing
pixels alone: near a tie two correct roundings part ways, and everything after differs.
"""

import itertools
import math
import threading
import time

import pytest
import torch
from support.engine_cases import (
    CASES,
    FEW,
    TINY,
    assert_exact,
    assert_largest_below_255,
    attacked,
    decode,
    images_size,
    runner_up_margin,
    small,
    with_engines,
)
from support.helpers import assert_as_exact, real_images, trained_model, wide_component_model
from torch import Tensor

from pxfast.base.checks import PRECISIONS
from pxfast.engines.choosers import Greedy
from pxfast.engines.registry import select
from pxfast.engines.schedule import schedule_for
from pxfast.pixelcnn.network import PixelCNN
from pxfast.pixelcnn.oracle import oracle
from pxfast.pixeldefend.verify import verify

# eps and batch size: the last is more than the block of images that the CPU engine decodes together
BATCHES = [(eps, count) for eps in (0, 1, 16, 255) for count in (1, 2, 7)] + [(16, 65)]


every_case = with_engines(
    "case",
    CASES,
    lambda case: case.slow,
    whole=lambda engine, case: case not in (CASES[2:4] if engine == "reference" else FEW),
)


without_bf16_of_the_reference = with_engines(  # in the inner loop
    "precision",
    PRECISIONS,
    lambda precision: False,
    whole=lambda engine, precision: (engine, precision) == ("reference", "bf16"),
)


# --- 1. exact ---


@every_case
def test_exact_over_the_spread_of_models(engine, case, precision):
    model = case.model()
    most = max(1, 2000 // images_size(case))  # verification takes 256 logarithms of every sub-pixel
    counts = (1, 1, 1) if engine == "reference" else (min(7, most), min(2, most), 1)
    for eps, count in zip((16, 1, 255), counts, strict=True):
        images = attacked(case, count)
        before = images.clone()
        result = decode(engine, model, images, eps, precision)
        assert torch.equal(images, before), "the input is left alone"
        assert_exact(model, images, result, eps, precision)
        if count > 1:
            alone = decode(engine, model, images[-1:], eps, precision)
            assert torch.equal(alone, result[-1:]), "an image's result depends on its batch"


@with_engines("batch", BATCHES, lambda batch: batch[1] != 1)
def test_exact_for_every_eps_and_batch(engine, precision, batch):
    (eps, count), case = batch, small(engine)
    images, model = attacked(case, count), case.model()
    result = decode(engine, model, images, eps, precision)
    some = slice(None, None, 8 if count == 65 else 1)  # of the large batch every eighth image, the last as well
    assert_exact(model, images[some], result[some], eps, precision)
    if eps == 0:
        assert torch.equal(result, images)
    else:
        assert not torch.equal(result, images)


@pytest.mark.parametrize(
    "cases",
    [FEW, pytest.param([case for case in CASES if case not in FEW], marks=pytest.mark.whole)],
    ids=["few", "others"],
)
def test_the_models_are_sharp_and_a_wrong_pixel_is_noticed(cases):
    # else the tests above could not fail: one grey level away from the choice costs far more than their tolerance
    for case in cases:
        model, images = case.model(), attacked(case, max(1, 300 // images_size(case)))
        best = decode(select().name, model, images, 16, "fp32")
        moved = torch.where((best < images) | (best == 0), best + 1, best - 1)  # within range
        spoilt = best.clone()
        spoilt[:, :, 1::2] = moved[:, :, 1::2]
        verdict = verify(images, spoilt, 16, model=model)
        assert not verdict.passed
        assert verdict.mean_regret > 1e-3, str(case)


@pytest.mark.engine("cpu")
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.whole] * (case not in (TINY, CASES[2])), id=str(case))
        for case in CASES
        if not case.slow
    ],
)
def test_the_cpu_engine_is_as_exact_as_the_reference(case):
    model, images = case.model(), attacked(case, 2)
    cpu, reference = (decode(name, model, images, 16, "fp32") for name in ("cpu", "reference"))
    assert_as_exact(model, images, cpu, reference, Greedy(16), "fp32")


# --- 2. batch-invariant ---


@without_bf16_of_the_reference
def test_result_depends_neither_on_the_batch_nor_on_threads(engine, precision):
    count = 3 if engine == "reference" else 70  # more than any block of images that is decoded together
    model, images = small(engine).model(), attacked(small(engine), count)
    whole = decode(engine, model, images, 16, precision)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    assert torch.equal(decode(engine, model, images[order], 16, precision), whole[order])
    parts = (slice(0, 1), slice(count - 1, count), slice(1, 3), slice(2, count))
    for part in parts[2:3] if engine == "reference" else parts:
        assert torch.equal(decode(engine, model, images[part].contiguous(), 16, precision), whole[part]), part
    company = images.clone()
    company[1:] = 255 - company[1:]
    assert torch.equal(decode(engine, model, company, 16, precision)[0], whole[0])
    for threads in (1, 2, 3, 16) if engine != "reference" else ():
        again = decode(engine, model, images, 16, precision, threads=threads)
        assert torch.equal(again, whole), f"{threads} threads"


# --- 3. bounded ---


@every_case
def test_bounds_hold_for_extreme_images(engine, case, precision):
    black = torch.zeros(1, case.channels, *case.size, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    coarse = 255 * torch.randint(0, 2, black.shape, dtype=torch.uint8, generator=generator)
    images = torch.cat((black, 255 - black, coarse))
    for eps in (40,) if engine == "reference" else (0, 1, 40, 254):
        result = decode(engine, case.model(), images, eps, precision)
        assert int((result.int() - images.int()).abs().max()) <= eps
        if eps == 40:
            assert_exact(case.model(), images[:1], result[:1], eps, precision)


@without_bf16_of_the_reference
def test_eps_255_forgets_the_input(engine, precision):
    case = small(engine)
    model, images = case.model(), torch.cat((attacked(case, 2), 255 - attacked(case, 1)))
    result = decode(engine, model, images, 255, precision)
    assert torch.equal(result[0], result[1])
    assert torch.equal(result[0], result[2])
    network = oracle(model, precision)
    greedy = torch.zeros_like(images[:1])  # unconstrained: the most likely value, given those before
    with torch.no_grad():
        for i, j in itertools.product(*map(range, case.size)):
            features = network(greedy)[:, :, i : i + 1, j : j + 1]
            pixel = greedy[:, :, i : i + 1, j : j + 1]  # a view: filled channel by channel
            for k in range(case.channels):
                pixel[:, k] = network.head.log_probs(features, pixel)[:, k].argmax(dim=-1).byte()
    if not torch.equal(result[:1], greedy):
        assert_exact(model, images[:1], result[:1], 255, precision)
        first = (result[:1] != greedy).permute(0, 2, 3, 1).flatten().nonzero()[0]
        margin = runner_up_margin(network, result[:1], images[:1], 255).permute(0, 2, 3, 1).flatten()[first]
        # a near-tie by the rounding of fp32; in bf16 the engine's activations are rounded too, to 8 bits
        assert float(margin) < (1e-3 if precision == "fp32" else 0.1)


def test_ties_go_to_the_smallest_value(engine, precision):
    # a softmax head without weights finds all 256 values equally likely: the least value in range is taken
    model = trained_model((4, 4), 1, 4, 1, "softmax", steps=0)
    flat = PixelCNN(model.config).eval()
    with torch.no_grad():
        flat.output.g.zero_()
        flat.output.b.zero_()
    images = real_images(1, (4, 4), 2)
    result = decode(engine, flat, images, 16, precision)
    assert torch.equal(result.int(), (images.int() - 16).clamp(min=0))


@with_engines(
    "kind",
    ["logistic-1", "logistic-3", "pixelcnn++-1", "pixelcnn++-3"],
    lambda kind: False,
    whole=lambda engine, kind: engine == "reference" and kind in ("logistic-3", "pixelcnn++-1"),
)
def test_a_component_wider_than_fp32_hides_no_other(engine, precision, kind):
    head, channels = kind[:-2], int(kind[-1])
    model, images = wide_component_model(channels, head), real_images(channels, (4, 4), 2).clamp(min=4)
    assert_largest_below_255(model, images, decode(engine, model, images, 3, precision), precision)


# --- 4. flat: test_engines_process.py; 5. polite, as far as one process shows it ---


def test_two_threads_may_decode_at_once(engine, precision):
    case, count = small(engine), 1 if engine == "reference" else 130
    model, inputs = case.model(), [attacked(case, count), 255 - attacked(case, count)]
    expected = [decode(engine, model, images, 16, precision) for images in inputs]
    results: list[Tensor | None] = [None, None]

    def work(i: int) -> None:
        results[i] = decode(engine, model, inputs[i], 16, precision)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, wanted in zip(results, expected, strict=True):
        assert result is not None
        assert torch.equal(result, wanted)


def test_another_thread_goes_on_during_a_decode(engine):
    case, count = small(engine), 4 if engine == "reference" else 64
    model = case.model()
    decode(engine, model, attacked(case, 1), 16, "fp32")  # packs the weights
    started = time.perf_counter()
    decode(engine, model, attacked(case, count), 16, "fp32")
    count = max(count, math.ceil(count * 0.5 / (time.perf_counter() - started)))  # half a second of work, or more
    images = attacked(case, 64).repeat(math.ceil(count / 64), 1, 1, 1)[:count]
    beats, stop = [], threading.Event()

    def beat() -> None:
        while not stop.is_set():
            beats.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=beat)
    thread.start()
    started = time.perf_counter()
    decode(engine, model, images, 16, "fp32")
    finished = time.perf_counter()
    stop.set()
    thread.join()
    during = [started, *(moment for moment in beats if started <= moment <= finished), finished]
    longest = max(b - a for a, b in itertools.pairwise(during))
    assert longest < 0.5 * (finished - started), "the GIL was held for half of the decode or longer"


def test_progress_is_reported_up_to_the_end(engine):
    seen: list[int] = []
    images, model = attacked(small(engine), 3), small(engine).model()
    select(engine).decode(schedule_for(model), images, Greedy(4), precision="fp32", report=seen.append)
    assert seen
    assert seen == sorted(seen)
    assert seen[-1] == 3


def test_an_error_in_the_report_comes_out(engine):
    def report(finished: int) -> None:
        raise LookupError("from the report")

    images, model = attacked(small(engine), 3), small(engine).model()
    with pytest.raises(LookupError, match="from the report"):
        select(engine).decode(schedule_for(model), images, Greedy(4), precision="fp32", report=report)


def test_changed_weights_are_noticed(engine, precision):
    case = small(engine)
    model = PixelCNN(case.model().config)
    model.load_state_dict(case.model().state_dict())
    images = attacked(case, 1)
    decode(engine, model.eval(), images, 16, precision)
    with torch.no_grad():
        model.output.b.neg_()
    assert_exact(model, images, decode(engine, model, images, 16, precision), 16, precision)
