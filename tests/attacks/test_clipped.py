"""Attacks that eps only clips: found once, they give for every eps what a run of its own gives."""

import copy

import pytest
import torch
from support.attack_network import attack_fixture
from torch import Tensor, nn

from pxfast.attacks import ATTACKS, CWL2, PAPER, ClippedAttack, DeepFool
from pxfast.attacks.attack import BLOCK
from pxfast.attacks.carlini_wagner import margin, weighted_gradient
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("attack", CLIPPED, ids=lambda attack: attack.name)
def test_a_classifier_of_another_type_is_searched_alike(attack: type[ClippedAttack], dtype: torch.dtype) -> None:
    made, network = attack(**OPTIONS.get(attack.name, {})), copy.deepcopy(FIXTURE.network).to(dtype)
    found = made.run(network, FIXTURE.images, FIXTURE.labels, 40)
    plain = made.run(FIXTURE.network, FIXTURE.images, FIXTURE.labels, 40)
    assert int(plain.unrounded.sum()) >= 6
    assert int(found.unrounded.sum()) >= int(plain.unrounded.sum()) - 1


@pytest.mark.parametrize("const", [1e-6, 1e6])
def test_a_constant_that_half_precision_has_no_room_for(const: float) -> None:
    ways = []
    for dtype in (torch.float32, torch.float16):
        network, searched = copy.deepcopy(FIXTURE.network).to(dtype), FIXTURE.x.clone().requires_grad_()
        room = margin(network(searched.to(dtype)), FIXTURE.labels).float()
        ways.append(weighted_gradient(const * room, torch.full((8,), const), searched).flatten(1) / const)
    assert torch.cosine_similarity(*ways).min() > 0.999
    torch.testing.assert_close(ways[1].norm(), ways[0].norm(), rtol=1e-2, atol=0.0)


def test_a_constant_is_raised_as_far_as_numbers_go() -> None:
    """No change leads away from the only class that is ever found: the last of many constants is a number still."""
    stays = nn.Sequential(copy.deepcopy(FIXTURE.network), Leading(3)).eval()
    attack = CWL2(steps=1, binary_search_steps=50)
    assert torch.equal(attack(stays, FIXTURE.images, None, 8), FIXTURE.images)


class Leading(nn.Module):
    """Logits among which one class always leads, by what makes no difference to the others."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, logits: Tensor) -> Tensor:
        lead = torch.zeros_like(logits)
        lead[:, self.label] = 1000.0
        return logits + lead


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
