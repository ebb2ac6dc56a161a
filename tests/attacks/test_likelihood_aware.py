"""The attack on a classifier and a detector at once: what it finds on real images, and what its parts are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.helpers import bundled_images, random_model
from torch import Tensor, nn

import pxfast
from pxfast.attacks import BIM, LikelihoodAware
from pxfast.attacks.likelihood_aware import largest, normalised
from pxfast.attacks.resumable import describe
from pxfast.classifiers import load_classifier, predict
from pxfast.pixelcnn.files import save
from pxfast.pixelcnn.likelihood import log_prob_and_gradient, log_prob_gradient


@pytest.mark.whole  # of a small network: the tests below
def test_it_finds_misclassified_images_that_are_less_suspicious_than_bims() -> None:
    images, classifier = bundled_images(1)[:2], load_classifier("fashion-mnist")
    own = predict(classifier, images / 255.0)
    found, bim = (
        attack(classifier, images, own, 25) for attack in (LikelihoodAware(steps=5, searches=1, step=6), BIM(steps=12))
    )
    assert (predict(classifier, found / 255.0) != own).all()
    assert int((found.int() - images.int()).abs().max()) <= 25
    detector = pxfast.Detector()
    assert (detector.bits_per_dim(found) < detector.bits_per_dim(bim) - 0.3).all()
    assert (detector.p_value(found) > detector.p_value(bim)).all()


@pytest.fixture
def small(tmp_path) -> tuple[nn.Module, Tensor, Tensor, str]:
    """A linear classifier of 8x8 images, images, its labels, and the file of a density model."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    path = tmp_path / "model.safetensors"
    save(random_model(), path)
    return network, images, network(images / 255.0).argmax(1), str(path)


@pytest.mark.parametrize("start", [pytest.param("image", marks=pytest.mark.whole), "random"])
def test_an_images_result_is_its_own_on_the_grid_and_in_the_ball(small, start: str) -> None:
    network, images, labels, path = small
    attack = LikelihoodAware(steps=4, searches=2, step=16, start=start, share=1.0, model=path)
    result = attack.run(network, images, labels, 60, seed=3)
    assert int((result.images.int() - images.int()).abs().max()) <= 60
    assert result.images.dtype == torch.uint8
    assert torch.equal(network(result.images / 255.0).argmax(1) != labels, result.rounded)
    assert result.rounded.any()
    order = torch.tensor([4, 0])
    assert torch.equal(attack(network, images[order], labels[order], 60, seed=3), result.images[order])
    other = attack(network, images[:2], labels[:2], 60, seed=4)
    assert torch.equal(other, result.images[:2]) == (start == "image")
    assert torch.equal(attack(network, images[:1], labels[:1], 0), images[:1])
    assert attack(network, images[:0], labels[:0], 8).shape == (0, 1, 8, 8)


def by_hand(
    network: nn.Module,
    image: Tensor,
    label: int,
    density: pxfast.PixelCNN,
    *,
    steps: int,
    searches: int,
    step: int,
    eps: int,
):
    """The class's description, for one image (1, 8, 8) of a linear classifier; and the weights that were tried."""
    low, high, weights, found, nearest = 0.0, 1.0, [], [], []
    for _ in range(searches):
        weights.append((low + high) / 2)
        now, succeeded = image.int(), False
        for number in range(steps + 1):
            x = (now[None] / 255.0).requires_grad_()
            logits = network(x)[0]
            lead = logits[label] - logits.scatter(0, torch.tensor(label), -torch.inf).max()
            (away,) = torch.autograd.grad(-lead, x)
            log_p, likelier = log_prob_and_gradient(x.detach(), model=density)
            wrong = int(logits.argmax()) != label
            succeeded |= wrong
            (found if wrong else nearest).append((log_p.item() if wrong else -lead.item(), now))
            if number < steps:
                w = 1.0 if wrong else weights[-1]
                way = (1 - w) * away / away.abs().mean() + w * likelier / likelier.abs().mean()
                chosen = way.abs().flatten().argsort(descending=True)[: round(0.3 * way.numel())]
                change = torch.zeros(way.numel()).scatter(0, chosen, step * way.flatten().sign()[chosen])
                now = now + change.reshape(now.shape).int()
                now = torch.minimum(
                    torch.maximum(now, (image.int() - eps).clamp(min=0)), (image.int() + eps).clamp(max=255)
                )
        low, high = (weights[-1], high) if succeeded else (low, weights[-1])
    return max(found or nearest, key=lambda each: each[0])[1].byte(), weights


