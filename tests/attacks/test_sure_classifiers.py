"""Images of which a classifier is so sure that the cross-entropy has no gradient left are attacked as well."""

import copy
from collections.abc import Sequence

import pytest
import torch
from support.attack_network import attack_fixture
from support.small_defences import Halves, Noisy
from torch import Tensor, nn

from pxfast.attacks import APGDBPDA, BIM, BPDA, BPDAEOT, FGSM, PGD, Attack, FullGradient, JointFull
from pxfast.attacks.gradients import MeanGradient, cross_entropy_gradient, cross_entropy_slope, loss_gradient
from pxfast.defences import Defended
from pxfast.defences.defended import averaged

FIXTURE = attack_fixture()


class Scaled(nn.Module):
    """The fixture's network with logits so many times as large: the same labels and borders."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = FIXTURE.network, factor

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.factor * self.inner(images)
        return logits


def test_the_direction_is_that_of_the_cross_entropy() -> None:
    """In fp64, where nothing is lost."""
    network = copy.deepcopy(FIXTURE.network).double()
    x = FIXTURE.x.double().requires_grad_()
    labels = network(x).argmax(1)
    logits = network(x)
    plain = torch.autograd.grad(nn.functional.cross_entropy(logits, labels, reduction="sum"), x, retain_graph=True)[0]
    assert torch.equal(cross_entropy_gradient([logits], labels, x), plain)
    sure = network(x)
    sure = sure + 1e4 * nn.functional.one_hot(labels, sure.shape[1])  # a constant: the borders move, no gradient does
    found = cross_entropy_gradient([sure], labels, x)
    share = 1.0 - logits.softmax(1).gather(1, labels[:, None])[:, :, None, None]
    torch.testing.assert_close(found, plain / share)


@pytest.mark.parametrize("attack", [FGSM(), BIM(steps=3), PGD(steps=3)], ids=lambda attack: attack.name)
def test_larger_logits_are_no_defence(attack: Attack) -> None:
    labels = FIXTURE.network(FIXTURE.x).argmax(1)
    assert not loss_gradient(Scaled(1.0), FIXTURE.x, labels).flatten(1).eq(0).all(1).any()
    sure = Scaled(1e5).eval()
    x = FIXTURE.x.clone().requires_grad_()
    lost = torch.autograd.grad(nn.functional.cross_entropy(sure(x), labels, reduction="sum"), x)[0]
    assert lost.flatten(1).eq(0).all(1).any(), "the case is not the one that is meant"
    moved = attack.run(sure, FIXTURE.images, labels, 8, seed=1).images
    assert (moved != FIXTURE.images).flatten(1).any(1).all()


class Paler(Halves):
    """Deterministic, with a gradient of its own."""

    def forward(self, images: Tensor) -> Tensor:
        return 0.9 * images

    def differentiate(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        return 0.9 * images


@pytest.mark.parametrize(
    ("attack", "defence", "views"),
    [
        (BPDA(steps=2), Halves(), "one"),
        (BPDA(steps=2), Halves(), "flip"),
        (BPDAEOT(steps=2), Noisy(sigma=0.01), "one"),
        (BPDAEOT(steps=2), Noisy(sigma=0.01), "flip"),
        (APGDBPDA(steps=3, restarts=1, loss="ce"), Halves(), "one"),
        (JointFull(steps=2, at="purified", weight=0.0), Halves(), "one"),
        (JointFull(steps=2, weight=0.0), Halves(), "flip"),
        (FullGradient(steps=2), Paler(), "one"),
        (FullGradient(steps=2), Noisy(sigma=0.01), "flip"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "name", type(value).__name__),
)
def test_attacks_that_know_the_defence_go_on_too(attack: Attack, defence: nn.Module, views: str) -> None:
    defended = Defended(Scaled(1e5).eval(), [defence.eval()], views=views)
    moved = attack.run(defended, FIXTURE.images, defended(FIXTURE.x).argmax(1), 8, seed=1).images
    assert (moved != FIXTURE.images).flatten(1).any(1).all()


def test_the_runs_in_which_an_image_is_not_sure_are_those_that_count() -> None:
    """In a mean of two runs one lost gradient changes nothing; where both are lost the spare ones are averaged."""
    x = torch.zeros(4, 1, 1, 3, requires_grad=True)  # two runs of two images
    logits = x.flatten(1) + torch.tensor([[200.0, 0.0, 0.0], [200.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 200.0]])
    labels = torch.tensor([0, 0, 0, 2])
    mean = MeanGradient(cross_entropy_slope)
    mean.add([logits], labels, x, 2)
    torch.testing.assert_close(mean.mean()[0].flatten(), torch.tensor([-2 / 3, 1 / 3, 1 / 3]) / 2)
    torch.testing.assert_close(mean.mean()[1].flatten(), torch.tensor([-0.5 + 0.25, 0.5, -0.5 + 0.25]))
    apart = MeanGradient(cross_entropy_slope)
    for run in (slice(0, 2), slice(2, 4)):
        part = x[run].detach().requires_grad_()
        apart.add([part.flatten(1) + (logits[run] - x[run].flatten(1)).detach()], labels[run], part, 1)
    assert torch.equal(apart.mean(), mean.mean())


@pytest.mark.parametrize("lead", [1.0, 9.0, 20.0, 28.0])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_the_gradient_has_all_its_digits(lead: float, views: int) -> None:
    """Against fp64. In fp32 the label's probability is 1 from a lead of 17 on, and its difference from 1 is nothing."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(views, 5, 7, generator=generator)
    labels = torch.arange(5)
    logits[..., labels, labels] += lead
    wide = logits.double().requires_grad_()
    nn.functional.cross_entropy(averaged(list(wide)), labels, reduction="sum").backward()
    slope = cross_entropy_slope(logits, labels)
    assert not slope.lost.any()
    torch.testing.assert_close(slope.along.double(), wide.grad, rtol=1e-3, atol=0.0)


def test_the_spare_gradient_of_several_views_is_the_largest_ones() -> None:
    """The first image is sure in both views, more so in the second; of the other image the views disagree."""
    logits = torch.tensor([[[200.0, 0.0, 0.0], [200.0, 0.0, 0.0]], [[900.0, 0.0, 1.0], [0.0, 0.0, 500.0]]])
    slope = cross_entropy_slope(logits, torch.tensor([0, 0]))
    assert slope.lost.tolist() == [True, True]
    torch.testing.assert_close(slope.spare[0, 0], torch.tensor([-1.0, 0.5, 0.5]))
    torch.testing.assert_close(slope.spare[0, 1], torch.tensor([-1.0, 0.5, 0.5]))
    assert not slope.spare[1].any()
