"""Images per second of purification, and the fraction of what this machine's matrix product would allow.

The limit is matrix rate / forward_flops: cached decoding does the work of one teacher-forced pass per image. The
matrix rate is measured right before and after the decodes, in the same process and on as many threads; the better of
the two counts.
"""

import pytest
import torch
from matrix_rate import matrix_rate
from networks import NAMES, network, smooth_images

from pxfast.engines import Greedy, select
from pxfast.engines.cpu import current_isa
from pxfast.pixelcnn import forward_flops
from pxfast.schedule import PRECISIONS, schedule_for
from pxfast.verify import verify

ROUNDS = {"paper-cifar10": 1, "paper-fashion-mnist": 3, "shipped-fashion-mnist": 3}
BATCH = {"paper-cifar10": 64, "paper-fashion-mnist": 128, "shipped-fashion-mnist": 128}
EPS = 16


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest):
    try:
        model = network(request.param)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return request.param, model


@pytest.mark.parametrize("precision", PRECISIONS)
def test_purify(benchmark, request, model, precision, threads):
    name, pixelcnn = model
    engine = select("cpu")
    config = pixelcnn.config
    count = request.config.getoption("images") or BATCH[name]
    images = smooth_images(count, config.channels, config.image_size)
    schedule = schedule_for(pixelcnn)

    def decode(part: torch.Tensor) -> torch.Tensor:
        return engine.decode(schedule, part, Greedy(EPS), precision=precision)

    first = decode(images[:1])  # packs the weights, and shows that what is measured is right
    verdict = verify(images[:1], first, EPS, model=pixelcnn, precision=precision)
    assert verdict.passed, f"{verdict}"
    before = matrix_rate(precision, threads)
    result = benchmark.pedantic(decode, args=(images,), rounds=ROUNDS[name], iterations=1, warmup_rounds=0)
    assert torch.equal(result[:1], first)
    rate = max(before, matrix_rate(precision, threads), key=lambda rate: rate.flops)
    images_per_second = count / benchmark.stats.stats.median
    benchmark.extra_info.update(
        network=name,
        engine=engine.name,
        precision=precision,
        isa=current_isa(),
        threads=threads,
        batch=count,
        eps=EPS,
        images_per_second=images_per_second,
        forward_gflop=forward_flops(config) / 1e9,
        matrix_gflops=rate.flops / 1e9,
        matrix_shape=list(rate.shape),
        fraction_of_limit=images_per_second * forward_flops(config) / rate.flops,
        torch=torch.__version__,
    )
