"""The fused mixture log-likelihood against its twin and the heads. Where it runs: tests/support/triton_device.py."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.helpers import plain_mixture_log_prob
from support.triton_device import DEVICE, INTERPRETED, few_examples, on_device
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pxfast.pixelcnn.heads import make_head

pytestmark = on_device

HEADS = {"logistic": (128.0, False), "pixelcnn++": (127.5, True)}


def random_case(
    seed: int,
    N: int,
    C: int,
    H: int,
    W: int,
    K: int,
    dtype: torch.dtype,
    channels_last: bool = False,
    wide: bool = True,
) -> tuple[Tensor, Tensor]:
    """Features with sharp, wide and clamped components, and images with many 0 and 255, which take the tails."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(N, (10 if C == 3 else 3) * K, H, W, generator=generator, dtype=torch.float64)
    features[:, 2 * K : 3 * K] *= 4.0  # log scales from -8 to 8
    if not wide:  # where the heads leave a term of the width squared over 24 out
        features[:, K:].view(N, C, -1, H, W)[:, :, K : 2 * K].clamp_(max=1.9)
    images = torch.randint(-40, 296, (N, C, H, W), generator=generator).clamp(0, 255).byte()
    features = features.to(dtype)
    if channels_last:
        features = features.to(memory_format=torch.channels_last)
    return features.to(DEVICE), images.to(DEVICE)


shapes = {
    "seed": st.integers(0, 1000),
    "N": st.integers(1, 3),
    "C": st.sampled_from([1, 3]),
    "H": st.integers(1, 5),
    "W": st.integers(1, 7),
    "K": st.integers(1, 10),
    "channels_last": st.booleans(),
}


@pytest.mark.parametrize("name", list(HEADS))
@few_examples(5)
@given(**shapes)
def test_forward_is_the_heads(name, seed, N, C, H, W, K, channels_last):
    from pxfast.kernels.mixture import mixture_log_prob

    features, images = random_case(seed, N, C, H, W, K, torch.float32, channels_last)
    found = mixture_log_prob(features, images, *HEADS[name])
    twin = plain_mixture_log_prob(features, images, *HEADS[name])
    for expected in (twin.cpu(), make_head(name, C, K).log_prob(features.cpu(), images.cpu())):
        allowed = 2e-5 + 1e-5 * expected.abs()
        if name == "pixelcnn++":  # later channels are differences of sums, which may be thousands, and their rounding
            allowed += 1e-6 * expected.cumsum(dim=1).abs()
        assert ((found.cpu() - expected).abs() <= allowed).all()


def test_nothing_between_features_and_likelihood_is_in_memory():
    from pxfast.kernels.mixture import mixture_log_prob

    features, images = random_case(6, 2, 3, 3, 5, 7, torch.float32, channels_last=True)
    features.requires_grad_()
    shapes = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            result = function(*arguments, **(kwargs or {}))
            shapes.update(tuple(each.shape) for each in tree_leaves(result) if isinstance(each, Tensor))
            return result

    with Watch():
        mixture_log_prob(features, images, *HEADS["logistic"]).backward(torch.ones(images.shape, device=DEVICE))
    whole = {tuple(features.shape), tuple(images.shape)}
    assert whole <= shapes
    flat = {(features.numel(),)} if INTERPRETED else set()  # the interpreter's copy of what a kernel is given
    more = {shape for shape in shapes - whole - flat if math.prod(shape) > images.numel()}
    assert not more, "of (N, C, K, H, W), or any other that is larger than the images"


@pytest.mark.parametrize("name", list(HEADS))
@few_examples(5)
@given(**shapes)
def test_gradients_are_those_of_autograd_in_double_precision(name, seed, N, C, H, W, K, channels_last):
    from pxfast.kernels.mixture import mixture_log_prob

    features, images = random_case(seed, N, C, H, W, K, torch.float64, channels_last, wide=False)
    upstream = torch.randn(N, C, H, W, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE)
    values, gradients = [], []
    for function in (mixture_log_prob, plain_mixture_log_prob):
        leaf = features.clone(memory_format=torch.preserve_format).requires_grad_()
        values.append(function(leaf, images, *HEADS[name]))
        values[-1].backward(upstream)
        gradients.append(leaf.grad)
    torch.testing.assert_close(values[0].detach(), values[1].detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-9)


def test_reduced_precision_is_computed_in_fp32_and_its_gradient_comes_back_in_it():
    from pxfast.kernels.mixture import mixture_log_prob

    features, images = random_case(1, 2, 3, 3, 5, 10, torch.float32)
    features = features.bfloat16().requires_grad_()
    found = mixture_log_prob(features, images, *HEADS["logistic"])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain_mixture_log_prob(features.float(), images, *HEADS["logistic"]))
    found.sum().backward()
    assert features.grad is not None
    assert features.grad.dtype == torch.bfloat16
    wide = features.detach().float().requires_grad_()
    plain_mixture_log_prob(wide, images, *HEADS["logistic"]).sum().backward()
    torch.testing.assert_close(features.grad.float(), wide.grad, rtol=1e-2, atol=1e-2)


