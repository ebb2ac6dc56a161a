"""ADP: the step size, when an image stops, its noise, gradients, batch-invariance, and how it is called."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.helpers import bundled_images, real_images
from torch import Tensor

from pxfast.adp.files import SHIPPED, save_score_network
from pxfast.adp.purifier import ADPPurifier, descend, step_sizes
from pxfast.adp.score_network import ScoreNetwork, ScoreNetworkConfig
from pxfast.classifiers import load_classifier
from pxfast.defences import Defended
from pxfast.defences.protocol import DifferentiablePurifier, ScoredPurifier, StochasticPurifier
from pxfast.tensors.seeds import derived_seeds, image_seeds, standard_normal


@pytest.fixture(scope="module")
def network() -> ScoreNetwork:
    """A small random network over 8x8 images. Don't change it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return ScoreNetwork(ScoreNetworkConfig((8, 8), 1, ngf=4)).eval().requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return real_images(1, (8, 8), 5).float() / 255


def test_step_sizes_by_hand() -> None:
    """s(x') = (1 - q) s(x) has z = 1 - q, so a is 5e-5 / q, clamped; growing scores (q < 0) get the largest one."""
    generator = torch.Generator().manual_seed(0)
    score = torch.randn(7, 3, 4, 4, generator=generator, dtype=torch.float64)
    q = torch.tensor([0.01, 0.05, 5e-4, 1e-4, 1.0, 10.0, -0.01], dtype=torch.float64)
    across = torch.randn(7, 3, 4, 4, generator=generator, dtype=torch.float64)
    across -= score * ((across * score).sum((1, 2, 3)) / score.square().sum((1, 2, 3)))[:, None, None, None]
    ahead = (1 - q)[:, None, None, None] * score + across  # what is at right angles to the score does not count
    expected = torch.tensor([5e-3, 1e-3, 0.1, 0.1, 5e-5, 1e-5, 0.1], dtype=torch.float64)
    torch.testing.assert_close(step_sizes(score, ahead), expected, rtol=1e-6, atol=0)


def test_descent_along_gaussian_scores_by_hand() -> None:
    """Under N(m, v) the score is (m - x) / v, z = 1 - 1e-3 / v and a = 0.05 v: each step keeps 95 % of x - m."""
    v = torch.tensor([1.0, 0.1, 0.021, 0.019, 1e-6], dtype=torch.float64)[:, None, None, None]
    start = torch.full((5, 1, 2, 2), 0.7, dtype=torch.float64)
    found = descend(start, lambda x: (0.5 - x) / v)
    kept = ((found - 0.5) / 0.2).mean((1, 2, 3))
    ten = 0.95**10
    # a = 0.05 v is above 1e-3 for v > 0.02; below it no step is made, not even the first
    torch.testing.assert_close(kept, torch.tensor([ten, ten, ten, 1.0, 1.0], dtype=torch.float64))
    three = descend(start[:1], lambda x: (0.5 - x) / v[:1], steps=3)
    torch.testing.assert_close((three - 0.5) / 0.2, torch.full_like(three, 0.95**3))


def test_the_longest_step_is_a_tenth_and_stays_in_range() -> None:
    """v = 10 asks for a = 0.5 and gets 0.1, so a step keeps 99 %; a score that leads out of [0, 1] ends at 1."""
    start = torch.full((1, 1, 2, 2), 0.7, dtype=torch.float64)
    once = descend(start, lambda x: (0.5 - x) / 10.0, steps=1)
    torch.testing.assert_close(once, 0.5 + 0.99 * (start - 0.5))
    assert torch.equal(descend(start, lambda x: torch.full_like(x, 5.0)), torch.ones_like(start))


def test_an_image_that_has_stopped_stays() -> None:
    """A score that asks for small steps below 0.3 only: descent ends there for good, whatever is asked later."""
    asked: list[float] = []

    def score(x: Tensor) -> Tensor:
        asked.append(float(x[0, 0, 0, 0]))
        v = 1e-3 if len(asked) in (3, 4) else 2.0  # the second step's two evaluations
        return (0.0 - x) / v

    start = torch.full((1, 1, 2, 2), 0.8)
    stopped = descend(start, score, steps=5)
    torch.testing.assert_close(stopped, 0.95 * start)
    assert len(asked) == 4, "nothing is evaluated when all images have stopped"
    still = descend(torch.zeros(1, 1, 2, 2), torch.zeros_like)
    assert torch.equal(still, torch.zeros(1, 1, 2, 2)), "a score of 0 gives no step and no NaN"


