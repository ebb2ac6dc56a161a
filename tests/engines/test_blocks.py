"""The images that a thread of the CPU engine decodes together: as many as a GiB holds, and no bit depends on it."""

import pytest
import torch
from support.engines import INSTRUCTION_SETS
from support.helpers import noisy, real_images, trained_model

from pxfast.engines import cpu
from pxfast.engines.choosers import Greedy
from pxfast.engines.compiled import chooser_for
from pxfast.engines.schedule import schedule_for
from pxfast.engines.settings import DecodeSettings
from pxfast.pixelcnn.network import PixelCNN, PixelCNNConfig

pytestmark = pytest.mark.engine("cpu")


def engine_for(model: PixelCNN, precision: str = "fp32", isa: str | None = None):
    return cpu.packed(schedule_for(model), precision, isa or cpu.isa_of())


def test_wide_images_are_decoded_in_smaller_blocks():
    assert engine_for(trained_model((16, 16), 1, 10, 1, "logistic", 12)).block == 64
    for width in (8192, 16384):
        engine = engine_for(PixelCNN(PixelCNNConfig((4, width), 1, 16, 1)))
        assert 1 <= engine.block < 64
        assert engine.block * engine.bytes_per_image <= 1 << 30 or engine.block == 1


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_no_bit_depends_on_the_block(isa, precision, threads):
    """Of 16 images, 32 and so many more AMX's products are of other shapes, and channels that are no multiple of 32."""
    model = trained_model((16, 16), 1, 10, 1, "logistic", 12)
    engine = engine_for(model, precision, isa)
    images = noisy(real_images(1, (16, 16), 70))
    settings = DecodeSettings(isa=isa)
    expected = cpu.decode(schedule_for(model), images, Greedy(16), precision=precision, settings=settings)
    for block in (1, 3, 15, 17, 31, 33, 47, 64, 2**63 - 1):
        found = engine.decode(images.numpy(), chooser_for(Greedy(16), images), threads, 1, None, block=block)
        assert torch.equal(torch.from_numpy(found), expected), block
