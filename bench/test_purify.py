"""Images per second of purification, and the fraction of what this machine's matrix product would allow.

The limit is matrix rate / forward_flops: cached decoding does the work of one teacher-forced pass per image. Every
network runs on every instruction set of the machine. The matrix rate is torch's on the same set and as many threads,
measured before each round and after the last; medians count.
"""

import dataclasses
import statistics
from collections.abc import Callable

import pytest
import torch

from pxfast.base.checks import PRECISIONS
from pxfast.engines import benchmark as measurements
from pxfast.engines import compiled
from pxfast.engines.choosers import Greedy
from pxfast.engines.registry import select
from pxfast.engines.schedule import schedule_for
from pxfast.pixeldefend.verify import verify

BATCH = {"paper-cifar10": 64}
INSTRUCTION_SETS = [] if compiled._C is None else compiled._C.cpu_isas()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", measurements.NETWORKS)
def test_purify(benchmark, request, name, isa, precision, settings):
    settings = dataclasses.replace(settings, isa=isa)
    model = measurements.network(name)
    image = measurements.smooth_images(1, model.config)
    decoded = select("cpu").decode(
        schedule_for(model), image, Greedy(measurements.EPS), precision=precision, settings=settings
    )
    verdict = verify(image, decoded, measurements.EPS, model=model, precision=precision)
    assert verdict.passed, f"{verdict}"  # what is measured is right
    rounds = request.config.getoption("rounds")

    def timer(decode: Callable[[], None], before_each: Callable[[], None]) -> float:
        benchmark.pedantic(decode, setup=before_each, rounds=rounds, warmup_rounds=0)
        return statistics.median(benchmark.stats.stats.data)

    batch = request.config.getoption("images") or BATCH.get(name, 128)
    row = measurements.measure(name, precision=precision, batch=batch, settings=settings, timer=timer)
    benchmark.extra_info.update(dataclasses.asdict(row), torch=torch.__version__)