def test_the_gradient_is_a_number_where_the_score_is_nothing_or_stays_as_it_is() -> None:
    """In fp32 <s(x'), s(x)> now and then is <s(x), s(x)> to the last digit."""
    start = torch.tensor([0.3, 0.5, 0.7])[:, None, None, None].expand(3, 1, 2, 2).clone().requires_grad_()
    slopes = torch.tensor([0.0, 0.0, -0.5])[:, None, None, None]
    offsets = torch.tensor([0.0, 1.0, 0.0])[:, None, None, None]
    found = descend(start, lambda x: slopes * x + offsets, steps=2)
    (gradient,) = torch.autograd.grad(found.sum(), start)
    torch.testing.assert_close(found.detach()[:2, 0, 0, 0], torch.tensor([0.3, 0.7]))
    expected = torch.tensor([1.0, 1.0, 0.95**2])[:, None, None, None].expand_as(gradient)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=0)


def test_noise_is_injected_and_clamped(network: ScoreNetwork, x: Tensor) -> None:
    purifier = ADPPurifier(0.3, steps=0, model=network)
    seeds = [1, 2, 3, 4, 2**63 - 1]
    noisy = purifier.draw(x, seeds)
    expected = (x + 0.3 * standard_normal(seeds, x)).clamp(0, 1)
    assert torch.equal(noisy, expected)
    assert ((noisy == 0) | (noisy == 1)).any()
    assert torch.equal(ADPPurifier(0.0, steps=0, model=network).draw(x, seeds), x)


def test_draws_depend_on_the_image_and_its_seed_alone(network: ScoreNetwork) -> None:
    x = real_images(1, (8, 8), 11).float() / 255  # more than one of the batches inside
    purifier = ADPPurifier(0.1, steps=2, model=network)
    seeds = image_seeds(x, 7)
    together = purifier.draw(x, seeds)
    assert not torch.equal(together, ADPPurifier(0.1, steps=0, model=network).draw(x, seeds)), "steps were made"
    for n in (0, 4, 10):
        assert torch.equal(purifier.draw(x[n : n + 1], seeds[n : n + 1])[0], together[n])
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    assert torch.equal(purifier.draw(x[order], [seeds[n] for n in order]), together[order])
    other = purifier.draw(x, image_seeds(x, 8))
    assert (other != together).flatten(1).any(1).all()
    assert torch.equal(ADPPurifier(0.1, steps=2, model=network, seed=7)(x), together)
    assert torch.equal(ADPPurifier(0.1, steps=2, model=network, seed=7)(x[3]), together[3]), "an image without a batch"
    assert purifier.draw(x[:0], []).shape == (0, 1, 8, 8)


@pytest.mark.parametrize("channels", [1, pytest.param(3, marks=pytest.mark.whole)])
def test_a_small_batch_is_not_filled_up_to_eight_and_keeps_its_bits(channels: int) -> None:
    purifier = ADPPurifier(0.1, steps=2)
    images = bundled_images(channels)[:8].float() / 255
    network = SHIPPED.for_images(None, images.shape[1:])
    whole, scores = purifier(images), purifier.log_prob_gradient(images)
    purifier(images[:1])  # the first one tries
    asked: list[int] = []
    with_count = network.register_forward_pre_hook(lambda module, given: asked.append(len(given[0])))
    try:
        for count in (1, 3):
            assert torch.equal(purifier(images[:count]), whole[:count])
            assert torch.equal(purifier.log_prob_gradient(images[:count]), scores[:count])
        asked.clear()
        purifier(images[:1])
    finally:
        with_count.remove()
    assert max(asked) < 8, "no smaller batch gives the same bits on this machine"


