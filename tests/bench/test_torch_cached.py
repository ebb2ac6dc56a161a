"""The plain-PyTorch yardstick of bench/ decodes as the engines do, so that its rate means something."""

import pytest
import torch
from support.helpers import bench_script, noisy, real_images, trained_model

from pxfast.engines.schedule import schedule_for
from pxfast.pixeldefend.verify import verify

TorchDecoder = bench_script("torch_cached.py")["TorchDecoder"]


@pytest.mark.parametrize(("channels", "precision"), [(1, "fp32"), (3, "fp32"), (3, "bf16")])
def test_the_baseline_is_exact(channels, precision):
    model = trained_model((8, 12), channels, {1: 8, 3: 10}[channels], 1)
    images = noisy(real_images(channels, (8, 12), 3))
    decoder = TorchDecoder(schedule_for(model), 3, 16, precision, "cpu")
    result = decoder.decode(images)
    verdict = verify(images, result, 16, model=model, precision=precision)
    assert verdict.passed, f"{verdict}"
    assert torch.equal(decoder.decode(images), result), "a second batch finds the caches as the first left them"


@pytest.mark.gpu
def test_the_graphs_decode_as_the_functions_do():
    model = trained_model((12, 8), 1, 10, 1, steps=12)
    images = noisy(real_images(1, (12, 8), 5))
    result = TorchDecoder(schedule_for(model), 5, 16, "fp32", "cuda").decode(images.cuda()).cpu()
    assert verify(images, result, 16, model=model).passed


def test_another_head_is_refused():
    model = trained_model((8, 8), 1, 8, 1, "softmax", steps=0)
    with pytest.raises(ValueError, match="logistic head only, not softmax"):
        TorchDecoder(schedule_for(model), 1, 16, "fp32", "cpu")
