"""The network: what each sub-pixel may depend on, its shifts, its size and cost, its initialisation."""

import pytest
import torch
from support.helpers import real_images
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import pxfast
import pxfast.pixelcnn.heads
import pxfast.pixelcnn.network
from pxfast.pixelcnn.heads import HEADS
from pxfast.pixelcnn.network import PixelCNN, PixelCNNConfig, forward_flops
from pxfast.pixelcnn.oracle import oracle

SIZE = (12, 8)  # not square, so that exchanged axes are seen
FEW = [(1, "logistic"), (3, "softmax"), (3, "pixelcnn++")]
covering = pytest.mark.parametrize(  # the inner loop has every head once
    ("channels", "head"),
    [
        pytest.param(channels, head, marks=[pytest.mark.whole] * ((channels, head) not in FEW))
        for channels in (1, 3)
        for head in HEADS
    ],
)


def random_images(count: int, channels: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8, generator=generator)


def parameters_of(model: PixelCNN, images: Tensor) -> Tensor:
    """Everything that makes the distribution of each sub-pixel: (N, H W C, parameters), in raster order."""
    features = model(images)
    if model.config.head == "softmax":  # the logits; conditioning on earlier channels is a look-up, not a derivative
        per_channel = features.unflatten(1, (model.config.channels, 256))
    else:
        log_weights, means, log_scales = model.head.mixture(features, images)
        per_channel = torch.cat((log_weights.expand_as(means), means, log_scales), dim=2)
    return per_channel.permute(0, 3, 4, 1, 2).flatten(1, 3)


