"""Images of which a classifier is so sure that the cross-entropy has no gradient left are attacked as well."""

import copy

import pytest
import torch
from support.attack_network import attack_fixture
from support.small_defences import Halves
from torch import Tensor, nn

from pxfast.attacks import BIM, BPDA, FGSM, PGD, Attack
from pxfast.attacks.gradients import cross_entropy_gradient, loss_gradient
from pxfast.defences import Defended

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
    assert torch.equal(cross_entropy_gradient(logits, labels, x), plain)
    sure = network(x)
    sure = sure + 1e4 * nn.functional.one_hot(labels, sure.shape[1])  # a constant: the borders move, no gradient does
    found = cross_entropy_gradient(sure, labels, x)
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


def test_bpda_goes_on_too() -> None:
    defended = Defended(Scaled(1e5).eval(), [Halves()])
    moved = BPDA(steps=2).run(defended, FIXTURE.images, defended(FIXTURE.x).argmax(1), 8, seed=1).images
    assert (moved != FIXTURE.images).flatten(1).any(1).all()