def test_full_gradient_is_that_of_finite_differences(network: ScoreNetwork, x: Tensor) -> None:
    x = (0.25 + 0.5 * x[:2]).double()
    purifier = ADPPurifier(0.05, steps=3, model=network, backward="full")
    seeds = [5, 6]
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(x.shape, generator=generator, dtype=torch.float64)

    def objective(x: Tensor) -> Tensor:
        return (purifier.draw(x, seeds) * weights).sum()

    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(y), y)
    noise = objective(x) - (ADPPurifier(0.05, steps=0, model=network).draw(x, seeds) * weights).sum()
    assert noise.abs() > 1e-3, "steps were made"
    assert not torch.allclose(gradient, weights), "more than the noise's gradient"
    for _ in range(3):
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        h = 1e-8  # short enough not to cross one of the many kinks of max pooling
        slope = (objective(x + h * direction) - objective(x - h * direction)) / (2 * h)
        assert float(slope) == pytest.approx(float((gradient * direction).sum()), rel=1e-4)


def test_backward(network: ScoreNetwork, x: Tensor) -> None:
    seeds = list(range(len(x)))
    results = []
    for backward in ("straight-through", "full", "error"):
        y = x.clone().requires_grad_()
        purified = ADPPurifier(0.1, steps=2, model=network, backward=backward).draw(y, seeds)
        results.append(purified.detach())
        if backward == "error":
            with pytest.raises(RuntimeError, match="has none"):
                purified.sum().backward()
            continue
        purified.sum().backward()
        assert torch.equal(y.grad, torch.ones_like(x)) == (backward == "straight-through")
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    y = x.clone().requires_grad_()
    differentiated = ADPPurifier(0.1, steps=2, model=network).differentiate(y, seeds)
    assert torch.equal(differentiated.detach(), results[0])
    assert not torch.equal(torch.autograd.grad(differentiated.sum(), y)[0], torch.ones_like(x))


def test_it_is_what_defences_and_attacks_know(network: ScoreNetwork, x: Tensor) -> None:
    purifier = ADPPurifier(0.1, steps=2, model=network, runs=3)
    for protocol in (StochasticPurifier, ScoredPurifier, DifferentiablePurifier):
        assert isinstance(purifier, protocol)
    torch.testing.assert_close(purifier.log_prob_gradient(x), network(x))
    assert torch.equal(purifier.log_prob_gradient(x[2:3])[0], purifier.log_prob_gradient(x)[2])
    assert not purifier.log_prob_gradient(x.clone().requires_grad_()).requires_grad
    assert not list(purifier.parameters())
    assert "sigma=0.1" in repr(purifier)
    # the mean of the logits over the runs
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    defended = Defended(classifier, [purifier])
    runs = [derived_seeds(derived_seeds(image_seeds(x, 0), run), 0) for run in range(3)]
    expected = torch.stack([classifier(purifier.draw(x, seeds)) for seeds in runs]).mean(0)
    torch.testing.assert_close(defended(x), expected)


@pytest.mark.parametrize("kind", ["uint8", "float16", "float32", "float64"])
def test_arrays_come_back_in_the_form_in_which_they_were_given(network: ScoreNetwork, kind: str) -> None:
    grid, purifier = real_images(1, (8, 8), 3), ADPPurifier(0.1, steps=2, model=network)
    expected = purifier(grid)
    assert expected.dtype == torch.uint8
    assert not torch.equal(expected, grid)
    given = (grid if kind == "uint8" else (grid.double() / 255).to(getattr(torch, kind))).numpy()
    found = purifier(given)
    assert type(found) is type(given)
    assert found.dtype == given.dtype
    scale = 1 if kind == "uint8" else 255
    assert torch.equal((torch.as_tensor(found).double() * scale).round().byte(), expected)
    assert torch.equal(purifier(grid[1]), expected[1])
    assert not torch.equal(ADPPurifier(0.1, steps=2, model=network, seed=1)(grid), expected)


