"""Images per second of purification, and the fraction of what this machine's matrix product would allow.

The limit is matrix rate / forward_flops: cached decoding does the work of one teacher-forced pass per image. The
matrix rate is measured right before and after the decodes, in the same process and on as many threads; the better of
the two counts.
"""

import dataclasses
import statistics

import pytest
import torch

from pxfast.base.checks import PRECISIONS
from pxfast.engines import benchmark as measurements
from pxfast.engines.choosers import Greedy
from pxfast.engines.registry import select
from pxfast.engines.schedule import schedule_for
from pxfast.pixeldefend.verify import verify

ROUNDS = {"paper-cifar10": 1}
BATCH = {"paper-cifar10": 64}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", measurements.NETWORKS)
def test_purify(benchmark, request, name, precision, settings):
    model = measurements.network(name)
    image = measurements.smooth_images(1, model.config)
    decoded = select("cpu").decode(
        schedule_for(model), image, Greedy(measurements.EPS), precision=precision, settings=settings
    )
    verdict = verify(image, decoded, measurements.EPS, model=model, precision=precision)
    assert verdict.passed, f"{verdict}"  # what is measured is right

    def timer(decode) -> float:
        benchmark.pedantic(decode, rounds=ROUNDS.get(name, 3), iterations=1, warmup_rounds=0)
        return statistics.median(benchmark.stats.stats.data)

    batch = request.config.getoption("images") or BATCH.get(name, 128)
    row = measurements.measure(name, precision=precision, batch=batch, settings=settings, timer=timer)
    benchmark.extra_info.update(dataclasses.asdict(row), torch=torch.__version__)
