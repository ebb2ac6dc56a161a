"""A classifier is the user's, labels are its classes, and what can't be attacked is refused and not called robust."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pxfast
from pxfast.attacks import ATTACKS, BIM, CWL2, FGSM, LBFGS, PGD, AutoAttack, DeepFool, Rand, SaliencyMap
from pxfast.classifiers import accuracy, predict
from pxfast.defences import Defended, FeatureSqueezing


def linear(classes: int = 10) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).eval()


def images_of(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)


class Gives(nn.Module):
    """A classifier that makes something else of the logits."""

    def __init__(self, change) -> None:
        super().__init__()
        self.network, self.change = linear(), change
        self.eval()

    def forward(self, x: Tensor):
        return self.change(self.network(x), x)


# --- 3. options of each image ---


@pytest.mark.parametrize("attack", [SaliencyMap(), LBFGS(iterations=20)], ids=lambda attack: attack.name)
def test_targets_beyond_a_block_are_reached(attack) -> None:
    network = linear()
    count = attack.block + 40 if attack.name == "saliency-map" else 7
    if attack.name == "lbfgs":
        type(attack).block, before = 3, type(attack).block
    try:
        images = images_of(count)
        own = network(images / 255).argmax(1)
        targets = (own + 1 + torch.arange(count) % 9) % 10
        whole = attack(network, images, None, targets=targets)
        reached = network(whole / 255).argmax(1) == targets
        assert reached[attack.block :].float().mean() > 0.3, "by chance it would be a ninth"
        alone = attack(network, images[-1:], None, targets=targets[-1:].tolist())
        assert torch.equal(alone[0], whole[-1])
    finally:
        if attack.name == "lbfgs":
            type(attack).block = before


def test_targets_are_checked() -> None:
    network, images = linear(), images_of(3)
    with pytest.raises(ValueError, match=r"expected targets \(3,\), one per image, got \(2,\)"):
        SaliencyMap()(network, images, None, targets=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"expected targets in 0\.\.9, the classifier's 10 classes, got 10"):
        SaliencyMap()(network, images, None, targets=[1, 2, 10])
    for attack in (BIM(), DeepFool()):
        with pytest.raises(ValueError, match=f"{attack.name} leads to any wrong class: it takes no targets"):
            attack(network, images, None, 8, targets=[1, 2, 3])


# --- 4. a classifier is the user's ---


def modes(module: nn.Module) -> list[bool]:
    return [each.training for each in module.modules()]


def test_modes_stay_as_they_are() -> None:
    """Such as those of Monte Carlo dropout, which stays on in a classifier in eval mode."""
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10)).eval()
    network[1].train()
    before = modes(network)
    images = images_of(4)
    for attack in (FGSM(), PGD(steps=2), DeepFool(steps=2), CWL2(steps=2), SaliencyMap(max_steps=2), Rand()):
        attack.run(network, images, None, 8 if attack.bounded else None)
        assert modes(network) == before, attack
    defended = Defended(network, [FeatureSqueezing()])
    assert not defended.training
    assert modes(network) == before
    FGSM()(defended, images, None, 8)
    assert modes(network) == before


@pytest.mark.parametrize("count", [1, 32, 70])
def test_a_classifier_may_write_into_its_input(count: int) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = linear()
            self.eval()

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x.mul_(2.0).sub_(1.0))

    class Plain(InPlace):
        def forward(self, x: Tensor) -> Tensor:
            return self.network(x * 2.0 - 1.0)

    images = images_of(count)
    for attack in (FGSM(), PGD(steps=3), DeepFool(steps=3)):
        assert torch.equal(attack(InPlace(), images, None, 8), attack(Plain(), images, None, 8)), attack


# --- 5. disarmed attacks ---

REFUSED = {
    "a tuple": (lambda logits, x: (logits, x), TypeError, "got tuple"),
    "a dictionary": (lambda logits, x: {"logits": logits}, TypeError, "got dict"),
    "labels": (lambda logits, x: logits.argmax(1), TypeError, "got torch.int64"),
    "one output": (lambda logits, x: logits[:, :1], ValueError, r"of at least two classes, got \(32, 1\)"),
    "a map of classes": (lambda logits, x: logits[:, :, None], ValueError, r"got \(32, 10, 1\)"),
    "no batch": (lambda logits, x: logits[0], ValueError, r"got \(10,\)"),
    "NaN": (lambda logits, x: logits / 0 * 0, ValueError, "expected finite logits .* NaN or infinity for 32 of 32"),
    "infinity for one": (
        lambda logits, x: torch.where(x.sum((1, 2, 3))[:, None] == x.sum((1, 2, 3)).max(), torch.inf, logits),
        ValueError,
        "expected finite logits",
    ),
}


@pytest.mark.parametrize("attack", [FGSM(), DeepFool(), CWL2(), SaliencyMap(), Rand()], ids=lambda attack: attack.name)
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_logits_is_refused(what: str, attack) -> None:
    change, error, message = REFUSED[what]
    with pytest.raises(error, match=message):
        attack.run(Gives(change), images_of(3), None, 8 if attack.bounded else None)


@pytest.mark.parametrize("labels", [None, [3, 1, 4]])
def test_probabilities_in_place_of_logits_are_warned_of(labels, recwarn) -> None:
    images = images_of(3)
    FGSM().run(Gives(lambda logits, x: logits), images, labels, 8)
    assert not any("probabilities" in str(each.message) for each in recwarn)
    with pytest.warns(UserWarning, match="the classifier gives probabilities, .* shows no robustness"):
        FGSM().run(Gives(lambda logits, x: logits.softmax(1)), images, labels, 8)


@pytest.mark.parametrize("attack", [FGSM(), PGD(), DeepFool(), SaliencyMap()], ids=lambda attack: attack.name)
def test_gradients_that_are_not_finite_are_refused(attack) -> None:
    """The square root of a square has none at 0; its value is there."""

    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = linear()
            self.eval()

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x.square().sqrt())

    images = images_of(3)
    images[..., 0] = 0
    with pytest.raises(ValueError, match="expected finite gradients from the classifier, got NaN or infinity for"):
        attack.run(Same(), images, None, 8 if attack.bounded else None)


@pytest.mark.external
def test_autoattack_says_that_it_needs_four_classes() -> None:
    pytest.importorskip("pyautoattack", reason="pip install 'pxfast[attacks]'")
    with pytest.raises(ValueError, match="takes the 4 likeliest classes, and the classifier has 3"):
        AutoAttack()(linear(3), images_of(2), None, 8)


# --- 6. labels ---


@pytest.mark.parametrize("attack", [FGSM(), BIM(), DeepFool(), Rand()], ids=lambda attack: attack.name)
def test_labels_outside_the_classes_are_refused(attack) -> None:
    network, images = linear(), images_of(4)
    for labels, said in (([0, 1, 2, 10], "got 10"), ([0, -100, 2, 3], "got -100")):
        with pytest.raises(ValueError, match=rf"expected labels in 0\.\.9, the classifier's 10 classes, {said}"):
            attack.run(network, images, torch.tensor(labels), 8)
        with pytest.raises(ValueError, match=said):
            accuracy(network, images / 255, labels)


def test_labels_of_any_kind_count_alike() -> None:
    network, images = linear(), images_of(5)
    labels = torch.tensor([1, 2, 3, 4, 5])
    expected = FGSM(label_rule="given")(network, images, labels, 8)
    kinds = (labels.tolist(), tuple(labels.tolist()), labels.numpy(), labels.to(torch.uint8), np.uint8(labels.numpy()))
    for kind in kinds:
        assert torch.equal(FGSM(label_rule="given")(network, images, kind, 8), expected), type(kind)
        assert accuracy(network, images / 255, kind) == accuracy(network, images / 255, labels)
    for wrong, error, said in (
        (labels[:, None], ValueError, r"expected labels \(5,\), one per image, got \(5, 1\)"),
        (labels[:4], ValueError, r"got \(4,\)"),
        (labels.float(), TypeError, r"expected integer labels, got torch\.float32"),
        (labels > 2, TypeError, r"got torch\.bool"),
        (["a", "b", "c", "d", "e"], TypeError, "expected integer labels"),
        (3, ValueError, r"got \(\)"),
    ):
        with pytest.raises(error, match=said):
            FGSM().run(network, images, wrong, 8)
        with pytest.raises(error, match=said):
            accuracy(network, images / 255, wrong)


def test_predictions_are_checked_too() -> None:
    with pytest.raises(ValueError, match="expected finite logits"):
        predict(Gives(lambda logits, x: logits * torch.nan), images_of(3) / 255)


# --- 7. seeds ---


@pytest.mark.parametrize("seed", [-1, 1.5, "1", None, True, 2**63])
def test_seeds_are_integers(seed) -> None:
    with pytest.raises((TypeError, ValueError), match="seed must be an integer"):
        Rand()(linear(), images_of(1), None, 8, seed=seed)


def test_numpy_integers_are_integers() -> None:
    network, images = linear(), images_of(2)
    found = PGD(steps=np.int64(3))(network, images, None, np.int32(8), seed=np.uint8(4))
    assert torch.equal(found, PGD(steps=3)(network, images, None, 8, seed=4))


def test_a_noise_of_16_is_none_of_the_unit_interval() -> None:
    with pytest.raises(ValueError, match=r"sigma must be .* \[0, 1\], got 16"):
        pxfast.ADPPurifier(sigma=16)


# --- modes of torch ---


FEWER = {"cw-linf": {"steps": 20}, "spsa": {"steps": 4}}


@pytest.mark.parametrize("name", ["fgsm", "pgd", "deepfool", "cw-linf", "saliency-map", "rand", "spsa"])
def test_modes_of_torch_change_no_attack(name: str) -> None:
    attack = ATTACKS[name](**FEWER.get(name, {}))
    network, images = linear(), images_of(3)
    model = Defended(network, [FeatureSqueezing()]) if name == "spsa" else network
    eps = 8 if attack.bounded else None
    expected = attack(model, images, None, eps)
    for mode in (
        torch.autocast("cpu", torch.bfloat16),
        torch.inference_mode(),
        torch.no_grad(),
        torch.device("meta"),
    ):
        with mode:
            found = attack(model, images, None, eps)
        assert torch.equal(found, expected), mode


@pytest.mark.compile
@pytest.mark.parametrize(
    "attack",
    [
        *(FGSM(), PGD(), BIM(), DeepFool(steps=2), SaliencyMap(max_steps=2)),
        pytest.param(AutoAttack(version="plus"), marks=pytest.mark.external),
    ],
    ids=lambda a: a.name,
)
def test_a_compiled_classifier_is_attacked_before_and_after_it_was_used(attack) -> None:
    """A graph that was compiled without a gradient, or for other shapes, can be differentiated once alone."""
    if attack.library is not None:
        pytest.importorskip(attack.library)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).eval()
    images, eps = images_of(4), 8 if attack.bounded else None
    expected = attack(network, images, None, eps)
    compiled = torch.compile(network)
    with torch.no_grad():
        compiled(images.float() / 255)
    compiled(images.float() / 255)
    assert torch.equal(attack(compiled, images, None, eps), expected)


@pytest.mark.parametrize("attack", [BIM(), PGD(), DeepFool(steps=2)], ids=lambda attack: attack.name)
def test_labels_of_inference_mode_are_labels(attack) -> None:
    network, images = (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).eval(),
        images_of(4),
    )
    with torch.inference_mode():
        labels = network(images.float() / 255).argmax(1)
        inside = attack(network, images, labels, 8)
    assert torch.equal(attack(network, images, labels, 8), inside)
    assert torch.equal(attack(network, images, labels.clone(), 8), inside)