def test_refusals(network: ScoreNetwork, tmp_path) -> None:
    grid = real_images(1, (8, 8), 2)
    with pytest.raises(ValueError, match=r"no shipped score network takes images of shape \(1, 8, 8\)"):
        ADPPurifier()(grid)
    with pytest.raises(ValueError, match=r"takes images of shape \(C, H, W\) = \(1, 8, 8\), got \(3, 8, 8\)"):
        ADPPurifier(model=network)(real_images(3, (8, 8), 2))
    for settings, message in (
        ({"sigma": -0.1}, "sigma must be"),
        ({"sigma": float("nan")}, "sigma must be"),
        ({"steps": -1}, "steps must be"),
        ({"runs": 0}, "runs must be"),
        ({"seed": -1}, "seed must be"),
        ({"backward": "none"}, "straight-through, error, full, got 'none'"),
        ({"model": "imagenet"}, "unknown score network 'imagenet'"),
    ):
        with pytest.raises(ValueError, match=message):
            ADPPurifier(**{"model": network, **settings})
    with pytest.raises(TypeError, match="must be a ScoreNetwork"):
        ADPPurifier(model=3)
    purifier = ADPPurifier(model=network)
    with pytest.raises(ValueError, match="expected 2 seeds, one an image, got 1"):
        purifier.draw(grid / 255, [0])
    with pytest.raises(ValueError, match=r"in \[0, 1\], got values from 0 to 255"):
        purifier.draw(torch.tensor([0.0, 255.0]).repeat(32).view(1, 1, 8, 8), [0])
    with pytest.raises(TypeError, match=r"floating images.*got torch\.uint8"):
        purifier.draw(grid, [0, 1])
    with pytest.raises(ValueError, match=r"expected images \(N, C, H, W\)"):
        purifier.draw(torch.zeros(8, 8), [0])


def test_command(network: ScoreNetwork, run_here, refused, tmp_path) -> None:
    grid = real_images(1, (8, 8), 3)
    np.save(tmp_path / "in.npy", grid.numpy())
    save_score_network(network, tmp_path / "score.safetensors")
    words = ["purify", tmp_path / "in.npy", tmp_path / "out.npy"]
    words += ["--model", tmp_path / "score.safetensors", "--defence", "adp:sigma=0.1,steps=4,seed=2"]
    run_here(*words)
    expected = ADPPurifier(0.1, steps=4, seed=2, model=tmp_path / "score.safetensors")(grid.numpy())
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)
    assert "adp has no setting eps=16" in refused(*words, "--force", "--eps", 16)


@pytest.fixture(params=["fashion-mnist", pytest.param("cifar10", marks=pytest.mark.whole)])
def shipped(request: pytest.FixtureRequest) -> str:
    if not SHIPPED[request.param].is_file():
        pytest.skip(f"no {SHIPPED[request.param].name} in this tree: pxfast train-adp makes it")
    return request.param


def test_shipped_networks_bring_noisy_images_back(shipped: str) -> None:
    """After ADP the classifier names most images as it did before, and the images are nearer to the clean ones."""
    channels = {"fashion-mnist": 1, "cifar10": 3}[shipped]
    x = bundled_images(channels)[:8].float() / 255
    seeds = image_seeds(x, 0)
    noisy, purified = ADPPurifier(0.1, steps=0).draw(x, seeds), ADPPurifier(0.1).draw(x, seeds)
    once = ADPPurifier(0.1, steps=1)
    assert torch.equal(once.draw(x[3:4], seeds[3:4])[0], once.draw(x, seeds)[3]), "the same in another batch"
    errors = [float((images - x).square().mean()) for images in (noisy, purified)]
    assert errors[1] < 0.4 * errors[0]
    classifier = load_classifier(shipped)
    with torch.no_grad():
        before, after = classifier(x).argmax(1), classifier(purified).argmax(1)
    assert int((before == after).sum()) >= 6


@pytest.mark.parametrize("channels", [1, pytest.param(3, marks=pytest.mark.whole)])
def test_the_shipped_networks_take_away_most_of_strong_noise(channels: int) -> None:
    clean = bundled_images(channels)[:8].float() / 255.0
    seeds = image_seeds(clean)
    noisy = ADPPurifier(0.25, steps=0).draw(clean, seeds)
    purified = ADPPurifier(0.25).draw(clean, seeds)
    before, after = ((images - clean).square().mean() for images in (noisy, purified))
    assert float(after) < 0.4 * float(before)
