"""The attack on a classifier and a detector at once: what it finds on real images, and what its parts are."""

from __future__ import annotations

import pytest
import torch
from support.attack_network import attack_fixture
from support.helpers import bundled_images, random_model

import pxfast
from pxfast.attacks import BIM, LikelihoodAware
from pxfast.attacks.likelihood_aware import largest, normalised
from pxfast.attacks.resumable import describe
from pxfast.classifiers import load_classifier, predict
from pxfast.pixelcnn.files import save
from pxfast.pixelcnn.likelihood import log_prob_and_gradient, log_prob_gradient


def test_it_finds_misclassified_images_that_are_less_suspicious_than_bims() -> None:
    images, classifier = bundled_images(1)[:4], load_classifier("fashion-mnist")
    own = predict(classifier, images / 255.0)
    found, bim = (
        attack(classifier, images, own, 25) for attack in (LikelihoodAware(steps=5, searches=1, step=4), BIM())
    )
    assert (predict(classifier, found / 255.0) != own).all()
    assert int((found.int() - images.int()).abs().max()) <= 25
    detector = pxfast.Detector()
    assert (detector.bits_per_dim(found) < detector.bits_per_dim(bim) - 0.3).all()
    assert (detector.p_value(found) > detector.p_value(bim)).all()


def test_an_image_that_is_misclassified_already_only_becomes_likelier(tmp_path) -> None:
    fixture, path = attack_fixture(), tmp_path / "model.safetensors"
    density = random_model(image_size=(10, 10))
    save(density, path)
    wrong = (fixture.labels + 1) % 10
    found = LikelihoodAware(steps=6, searches=1, share=0.1, model=str(path))(fixture.network, fixture.images, wrong, 8)
    before, after = (pxfast.log_prob(images, model=density) for images in (fixture.images, found))
    assert (after > before).all()
    assert (fixture.network(found / 255.0).argmax(1) != wrong).all()
    held = LikelihoodAware(steps=3, model=str(path))(fixture.network, fixture.images, fixture.labels, 0)
    assert torch.equal(held, fixture.images), "eps 0"
    with pytest.raises(ValueError, match=r"10"):
        LikelihoodAware()(fixture.network, fixture.images, wrong, 8)  # no model of this shape is shipped


def test_what_is_kept_of_a_run_depends_on_the_density_models_weights(tmp_path) -> None:
    fixture, path = attack_fixture(), tmp_path / "model.safetensors"
    found = []
    for seed in (1, 2):
        save(random_model(image_size=(10, 10), seed=seed), path, force=True)
        attack = LikelihoodAware(model=str(path))
        found.append(describe(attack, fixture.network, fixture.images, None, 8, 0)["classifier"])
    assert found[0] != found[1]


def test_steps_move_the_largest_share() -> None:
    way = torch.tensor([[[[3.0, -4.0], [1.0, -2.0]]]])
    assert largest(way, 0.5).tolist() == [[[[3.0, -4.0], [0.0, 0.0]]]]
    assert torch.equal(largest(way, 1.0), way)
    assert normalised(way).abs().mean() == 1.0
    assert normalised(torch.zeros(1, 1, 2, 2)).tolist() == [[[[0.0, 0.0], [0.0, 0.0]]]]


def test_one_pass_gives_the_likelihood_and_its_gradient(tiny_model) -> None:
    levels = torch.randint(0, 256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    images = levels / 255.0
    log_p, gradient = log_prob_and_gradient(images, model=tiny_model)
    torch.testing.assert_close(log_p, pxfast.log_prob(levels, model=tiny_model), rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(gradient, log_prob_gradient(images, model=tiny_model), rtol=1e-4, atol=1e-3)
    for i in (0, 5):
        alone = log_prob_and_gradient(images[i : i + 1], model=tiny_model)
        assert torch.equal(alone[0][0], log_p[i])
        assert torch.equal(alone[1][0], gradient[i])
    none = log_prob_and_gradient(images[:0], model=tiny_model)
    assert (none[0].shape, none[1].shape) == ((0,), (0, 1, 8, 8))