def dependence(model: PixelCNN, image: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """|d parameters of sub-pixel a / d sub-pixel b|, along a random direction: (H W C, H W C), raster order.

    The image (1, C, H, W) is evaluated once for each sub-pixel a, all of them in one batch.
    """
    images = image.expand(image.numel(), -1, -1, -1)
    unit = pxfast.pixelcnn.heads.to_unit(images).double().requires_grad_()
    for module in (
        pxfast.pixelcnn.heads,
        pxfast.pixelcnn.network,
    ):  # the way by which an image enters the network and the head
        monkeypatch.setattr(module, "to_unit", lambda images, dtype=None: unit)
    each = torch.arange(len(images))
    own = parameters_of(model, images)[each, each]
    direction = torch.randn(own.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((own * direction).sum(), unit)
    return gradient.permute(0, 2, 3, 1).flatten(1).abs()


@covering
def test_jacobian_is_causal_and_complete(make_model, monkeypatch, channels, head):
    # along a row the full-size layers alone reach 4 * resnets + 2 pixels: one at the input, one by each of their two
    # convolutions, less the first on the way up, after which the skip enters. 10 are more than the width, so that every
    # earlier pixel of the image is within reach
    model = make_model(SIZE, channels, filters=6, resnets=2, head=head).double()
    jacobian = dependence(model, random_images(1, channels, SIZE), monkeypatch)
    earlier = torch.ones_like(jacobian, dtype=torch.bool).tril(-1)
    if head == "softmax" and channels == 3:  # the logits of a pixel's channels depend on earlier pixels alone
        pixel = torch.arange(len(jacobian)) // channels
        earlier = pixel[:, None] > pixel[None, :]
    assert jacobian.isfinite().all()
    assert (jacobian[~earlier] == 0).all(), "a sub-pixel sees itself or a later one"
    unseen = (earlier & (jacobian == 0)).nonzero()
    assert len(unseen) == 0, f"sub-pixels that don't see earlier ones, such as {unseen[:5].tolist()}"


@covering
@torch.no_grad()
def test_later_values_do_not_touch_earlier_log_probabilities(make_model, channels, head):
    model = make_model(SIZE, channels, filters=8, resnets=2, head=head)
    if head == "softmax":
        model.head.tables.normal_(generator=torch.Generator().manual_seed(2))
    images = random_images(2, channels, SIZE)
    before = model.log_probs(images).permute(0, 2, 3, 1, 4).flatten(1, 3)  # (N, H W C, 256), raster and channel order
    H, W = SIZE
    for i, j, k in [(0, 0, 0), (0, 1, channels - 1), (3, 0, 0), (3, W - 1, channels - 1), (H - 1, W - 1, 0)]:
        changed = images.clone()
        changed[:, k, i, j] = 255 - changed[:, k, i, j]
        after = model.log_probs(changed).permute(0, 2, 3, 1, 4).flatten(1, 3)
        index = (i * W + j) * channels + k
        assert torch.equal(before[:, : index + 1], after[:, : index + 1])
        if index + 1 < before.shape[1]:
            assert not torch.equal(before[:, index + 1], after[:, index + 1]), "the next sub-pixel must see this one"


@torch.no_grad()
def test_first_row_and_column_see_zeros_not_a_bias(make_model):
    model = make_model((8, 8), 1, filters=8, resnets=1)
    for convolution in (model.input_vertical, model.input_above, model.input_left):
        convolution.b.fill_(3.0)
    seen = {}
    pair = model.down[0][0]
    pair.vertical.register_forward_pre_hook(lambda module, inputs: seen.update(vertical=inputs[0]))
    pair.horizontal.register_forward_pre_hook(lambda module, inputs: seen.update(horizontal=inputs[0]))
    images = random_images(2, 1, (8, 8))
    try:
        model(images)
    finally:
        pair.vertical._forward_pre_hooks.clear()
        pair.horizontal._forward_pre_hooks.clear()
    x = torch.nn.functional.pad(pxfast.pixelcnn.heads.to_unit(images), (0, 0, 0, 0, 0, 1), value=1.0)
    above, left = model.input_above(x), model.input_left(x)
    vertical, horizontal = seen["vertical"], seen["horizontal"]
    assert (vertical[:, :, 0] == 0).all()
    torch.testing.assert_close(vertical[:, :, 1:], model.input_vertical(x)[:, :, :-1])
    assert (horizontal[:, :, 0, 0] == 0).all()
    torch.testing.assert_close(horizontal[:, :, 0, 1:], left[:, :, 0, :-1])
    torch.testing.assert_close(horizontal[:, :, 1:, 0], above[:, :, :-1, 0])
    torch.testing.assert_close(horizontal[:, :, 1:, 1:], above[:, :, :-1, 1:] + left[:, :, 1:, :-1])


PAPER_CIFAR10 = PixelCNNConfig((32, 32), channels=3, filters=160, resnets=5)
PAPER_FASHION_MNIST = PixelCNNConfig((28, 28), channels=1, filters=40, resnets=5)


@pytest.mark.parametrize(
    ("config", "million_weights", "gigaflops"), [(PAPER_CIFAR10, 53.58, 48.74), (PAPER_FASHION_MNIST, 3.35, 2.33)]
)
def test_size_and_cost_of_the_papers_networks(config, million_weights, gigaflops):
    with torch.device("meta"):
        model = PixelCNN(config)
    weights = sum(convolution.v.numel() for _, convolution in model.convolutions())
    assert round(weights / 1e6, 2) == million_weights
    assert round(forward_flops(config) / 1e9, 2) == gigaflops


@pytest.mark.parametrize(
    "config",
    [
        PAPER_FASHION_MNIST,
        PixelCNNConfig((8, 12), channels=3, filters=10, resnets=2),
        PixelCNNConfig((12, 8), channels=1, filters=7, resnets=1, mixtures=3),
        PixelCNNConfig((16, 16), channels=3, filters=8, resnets=1, head="softmax"),
    ],
)
@torch.no_grad()
def test_cost_agrees_with_torchs_own_counter(config):
    # torch counts a convolution where it writes and a transposed one where it reads, as forward_flops does: border
    # positions that only see padding count, and so does what a transposed one writes and the crop then drops
    images = random_images(2, config.channels, config.image_size)
    with FlopCounterMode(display=False) as counter:
        PixelCNN(config).eval()(images)
    assert counter.get_total_flops() == 2 * forward_flops(config)


@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_initialisation_gives_mean_0_and_the_asked_deviation(channels):
    torch.manual_seed(0)
    model = PixelCNN(PixelCNNConfig((16, 16), channels, filters=12, resnets=1)).eval()
    images = real_images(channels, (16, 16), 32)
    model.initialise(images)
    outputs = {}
    for name, convolution in model.convolutions():
        convolution.register_forward_hook(lambda module, inputs, output, name=name: outputs.update({name: output}))
    model(images)
    scales = {name: convolution.init_scale for name, convolution in model.convolutions()}
    assert outputs.keys() == scales.keys()
    assert set(scales.values()) == {1.0, 0.1}
    for name, output in outputs.items():
        deviation, mean = torch.std_mean(output, dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4, msg=f"mean of {name}")
        expected = torch.full_like(deviation, scales[name])
        torch.testing.assert_close(deviation, expected, rtol=1e-3, atol=0, msg=f"deviation of {name}")


@torch.no_grad()
def test_initialisation_magnifies_no_rounding_of_features_that_are_constant():
    torch.manual_seed(0)
    model = PixelCNN(PixelCNNConfig((4, 4), 1, filters=8, resnets=2)).eval()  # whose coarsest level is one pixel
    images = random_images(64, 1, (4, 4))
    model.initialise(images)
    assert max(float(convolution.g.max()) for _, convolution in model.convolutions()) < 1e3
    together, alone = model.log_prob(images), torch.cat([model.log_prob(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_weight_norm_is_g_times_the_direction_of_v(tiny_model):
    for name, convolution in tiny_model.convolutions():
        weight = convolution.weight()
        outputs = weight.transpose(0, 1) if convolution.transposed else weight
        torch.testing.assert_close(outputs.flatten(1).norm(dim=1), convolution.g.abs(), msg=name)
        cosine = torch.nn.functional.cosine_similarity(weight.flatten(), convolution.v.flatten(), dim=0)
        assert cosine > 0, name


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (28, 28), (32, 16)])
@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_shapes(size, head):
    config = PixelCNNConfig(size, channels=3, filters=4, resnets=1, mixtures=2, head=head)
    model = PixelCNN(config).eval()
    images = random_images(2, 3, size)
    assert model(images).shape == (2, 768 if head == "softmax" else 20, *size)
    assert model.log_prob(images).shape == (2, 3, *size)
    assert model.log_probs(images).shape == (2, 3, *size, 256)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"image_size": (30, 32)}, ValueError),
        ({"image_size": (0, 32)}, ValueError),
        ({"image_size": (32,)}, ValueError),
        ({"image_size": (32.0, 32)}, TypeError),
        ({"channels": 2}, ValueError),
        ({"filters": 0}, ValueError),
        ({"filters": 1.5}, TypeError),
        ({"resnets": 0}, ValueError),
        ({"mixtures": -1}, ValueError),
        ({"head": "gaussian"}, ValueError),
        ({"dropout": 1.0}, ValueError),
        ({"dropout": float("nan")}, ValueError),
    ],
)
def test_a_wrong_field_is_named(changes, error):
    good = {"image_size": (32, 32), "channels": 3, "filters": 8, "resnets": 1}
    with pytest.raises(error, match=next(iter(changes))):
        PixelCNNConfig(**{**good, **changes})


def test_filters_of_zeros_come_back_as_zeros(make_model, tmp_path):
    model = make_model()
    with torch.no_grad():
        for _, convolution in model.convolutions():
            convolution.g[::2] = 0.0
    pxfast.save(model, tmp_path / "model.safetensors", dtype=torch.float32)
    again = pxfast.load(tmp_path / "model.safetensors")
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(again.log_prob(images), model.log_prob(images))
        assert oracle(again, "bf16").log_prob(images).isfinite().all()