def test_odd_layouts_and_an_empty_batch():
    from pxfast.kernels.mixture import mixture_log_prob

    features, images = random_case(2, 2, 1, 4, 6, 3, torch.float32)
    turned = features.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()  # columns lie side by side
    found = mixture_log_prob(turned, images, *HEADS["logistic"])
    torch.testing.assert_close(found, plain_mixture_log_prob(features, images, *HEADS["logistic"]))
    found.sum().backward()
    assert turned.grad is not None
    leaf = features.clone().requires_grad_()
    plain_mixture_log_prob(leaf, images, *HEADS["logistic"]).sum().backward()
    torch.testing.assert_close(turned.grad, leaf.grad)
    wider = torch.cat([features, features], dim=1)
    for apart in (wider[:, : features.shape[1]], features[:1].expand(2, -1, -1, -1), torch.cat([features] * 2)[::2]):
        given, expected = apart.detach().requires_grad_(), apart.detach().clone().requires_grad_()
        mixture_log_prob(given, images, *HEADS["logistic"]).sum().backward()
        plain_mixture_log_prob(expected, images, *HEADS["logistic"]).sum().backward()
        torch.testing.assert_close(given.grad, expected.grad)
    assert mixture_log_prob(features[:0], images[:0], *HEADS["logistic"]).shape == (0, 1, 4, 6)


def test_extreme_parameters_stay_finite():
    from pxfast.kernels.mixture import mixture_log_prob

    features, images = random_case(3, 1, 3, 4, 4, 2, torch.float32)
    for size in (30.0, 1e4):
        leaf = (features * size).requires_grad_()
        found = mixture_log_prob(leaf, images, *HEADS["logistic"])
        assert found.isfinite().all()
        found.sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", list(HEADS))
def test_the_heads_use_it_for_images_on_a_gpu(name, monkeypatch):
    import pxfast.pixelcnn.heads
    from pxfast.kernels import mixture

    head = make_head(name, 3, 4)
    features, images = random_case(5, 2, 3, 4, 4, 4, torch.float32)
    calls = []
    monkeypatch.setattr(pxfast.pixelcnn.heads, "FUSED_DEVICES", (DEVICE,))
    monkeypatch.setattr(mixture, "mixture_log_prob", lambda *a: calls.append(a) or plain_mixture_log_prob(*a))
    found = head.log_prob(features, images)
    assert len(calls) == 1
    head.log_prob(features, images.float())  # real values, which attacks differentiate by, go the plain way
    monkeypatch.setattr(pxfast.pixelcnn.heads, "FUSED_DEVICES", ())
    torch.testing.assert_close(found, head.log_prob(features, images), rtol=1e-5, atol=2e-5)
    assert len(calls) == 1


def test_it_is_a_proper_operator_and_torch_compile_passes_through():
    from pxfast.kernels.mixture import mixture_log_prob

    features, images = random_case(4, 1, 3, 2, 3, 2, torch.float64)
    leaf = features.requires_grad_()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(mixture_log_prob, (leaf, images, *HEADS["pixelcnn++"]), test_utils=checks)

    def loss(features: Tensor) -> Tensor:
        return -mixture_log_prob(2.0 * features, images, *HEADS["logistic"]).mean()

    expected = torch.autograd.grad(loss(leaf), leaf)[0]
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(leaf), leaf)[0], expected)


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU it would take that memory")
def test_features_of_more_than_2_to_the_31_values_are_found():
    """As of one image of 4096 x 4096 pixels: they lie so far apart, and the system gives only the pages in use."""
    from pxfast.kernels.mixture import mixture

    features, images = random_case(3, 1, 1, 1, 8, 2, torch.float16)
    apart = torch.empty_strided(features.shape, (6 << 29, 1 << 29, 8, 1), dtype=torch.float16)
    slopes, found_slopes = (
        torch.empty_like(features),
        torch.empty_strided(apart.shape, apart.stride(), dtype=apart.dtype),
    )
    apart.copy_(features)
    expected, found = torch.empty(images.shape), torch.empty(images.shape)
    upstream = torch.linspace(-1, 1, 8).view(images.shape)
    for each, output, gradient in ((features, expected, slopes), (apart, found, found_slopes)):
        mixture(each, images, output, None, 128.0, False).run()
        mixture(each, images, upstream, gradient, 128.0, False).run()
    assert torch.equal(found, expected)
    assert torch.equal(found_slopes, slopes)