@pytest.mark.parametrize(
    ("chosen", "steps", "searches", "step", "eps"),
    [
        (slice(3), 6, 3, 12, 40),
        (slice(1, 2), 4, 4, 20, 30),  # misclassified, and right again on its way; the last search finds the best
        (slice(1), 3, 2, 2, 2),  # never misclassified: neither the first nor the last has the smallest margin
    ],
)
def test_an_image_is_led_as_the_description_says(small, chosen, steps, searches, step, eps) -> None:
    network, images, labels, path = small
    images, labels, density = images[chosen], labels[chosen], pxfast.load(path)
    settings = {"steps": steps, "searches": searches, "step": step}
    result = LikelihoodAware(**settings, model=path).run(network, images, labels, eps)
    for image, label, ours in zip(images, labels.tolist(), result.images, strict=True):
        expected, weights = by_hand(network, image, label, density, **settings, eps=eps)
        assert torch.equal(ours, expected)
        first = [0.5, 0.25] if eps == 2 else [0.5, 0.75, 0.625]
        assert weights[:3] == first, "the first search succeeds, and the second does not; or none does"


def test_a_random_start_is_anywhere_in_the_ball(small) -> None:
    """No step is taken: the result is where the attack begins."""
    network, images, labels, path = small
    begun = LikelihoodAware(steps=0, searches=1, start="random", model=path)(network, images, labels, 2)
    inside = (images >= 2) & (images <= 253)
    changes = (begun.int() - images.int())[inside]
    assert (changes + 2).bincount().min() > len(changes) / 8
    assert changes.abs().max() == 2


def test_an_image_that_is_misclassified_already_only_becomes_likelier(small) -> None:
    network, images, labels, path = small
    wrong = (labels + 1) % 10
    found = LikelihoodAware(steps=6, searches=1, share=0.1, model=path)(network, images, wrong, 8)
    before, after = (pxfast.log_prob(each, model=path) for each in (images, found))
    assert (after >= before).all()
    assert (after > before).any()
    assert (network(found / 255.0).argmax(1) != wrong).all()
    with pytest.raises(ValueError, match=r"\(1, 8, 8\)"):
        LikelihoodAware()(network, images, wrong, 8)  # no model of this shape is shipped


def test_what_is_kept_of_a_run_depends_on_the_density_models_weights(small) -> None:
    network, images, _, path = small
    found = []
    for seed in (1, 2):
        Path(path).unlink()
        save(random_model(seed=seed), path)
        found.append(describe(LikelihoodAware(model=path), network, images, None, 8, 0)["networks"])
    assert found[0] != found[1]


def test_steps_move_the_largest_share() -> None:
    way = torch.tensor([[[[3.0, -4.0], [1.0, -2.0]]]])
    assert largest(way, 0.5).tolist() == [[[[3.0, -4.0], [0.0, 0.0]]]]
    assert torch.equal(largest(way, 0.4), largest(way, 0.5)), "1.6 of them are 2"
    assert largest(way, 0.01).tolist() == [[[[0.0, -4.0], [0.0, 0.0]]]], "one at least"
    assert torch.equal(largest(way, 1.0), way)
    torch.testing.assert_close(normalised(way), way / 2.5)
    assert normalised(torch.zeros(1, 1, 2, 2)).tolist() == [[[[0.0, 0.0], [0.0, 0.0]]]]


def test_one_pass_gives_the_likelihood_and_its_gradient(tiny_model) -> None:
    levels = torch.randint(0, 256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    images = levels / 255.0
    log_p, gradient = log_prob_and_gradient(images, model=tiny_model)
    torch.testing.assert_close(log_p, pxfast.log_prob(levels, model=tiny_model), rtol=1e-6, atol=1e-4)
    # elements reach 1,600, and torch 2.6 sums in an order in which one is 1.2e-3 away: 7e-7 of the largest
    torch.testing.assert_close(gradient, log_prob_gradient(images, model=tiny_model), rtol=1e-4, atol=2e-3)
    for i in (0, 5):
        alone = log_prob_and_gradient(images[i : i + 1], model=tiny_model)
        assert torch.equal(alone[0][0], log_p[i])
        assert torch.equal(alone[1][0], gradient[i])
    none = log_prob_and_gradient(images[:0], model=tiny_model)
    assert (none[0].shape, none[1].shape) == ((0,), (0, 1, 8, 8))
