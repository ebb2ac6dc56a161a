"""The 256-way heads: normalised, finite, conditioned on the earlier channels of the pixel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from torch import Tensor

from pxfast.pixelcnn.heads import (
    HEADS,
    MIN_LOG_SCALE,
    JointLogisticHead,
    LogisticHead,
    SoftmaxHead,
    log_bin_mass,
    make_head,
    to_unit,
)


def logistic_features(head: LogisticHead, logits, means, log_scales, coefficients=None) -> Tensor:
    """Features (1, F, 1, 1) from logits (K,), and means, log scales, coefficients of shape (C, K)."""
    parts = (means, log_scales) if coefficients is None else (means, log_scales, coefficients)
    per_channel = np.concatenate(parts, axis=1)
    flat = np.concatenate((np.asarray(logits).ravel(), per_channel.ravel()))
    assert flat.size == head.features
    return torch.tensor(flat, dtype=torch.float32).reshape(1, -1, 1, 1)


def arrays(shape: tuple[int, ...], low: float, high: float):
    return st_numpy.arrays(np.float32, shape, elements=st.floats(low, high, width=32))


@st.composite
def logistic_cases(draw):
    """A head, its features from mild to extreme, and one pixel."""
    channels, mixtures = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 2, 10]))
    head = draw(st.sampled_from([LogisticHead, JointLogisticHead]))(channels, mixtures)
    features = logistic_features(
        head,
        draw(arrays((mixtures,), -50, 50)),
        draw(arrays((channels, mixtures), -20, 20)),
        draw(arrays((channels, mixtures), -30, 200)),  # below -7 the head clamps; e^-200 is no fp32 number
        draw(arrays((channels, mixtures), -10, 10)) if channels == 3 else None,
    )
    pixel = draw(st_numpy.arrays(np.uint8, (1, channels, 1, 1)))
    return head, features, torch.from_numpy(pixel)


@settings(max_examples=100, deadline=None)
@given(logistic_cases())
def test_logistic_is_a_distribution_however_extreme(case):
    head, features, pixel = case
    log_probs = head.log_probs(features, pixel)
    assert log_probs.shape == (1, head.channels, 1, 1, 256)
    assert log_probs.isfinite().all()
    # neighbouring bins compute their common edge apart: e^7 times the fp32 rounding of a position of up to 20
    # (1.2e-6) is 2.6e-3 in the edge, a quarter of it in the probability
    total = log_probs.double().exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-3)


@settings(max_examples=100, deadline=None)
@given(logistic_cases())
def test_logistic_gradient_is_finite_however_extreme(case):
    head, features, pixel = case
    features.requires_grad_()
    head.log_prob(features, pixel).sum().backward()
    assert features.grad.isfinite().all()


@settings(max_examples=100, deadline=None)
@given(logistic_cases())
def test_logistic_log_prob_is_the_gathered_one(case):
    head, features, pixel = case
    gathered = head.log_probs(features, pixel).gather(-1, pixel.long().unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(head.log_prob(features, pixel), gathered, rtol=1e-6, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", HEADS)
def test_log_probs_of_some_values_are_those_of_all(name):
    generator = torch.Generator().manual_seed(5)
    head = make_head(name, 3, 4)
    features = torch.randn(2, head.features, 3, 2, generator=generator)
    images, values = (
        torch.randint(0, 256, (2, 3, 3, 2, *more), generator=generator, dtype=torch.uint8) for more in ((), (7,))
    )
    values[..., :2] = torch.tensor([0, 255])
    of_all = head.log_probs(features, images).gather(-1, values.long())
    for kind in (torch.uint8, torch.int64):
        torch.testing.assert_close(head.log_probs(features, images, values.to(kind)), of_all, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mean", [-50.0, -1.5, -1.0, -0.003, 0.0, 0.7, 1.0, 1.5, 50.0])
@pytest.mark.parametrize("log_scale", [-30.0, MIN_LOG_SCALE, -4.0, 0.0, 1.9, 2.1, 8.0, 90.0])
@pytest.mark.parametrize(("kind", "bins"), [(LogisticHead, 128), (JointLogisticHead, 127.5)])
def test_tails_agree_with_exact_arithmetic(mean, log_scale, kind, bins):
    head = kind(1, 1)
    features = logistic_features(head, [0.0], np.array([[mean]]), np.array([[log_scale]]))
    ours = head.log_probs(features, torch.zeros(1, 1, 1, 1, dtype=torch.uint8))[0, 0, 0, 0]
    # the same in extended precision, by the symmetric form of the difference, sigmoid(b) - sigmoid(a) =
    # sinh((b - a) / 2) / (2 cosh(a / 2) cosh(b / 2)), another formula than the head's
    mu, scale = np.longdouble(np.float32(mean)), np.exp(np.longdouble(max(log_scale, MIN_LOG_SCALE)))
    z = np.arange(256, dtype=np.longdouble)
    a, b = ((z - 128) / bins - mu) / scale, ((z - 127) / bins - mu) / scale

    def log_cosh(x):
        return np.abs(x) + np.log1p(np.exp(-2 * np.abs(x))) - np.log(np.longdouble(2))

    def log_sinh(x):
        return x + np.log(-np.expm1(-2 * x)) - np.log(np.longdouble(2))

    exact = log_sinh(1 / (2 * bins * scale)) - log_cosh(a / 2) - log_cosh(b / 2) - np.log(np.longdouble(2))
    exact[0], exact[255] = -np.logaddexp(0, -b[0]), -np.logaddexp(0, a[255])
    assert ours.isfinite().all()
    # values go down to -5e4 (50 / e^-7): fp32 keeps 2e-7 of them, and of the positions times 1 / scale
    tolerance = 1e-4 + 3e-7 * float(1 / scale) * (abs(mean) + 1)
    assert np.abs(ours.double().numpy() - exact.astype(np.float64)).max() < tolerance


def test_green_and_blue_means_are_shifted_by_earlier_channels():
    head = LogisticHead(3, 1)
    means, log_scales = np.zeros((3, 1)), np.full((3, 1), -5.0)
    coefficients = np.arctanh(np.array([[0.5], [0.25], [-0.75]]))  # R to G, R to B, G to B
    features = logistic_features(head, [0.0], means, log_scales, coefficients)
    pixel = torch.tensor([200, 60, 0], dtype=torch.uint8).reshape(1, 3, 1, 1)
    red, green = (200 - 127.5) / 127.5, (60 - 127.5) / 127.5
    _, shifted, _ = head.mixture(features, pixel)
    expected = torch.tensor([0.0, 0.5 * red, 0.25 * red - 0.75 * green])
    torch.testing.assert_close(shifted.flatten(), expected)
    peaks = head.log_probs(features, pixel).argmax(-1).flatten()
    assert ((peaks - (expected * 128 + 127.5)).abs() <= 1).all()


def joint_masses(features: np.ndarray, pixels: np.ndarray, mixtures: int) -> tuple[np.ndarray, np.ndarray]:
    """PixelCNN++'s mixture in float64, sub-pixel by sub-pixel: the weights (K,), and every component's mass.

    features: (F,) of one pixel. pixels: (M, 3). The masses (M, 3, K) are those of the pixels' own values, as the
    differences of the distribution function half a step to both sides, 0 and 255 with the tails.
    """
    K = mixtures
    logits, per_channel = features[:K], features[K:].reshape(3, 3 * K)
    weights = np.exp(logits - logits.max())
    masses = np.empty((len(pixels), 3, K))
    for m, pixel in enumerate(pixels):
        x = (pixel.astype(np.float64) - 127.5) / 127.5
        coefficients = np.tanh(per_channel[:, 2 * K :])
        shifts = (0.0, coefficients[0] * x[0], coefficients[1] * x[0] + coefficients[2] * x[1])
        for c in range(3):
            mean = per_channel[c, :K] + shifts[c]
            scale = np.exp(np.maximum(per_channel[c, K : 2 * K], -7.0))
            below = 0.0 if pixel[c] == 0 else 1 / (1 + np.exp(-(x[c] - 1 / 255 - mean) / scale))
            upto = 1.0 if pixel[c] == 255 else 1 / (1 + np.exp(-(x[c] + 1 / 255 - mean) / scale))
            masses[m, c] = upto - below
    return weights / weights.sum(), masses


def colour_features(head: LogisticHead, generator: np.random.Generator) -> Tensor:
    """Features (1, F, 1, 1) of a pixel whose components overlap, so that all of them matter."""
    K = head.mixtures
    return logistic_features(
        head,
        generator.normal(size=K),
        generator.normal(scale=0.5, size=(3, K)),
        generator.uniform(-3.5, -1.0, size=(3, K)),
        generator.normal(size=(3, K)),
    )


@pytest.mark.parametrize("seed", range(4))
def test_joint_mixture_is_bayes_rule(seed):
    generator = np.random.default_rng(seed)
    head = JointLogisticHead(3, mixtures=4)
    features = colour_features(head, generator)
    pixels = generator.integers(0, 256, size=(40, 3), dtype=np.uint8)
    pixels[:6] = [[0, 0, 0], [255, 255, 255], [0, 255, 0], [1, 254, 128], [255, 0, 7], [127, 128, 127]]
    weights, masses = joint_masses(features.double().flatten().numpy(), pixels, head.mixtures)
    red, green, blue = masses.transpose(1, 0, 2)
    expected = np.log(
        [
            (weights * red).sum(1),
            (weights * red * green).sum(1) / (weights * red).sum(1),
            (weights * red * green * blue).sum(1) / (weights * red * green).sum(1),
        ]
    )
    images = torch.from_numpy(pixels).T.reshape(1, 3, 1, -1)
    ours = head.log_prob(features.expand(1, -1, 1, len(pixels)), images)
    torch.testing.assert_close(ours[0, :, 0].double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


def test_joint_mixture_summed_over_blue_is_that_of_red_and_green():
    generator = np.random.default_rng(1)
    head = JointLogisticHead(3, mixtures=3)
    features = colour_features(head, generator)
    red, green = 90, 140
    blue = torch.arange(256, dtype=torch.uint8)
    images = torch.stack((torch.full_like(blue, red), torch.full_like(blue, green), blue)).reshape(1, 3, 1, -1)
    whole = head.log_prob(features.expand(1, -1, 1, 256), images).double().sum(dim=1).flatten()
    weights, masses = joint_masses(
        features.double().flatten().numpy(), np.array([[red, green, 0]], dtype=np.uint8), head.mixtures
    )
    expected = (weights * masses[0, 0] * masses[0, 1]).sum()
    assert float(whole.exp().sum()) == pytest.approx(expected, rel=1e-4)


def test_joint_mixture_of_one_component_is_the_marginal_one_but_for_the_bins(monkeypatch):
    generator = np.random.default_rng(2)
    joint, marginal = JointLogisticHead(3, mixtures=1), LogisticHead(3, mixtures=1)
    features = colour_features(joint, generator)
    pixel = torch.tensor([30, 200, 77], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert not torch.allclose(joint.log_probs(features, pixel), marginal.log_probs(features, pixel))
    monkeypatch.setattr(marginal, "bins_per_unit", joint.bins_per_unit)
    torch.testing.assert_close(joint.log_probs(features, pixel), marginal.log_probs(features, pixel))


def test_joint_mixture_tells_the_component_from_red():
    head = JointLogisticHead(3, mixtures=2)
    # red is dark in the first component, bright in the second; then so are green and blue
    means = np.array([[-0.5, 0.5]] * 3)
    features = logistic_features(head, [0.0, 0.0], means, np.full((3, 2), -4.0), np.zeros((3, 2)))
    for value, component in ((64, 0), (191, 1)):
        pixel = torch.tensor([value, 0, 0], dtype=torch.uint8).reshape(1, 3, 1, 1)
        probabilities = head.log_probs(features, pixel)[0, :, 0, 0].exp()
        side = (to_unit(torch.arange(256)) > 0).float()
        assert float(probabilities[0] @ side) == pytest.approx(0.5, abs=1e-3)
        assert float(probabilities[1] @ side) == pytest.approx(component, abs=1e-3)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([1, 3]), st.integers(0, 2**31), st.floats(0.1, 200.0))
def test_softmax_is_a_distribution(channels, seed, spread):
    generator = torch.Generator().manual_seed(seed)
    head = SoftmaxHead(channels)
    with torch.no_grad():
        head.tables.normal_(std=spread, generator=generator)
    features = spread * torch.randn(2, head.features, 2, 3, generator=generator)
    images = torch.randint(0, 256, (2, channels, 2, 3), generator=generator, dtype=torch.uint8)
    log_probs = head.log_probs(features, images)
    assert log_probs.shape == (2, channels, 2, 3, 256)
    assert log_probs.isfinite().all()
    total = log_probs.double().exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-4)
    gathered = log_probs.gather(-1, images.long().unsqueeze(-1)).squeeze(-1)
    assert torch.equal(head.log_prob(features, images), gathered)


@torch.no_grad()
def test_softmax_conditions_green_on_red_and_blue_on_both():
    generator = torch.Generator().manual_seed(0)
    head = SoftmaxHead(3)
    head.tables.normal_(generator=generator)
    features = torch.randn(1, head.features, 1, 1, generator=generator)
    red, green, blue = 17, 130, 255
    pixel = torch.tensor([red, green, blue], dtype=torch.uint8).reshape(1, 3, 1, 1)
    logits = features.reshape(3, 256).clone()
    red_to_green, red_to_blue, green_to_blue = head.tables
    logits[1] += red_to_green[red]
    logits[2] += red_to_blue[red] + green_to_blue[green]
    ours = head.log_probs(features, pixel)[0, :, 0, 0]
    torch.testing.assert_close(ours, torch.log_softmax(logits, dim=-1))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_a_channel_never_sees_itself_or_a_later_one(name, channels):
    generator = torch.Generator().manual_seed(3)
    head = make_head(name, channels, 5)
    for parameter in head.parameters():
        parameter.normal_(generator=generator)
    features = torch.randn(1, head.features, 1, 1, generator=generator)
    pixel = torch.full((1, channels, 1, 1), 90, dtype=torch.uint8)
    before = head.log_probs(features, pixel)
    for k in range(channels):
        changed = pixel.clone()
        changed[:, k] = 200
        after = head.log_probs(features, changed)
        assert torch.equal(before[:, : k + 1], after[:, : k + 1])
        for later in range(k + 1, channels):
            assert not torch.equal(before[:, later], after[:, later])


def test_half_precision_features_are_evaluated_in_fp32():
    head = LogisticHead(1, 10)
    features = torch.randn(1, head.features, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    pixel = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    log_probs = head.log_probs(features, pixel)
    assert log_probs.dtype == torch.float32
    assert torch.equal(log_probs, head.log_probs(features.float(), pixel))


def test_an_unknown_head_is_named():
    with pytest.raises(ValueError, match=r"one of logistic, softmax, pixelcnn\+\+, got 'cauchy'"):
        make_head("cauchy", 1, 10)


@settings(max_examples=20, deadline=None)
@given(logistic_cases())
def test_real_values_meet_the_grid_and_do_not_jump(case):
    head, features, pixel = case
    _, means, log_scales = (t.double().unsqueeze(-1) for t in head.mixture(features, pixel))
    values = torch.arange(0, 255 * 4 + 1) / 4
    mass = log_bin_mass(values, means, log_scales, head.bins_per_unit)
    assert torch.equal(mass[..., ::4], log_bin_mass(torch.arange(256), means, log_scales, head.bins_per_unit))
    # a bin's log-mass is as steep as log sigmoid, 1 / scale; where a tail comes in, also as the two differ, and they
    # differ at most as much as at the ends of that interval, give or take their own slopes
    slope = torch.exp(-log_scales) / head.bins_per_unit
    tails = torch.maximum((mass[..., 4] - mass[..., 0]).abs(), (mass[..., -5] - mass[..., -1]).abs()).unsqueeze(-1)
    assert (mass.diff(dim=-1).abs() <= (tails + 3 * slope) / 4 + 1e-9).all()
