"""Attacks that eps only clips: found once, they give for every eps what a run of its own gives."""

import pytest
import torch
from support.attack_network import attack_fixture
from torch import Tensor, nn

from pxfast.attacks import ATTACKS, PAPER, ClippedAttack, DeepFool
from pxfast.attacks.attack import BLOCK
from pxfast.attacks.result import STAGES

FIXTURE = attack_fixture()
OPTIONS = {
    "cw-l2": {"steps": 20, "binary_search_steps": 3, "learning_rate": 0.05, "initial_const": 1.0},
    "cw-linf": {"steps": 20},
}
CLIPPED = [attack for attack in ATTACKS.values() if issubclass(attack, ClippedAttack)]


def test_which_attacks_are_clipped() -> None:
    assert [attack.name for attack in PAPER if attack in CLIPPED] == ["deepfool", "cw-l2", "cw-linf"]
    assert all(attack.bounded for attack in CLIPPED)


@pytest.mark.parametrize("attack", CLIPPED, ids=lambda attack: attack.name)
@pytest.mark.parametrize("labels", [FIXTURE.labels, None], ids=["labels", "no-labels"])
def test_one_search_serves_every_eps(attack: type[ClippedAttack], labels) -> None:
    made = attack(**OPTIONS.get(attack.name, {}))
    found = made.unclipped(FIXTURE.network, FIXTURE.images, labels)
    assert found.dtype == torch.float32
    assert (found - FIXTURE.x).abs().max() > 3 / 255  # or eps would clip nothing
    for eps in (3, 20):
        clipped = made.clip(FIXTURE.network, FIXTURE.images, labels, found, eps)
        run = made.run(FIXTURE.network, FIXTURE.images, labels, eps)
        for name in ("images", *STAGES):
            assert torch.equal(getattr(clipped, name), getattr(run, name)), name


def test_more_images_than_a_block_and_none() -> None:
    images = FIXTURE.images.repeat(BLOCK // 8 + 1, 1, 1, 1)
    attack, counts = DeepFool(), []
    found = attack.unclipped(FIXTURE.network, images, None, progress=counts.append)
    assert counts == [BLOCK, len(images)]
    assert torch.equal(found[-8:], attack.unclipped(FIXTURE.network, FIXTURE.images, None))
    assert len(attack.clip(FIXTURE.network, images, None, found, 3).images) == len(images)
    nothing = attack.unclipped(FIXTURE.network, images[:0], None)
    assert nothing.shape == images[:0].shape
    assert len(attack.clip(FIXTURE.network, images[:0], None, nothing, 3).images) == 0


def test_bad_input() -> None:
    deepfool = DeepFool()
    with pytest.raises(ValueError, match="expected floating images"):
        deepfool.clip(FIXTURE.network, FIXTURE.images, None, FIXTURE.x[:2], 3)
    with pytest.raises(TypeError, match="eps"):
        deepfool.clip(FIXTURE.network, FIXTURE.images, None, FIXTURE.x, 3.5)
    with pytest.raises(TypeError, match="uint8"):
        deepfool.unclipped(FIXTURE.network, FIXTURE.images.int(), None)


def test_deepfool_leads_away_from_the_given_or_the_predicted_label() -> None:
    """As it was published it moves images that are misclassified already, and some of them to their own class."""
    logits = FIXTURE.network(FIXTURE.images.float() / 255)
    wrong = logits.topk(2).indices[:, 1]  # so that each image is misclassified
    assert torch.equal(DeepFool()(FIXTURE.network, FIXTURE.images, wrong, 40), FIXTURE.images)
    attack = DeepFool(label_rule="predicted")
    found = attack.unclipped(FIXTURE.network, FIXTURE.images, wrong)
    assert torch.equal(found, DeepFool().unclipped(FIXTURE.network, FIXTURE.images, None))
    result, own = (
        each.run(FIXTURE.network, FIXTURE.images, labels, 40) for each, labels in ((attack, wrong), (DeepFool(), None))
    )
    assert torch.equal(result.images, own.images), "what rounding undid is mended for the label that it leads away from"
    now = FIXTURE.network(result.images.float() / 255).argmax(1)
    assert (now == wrong).any()
    assert torch.equal(result.rounded, now != wrong)
    assert torch.equal(attack.clip(FIXTURE.network, FIXTURE.images, wrong, found, 40).images, own.images)


def test_deepfool_takes_gradients_of_images_alone_that_it_still_moves() -> None:
    rows = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                rows.append(len(x))
            return FIXTURE.network(x)

    network = Watched().eval()
    DeepFool().find(network, FIXTURE.x, FIXTURE.network(FIXTURE.x).argmin(1))
    assert rows == []
    DeepFool().find(network, FIXTURE.x, FIXTURE.network(FIXTURE.x).argmax(1))
    assert len(rows) >= 2
    assert rows[-1] < len(FIXTURE.x)
