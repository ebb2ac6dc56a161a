"""What purifiers are to defended classifiers and to attacks: seeds of an image's own, averaged logits, scores."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from support.attack_network import attack_fixture
from support.helpers import real_images
from support.small_defences import Halves, Noisy
from torch import Tensor, nn

import pxfast
from pxfast.defences import Defended, FeatureSqueezing
from pxfast.defences.protocol import DifferentiablePurifier, ScoredPurifier, StochasticPurifier, is_stochastic
from pxfast.pixelcnn.likelihood import log_prob_gradient
from pxfast.tensors.batches import EqualBatches, in_fixed_batches
from pxfast.tensors.seeds import derived_seeds, image_seeds, standard_normal

FIXTURE = attack_fixture()


def test_seeds_are_an_images_own() -> None:
    seeds = image_seeds(FIXTURE.x, 3)
    assert len(set(seeds)) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert image_seeds(FIXTURE.x.flip(0), 3) == seeds[::-1]
    assert image_seeds(FIXTURE.x.double(), 3) == seeds
    assert not set(image_seeds(FIXTURE.x, 4)) & set(seeds)
    derived = [derived_seeds(seeds, *numbers) for numbers in ((), (0,), (1,), (0, 0), (0, 1), (1, 0))]
    assert len({seed for row in (seeds, *derived) for seed in row}) == 7 * 8
    assert derived_seeds(seeds[2:3], 0, 1) == derived[4][2:3]


def test_noise_is_normal_and_an_images_own() -> None:
    like = torch.zeros(40, 1, 10, 10)
    seeds = list(range(40))
    noise = standard_normal(seeds, like)
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.001
    assert torch.equal(standard_normal(seeds[7:9], like[7:9]), noise[7:9])
    assert standard_normal([], like[:0]).shape == (0, 1, 10, 10)
    assert standard_normal([5], like[:1].double()).dtype == torch.float64


def test_fixed_batches() -> None:
    sizes = []

    def double(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return 2 * x

    assert torch.equal(in_fixed_batches(double, FIXTURE.x, 3), 2 * FIXTURE.x)
    assert sizes == [3, 3, 3]


def test_the_last_batch_is_filled_up_to_what_is_enough() -> None:
    sizes = []

    def double(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return 2 * x

    assert torch.equal(in_fixed_batches(double, FIXTURE.x, 3, lambda count: {2: 2, 1: 3}[count]), 2 * FIXTURE.x)
    assert torch.equal(in_fixed_batches(double, FIXTURE.x[:4], 3, lambda count: {2: 2, 1: 2}[count]), 2 * FIXTURE.x[:4])
    assert sizes == [3, 3, 2, 3, 2]


class Uneven(nn.Module):
    """A network whose sums for batches of some sizes are rounded otherwise, and which counts what it is asked."""

    def __init__(self, odd: tuple[int, ...]) -> None:
        super().__init__()
        self.weight, self.odd, self.asked = nn.Parameter(torch.ones(1)), odd, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(x))
        return x * self.weight * (1 + 1e-6 * (len(x) in self.odd))


def test_small_batches_are_taken_where_a_trial_gave_their_bits() -> None:
    network, batches, like = Uneven((1, 2, 5, 6, 7)), EqualBatches(), FIXTURE.x
    assert [batches.enough(network, count, 8, like) for count in (1, 2, 3, 4)] == [3, 3, 3, 4]
    assert network.asked == [8, 1, 2, 3, 8, 4]
    assert [batches.enough(network, count, 8, like) for count in (5, 6, 7, 8, 1)] == [8, 8, 8, 8, 3]
    assert network.asked == [8, 1, 2, 3, 8, 4, 8, 5, 6, 7]  # each size once
    batches.enough(network, 4, 8, like.double())
    assert network.asked[10:] == [8, 4]  # another type is tried by itself


def test_who_offers_what(tiny_model: pxfast.PixelCNN) -> None:
    purifier = pxfast.Purifier(16, model=tiny_model)
    offers = {StochasticPurifier: [], ScoredPurifier: [], DifferentiablePurifier: []}
    for module in (Noisy(), Halves(), purifier, nn.Flatten()):
        for protocol, having in offers.items():
            if isinstance(module, protocol):
                having.append(type(module).__name__)
    assert list(offers.values()) == [["Noisy"], ["Noisy", "Halves", "Purifier"], ["Noisy"]]
    assert is_stochastic(Noisy())
    assert not is_stochastic(purifier)
    claims = nn.Flatten()
    claims.stochastic = True
    with pytest.raises(TypeError, match=r"draw\(images, seeds\) and runs.*Flatten"):
        Defended(FIXTURE.network, [claims])


def test_logits_are_averaged_over_the_draws_of_a_stochastic_defence() -> None:
    purifier = Noisy(runs=5)
    defended = Defended(FIXTURE.network, [Halves(), purifier], seed=2)
    logits = defended(FIXTURE.x)
    assert len(purifier.calls) == 1
    draws = [result for _, _, result in purifier.draws(8)]
    assert len(draws) == 5
    assert len({seed for _, seeds, _ in purifier.calls for seed in seeds}) == 5 * 8
    assert torch.equal(purifier.draws(8)[0][0], Halves()(FIXTURE.x))
    torch.testing.assert_close(logits, torch.stack([FIXTURE.network(draw) for draw in draws]).mean(0))
    assert torch.equal(defended(FIXTURE.images), logits)  # uint8 too
    torch.testing.assert_close(defended(FIXTURE.x[5:6])[0], logits[5])
    assert torch.equal(defended.defend(FIXTURE.x), draws[0])
    assert not torch.allclose(Defended(FIXTURE.network, [Halves(), purifier])(FIXTURE.x), logits)
    assert repr(defended).startswith("Defended(\n  seed=2")
    seeds = list(range(8))
    assert torch.equal(defended.defend(FIXTURE.x[3:4], seeds[3:4]), defended.defend(FIXTURE.x, seeds)[3:4])
    with pytest.raises(ValueError, match=r"\(1, 10, 10\)"):
        defended(FIXTURE.x[0])
    with pytest.raises(TypeError, match="list"):
        defended([FIXTURE.x])


def draws(defended: Defended, images: Tensor, seeds: Sequence[Sequence[int]]) -> list[Tensor]:
    """What one view of the images is with each of several lists of seeds."""
    return [drawn for (drawn,) in defended.seen_draws(images, seeds)]


def test_draws_run_as_one_batch_with_the_bits_and_gradients_of_separate_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    purifier = Noisy(runs=7)
    defences = [FeatureSqueezing(), purifier, FeatureSqueezing(colours=4)]
    defended, seeds = Defended(FIXTURE.network, defences), [list(range(8 * run, 8 * run + 8)) for run in range(7)]
    separate = [defended.defend(FIXTURE.x, given) for given in seeds]
    sums = []
    for at_once, calls in ((512, 1), (16, 4), (1, 7)):
        monkeypatch.setattr("pxfast.defences.defended.DRAWN_AT_ONCE", at_once)
        purifier.calls.clear()
        assert all(map(torch.equal, draws(defended, FIXTURE.x, seeds), separate))
        assert len(purifier.calls) == calls
        x = FIXTURE.x.clone().requires_grad_()
        logits = torch.stack([FIXTURE.network(draw) for draw in draws(defended, x, seeds)]).mean(0)
        sums.append(torch.autograd.grad(F.cross_entropy(logits, FIXTURE.labels), x)[0])
    assert torch.equal(sums[0], sums[2])
    assert torch.equal(sums[1], sums[2])
    x = FIXTURE.x.clone().requires_grad_()
    logits = torch.stack([FIXTURE.network(defended.defend(x, given)) for given in seeds]).mean(0)
    assert torch.equal(torch.autograd.grad(F.cross_entropy(logits, FIXTURE.labels), x)[0], sums[0])
    assert [len(draw) for draw in draws(defended, FIXTURE.x[:0], [[], []])] == [0, 0]
    assert not draws(defended, FIXTURE.x, [])


@pytest.mark.parametrize("channels", [1, 3])
def test_score_is_the_slope_of_the_log_likelihood(make_model, channels: int) -> None:
    model = make_model(channels=channels)
    x = real_images(channels, (8, 8), 3).float().clamp(20, 230) / 255
    found = pxfast.Purifier(4, model=model).log_prob_gradient(x)
    assert found.shape == x.shape
    assert torch.equal(log_prob_gradient(x[1:2], model=model), found[1:2])
    torch.manual_seed(0)
    way = found.sign() * torch.rand_like(x)  # uphill, so that the slope is well above the rounding
    small = 0.02 / 255

    def nats(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model.log_prob(255 * images).double().sum((1, 2, 3))

    slope = (nats(x + small * way) - nats(x - small * way)) / (2 * small)
    torch.testing.assert_close(slope, (found * way).double().sum((1, 2, 3)), rtol=0.01, atol=0.0)


def test_score_refuses(make_model, tiny_model: pxfast.PixelCNN) -> None:
    x = torch.rand(2, 1, 8, 8)
    assert log_prob_gradient(x[:0], model=tiny_model).shape == (0, 1, 8, 8)
    with pytest.raises(TypeError, match="floating"):
        log_prob_gradient((255 * x).byte(), model=tiny_model)
    with pytest.raises(ValueError, match="gradient in the values, got 'softmax'"):
        log_prob_gradient(x, model=make_model(head="softmax"))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        log_prob_gradient(x + 1, model=tiny_model)
