"""pxfast's attacks against independent implementations: installed ones, and saved results of two others."""

import pytest
import torch
from support.attack_network import attack_fixture
from support.helpers import bundled_images
from torch import Tensor

from pxfast.attacks import BIM, CWL2, FGSM, LBFGS, PGD, DeepFool, SaliencyMap
from pxfast.attacks.attack import BATCH, FixedBatch, image_generators
from pxfast.attacks.sign_steps import uniform
from pxfast.classifiers import load_classifier, predict

FIXTURE = attack_fixture()
EPS = 8 / 255


@pytest.fixture(scope="module")
def classifier():
    return load_classifier("fashion-mnist")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return bundled_images(1)[:BATCH]


@pytest.fixture(scope="module")
def labels(classifier, images) -> Tensor:
    return predict(classifier, images)


@pytest.fixture
def foolbox():
    return pytest.importorskip("foolbox", reason="Foolbox is not installed: pip install 'pxfast[attacks]'")


def by_foolbox(foolbox, attack, classifier, x: Tensor, labels: Tensor, eps: float | None) -> Tensor:
    model = foolbox.PyTorchModel(classifier, bounds=(0, 1), device="cpu")
    return attack(model, x, labels, epsilons=eps)[0]


@pytest.mark.external
def test_fgsm_is_foolboxs_bit_for_bit(foolbox, classifier, images, labels) -> None:
    x = images.float() / 255
    attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    theirs = by_foolbox(foolbox, attack, classifier, x, labels, EPS)
    assert torch.equal(FGSM().perturb(classifier, x, labels, EPS), theirs)
    assert torch.equal(FGSM()(classifier, images, labels, 8), (theirs * 255).round().byte())


@pytest.mark.external
def test_bim_is_foolboxs_bit_for_bit(foolbox, classifier, images, labels) -> None:
    x = images.float() / 255
    attack = foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=1 / 255, steps=10, random_start=False)
    theirs = by_foolbox(foolbox, attack, classifier, x, labels, EPS)
    assert torch.equal(BIM().perturb(classifier, x, labels, EPS), theirs)
    assert torch.equal(BIM()(classifier, images, labels, 8), (theirs * 255).round().byte())


@pytest.mark.external
def test_pgd_is_foolboxs_bit_for_bit(foolbox, classifier, images, labels) -> None:
    """From the same random start, which is the one thing that can't be the same."""
    x = images.float() / 255
    start = x + uniform(image_generators(x, 7), x, EPS)
    assert 0.9 * EPS < float((start - x).abs().max()) <= EPS * (1 + 1e-6)

    class SameStart(foolbox.attacks.LinfProjectedGradientDescentAttack):
        def get_random_start(self, x0, epsilon):
            return type(x0)(start)

    attack = SameStart(abs_stepsize=2 / 255, steps=5)
    theirs = by_foolbox(foolbox, attack, classifier, x, labels, EPS)
    ours = PGD(steps=5, step=2.0).perturb(classifier, x, labels, EPS, seed=7)
    assert torch.equal(ours, theirs)
    rounded = (theirs * 255).round().byte()
    result = PGD(steps=5, step=2.0).run(classifier, images, labels, 8, seed=7)
    kept = result.nearest == result.unrounded
    assert torch.equal(result.images[kept], rounded[kept])


@pytest.mark.external
def test_deepfool_is_foolboxs(foolbox) -> None:
    """Up to rounding: the order of the sums differs."""
    theirs = by_foolbox(foolbox, foolbox.attacks.LinfDeepFoolAttack(), FIXTURE.network, FIXTURE.x, FIXTURE.labels, None)
    ours = DeepFool().find(FIXTURE.network, FIXTURE.x, FIXTURE.labels)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    # within eps the attack only clips them: test_clipped.py


@pytest.mark.external
def test_carlini_wagner_finds_images_as_near_as_foolboxs(foolbox) -> None:
    settings = {"binary_search_steps": 6, "steps": 100, "confidence": 0.0}
    attack = foolbox.attacks.L2CarliniWagnerAttack(stepsize=0.02, initial_const=1e-1, abort_early=False, **settings)
    theirs = by_foolbox(foolbox, attack, FIXTURE.network, FIXTURE.x, FIXTURE.labels, None)
    attack = CWL2(learning_rate=0.02, initial_const=1e-1, **settings)
    ours = attack.find(FIXTURE.network, FIXTURE.x, FIXTURE.labels)
    for adversarial in (ours, theirs):
        assert (FIXTURE.network(adversarial).argmax(1) != FIXTURE.labels).all()
    distances = [(adversarial - FIXTURE.x).flatten(1).norm(dim=1) for adversarial in (ours, theirs)]
    assert (distances[0] <= 1.1 * distances[1]).all()
    assert (distances[0] >= 0.9 * distances[1]).all()


def test_saliency_map_is_torchattacks() -> None:
    ours = SaliencyMap().perturb(FIXTURE.network, FIXTURE.x, FIXTURE.labels, targets=FIXTURE.targets)
    assert torch.equal(ours, FIXTURE.jsma)
    assert torch.equal(FIXTURE.network(ours).argmax(1), FIXTURE.targets)
    assert ((ours != FIXTURE.x).sum((1, 2, 3)) >= 2).all()


def test_lbfgs_finds_images_as_near_as_foolbox_2() -> None:
    """Both look for the smallest constant. One of the eight searches ends in another valley."""
    pytest.importorskip("scipy", reason="L-BFGS needs SciPy")
    attack = LBFGS(first_const=1e-3, bisections=12, iterations=150)
    network = FixedBatch(FIXTURE.network, attack.batch)  # on the boundary to the last bit, so that the batch counts
    ours = attack.perturb(network, FIXTURE.x, FIXTURE.labels, targets=FIXTURE.targets)
    assert torch.equal(network(ours).argmax(1), FIXTURE.targets)
    assert torch.equal(FIXTURE.network(FIXTURE.lbfgs).argmax(1), FIXTURE.targets)
    distances = [(adversarial - FIXTURE.x).flatten(1).norm(dim=1) for adversarial in (ours, FIXTURE.lbfgs)]
    ratio = distances[0] / distances[1]
    assert ((ratio - 1).abs() < 0.02).sum() >= 7
    assert ratio.max() < 1.2
