"""A defended model works as it stands in the field's attack libraries, which attack it as BPDA."""

from __future__ import annotations

import logging
import runpy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.engines import QUICK
from support.helpers import SOURCE, bundled_images, noisy, real_images
from torch import Tensor, nn

import pxfast
from pxfast.classifiers import load_classifier
from pxfast.defences import Defended, FeatureSqueezing

pytestmark = pytest.mark.external

EPS = 8 / 255
COUNT = 4


def library(name: str):
    return pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.fixture(scope="module")
def purifier() -> pxfast.Purifier:
    return pxfast.Purifier(eps=16)


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    return load_classifier("fashion-mnist")


@pytest.fixture(scope="module")
def defended(classifier: nn.Module, purifier: pxfast.Purifier) -> Defended:
    return Defended(classifier, [FeatureSqueezing(), purifier])


@pytest.fixture(scope="module")
def x() -> Tensor:
    return bundled_images(1)[:COUNT].float() / 255


@pytest.fixture(scope="module")
def labels(defended: Defended, x: Tensor) -> Tensor:
    """The predictions, so that every image is classified rightly before it is attacked."""
    return defended(x).argmax(1)


def bpda_fgsm(model: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor) -> Tensor:
    """One step of gradient sign, written out."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), labels), x)
    assert float((gradient != 0).double().mean()) > 0.5
    return (x.detach() + EPS * gradient.sign()).clamp(0, 1)


@pytest.fixture(scope="module")
def expected(defended: Defended, x: Tensor, labels: Tensor) -> Tensor:
    return bpda_fgsm(defended, x, labels)


def loss(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(model(x), labels))


def check(model: nn.Module, x: Tensor, attacked: Tensor, labels: Tensor) -> None:
    """Within the ball and the range, and worse for the whole defended model than the image was."""
    assert attacked.shape == x.shape
    assert float((attacked - x).abs().max()) <= EPS + 1e-6
    assert float(attacked.min()) >= 0.0
    assert float(attacked.max()) <= 1.0
    assert loss(model, attacked, labels) > loss(model, x, labels)


def test_torchattacks(defended: Defended, x: Tensor, labels: Tensor, expected: Tensor) -> None:
    torchattacks = library("torchattacks")
    torch.testing.assert_close(torchattacks.FGSM(defended, eps=EPS)(x, labels), expected)
    check(defended, x, torchattacks.PGD(defended, eps=EPS, alpha=2 / 255, steps=4)(x, labels), labels)
    check(defended, x, torchattacks.EOTPGD(defended, eps=EPS, alpha=2 / 255, steps=4, eot_iter=1)(x, labels), labels)
    assert not defended.training


def test_foolbox(defended: Defended, x: Tensor, labels: Tensor, expected: Tensor) -> None:
    foolbox = library("foolbox")
    model = foolbox.PyTorchModel(defended, bounds=(0, 1))
    assert foolbox.accuracy(model, x, labels) == 1.0
    _, attacked, _ = foolbox.attacks.LinfFastGradientAttack()(model, x, labels, epsilons=EPS)
    torch.testing.assert_close(attacked, expected)
    attack = foolbox.attacks.LinfProjectedGradientDescentAttack(steps=4, abs_stepsize=2 / 255)
    _, attacked, success = attack(model, x, labels, epsilons=EPS)
    check(defended, x, attacked, labels)
    assert torch.equal(success, defended(attacked).argmax(1) != labels)


def test_foolbox_preprocessing_that_overshoots(classifier: nn.Module, x: Tensor, labels: Tensor) -> None:
    foolbox = library("foolbox")
    preprocessing = {"mean": [-0.01], "std": [1.0], "axis": -3}  # 1 becomes 1.01
    squeezed = [FeatureSqueezing(8), pxfast.Purifier(eps=2)]
    attack = foolbox.attacks.LinfFastGradientAttack()
    target = foolbox.PyTorchModel(Defended(classifier, squeezed[1:]), bounds=(0, 1), preprocessing=preprocessing)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got values from .* to 1\.0"):
        attack(target, x, labels, epsilons=EPS)
    model = Defended(classifier, squeezed, clip=True)
    target = foolbox.PyTorchModel(model, bounds=(0, 1), preprocessing=preprocessing)
    _, attacked, success = attack(target, x, labels, epsilons=EPS)
    assert torch.equal(success, model((attacked + 0.01).clamp(0, 1)).argmax(1) != labels)


def test_autoattack(defended: Defended, x: Tensor, labels: Tensor) -> None:
    """Its own checks for randomness and vanishing gradients have nothing to say; few iterations, to save time."""
    pyautoattack = library("pyautoattack")
    adversary = pyautoattack.AutoAttack(
        defended, norm="Linf", eps=EPS, version="custom", attacks=["apgd-ce", "square"], seed=0
    )
    adversary.apgd.n_iter, adversary.apgd.n_restarts, adversary.square.n_queries = 5, 1, 10
    said: list[logging.LogRecord] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = said.append
    logging.getLogger().addHandler(listener)
    attacked, predicted = adversary.run_standard_evaluation(x, labels, batch_size=COUNT)
    logging.getLogger().removeHandler(listener)
    assert not [record for record in said if "randomized" in record.getMessage()]
    assert float((attacked - x).abs().max()) <= EPS + 1e-6
    assert torch.equal(predicted, defended(attacked).argmax(1))
    check(defended, x, adversary.apgd.perturb(x, labels, best_loss=True), labels)


def art_classifier(model: nn.Module, **keywords):
    estimators = library("art.estimators.classification")
    return estimators.PyTorchClassifier(
        model=model,
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, 28, 28),
        nb_classes=10,
        clip_values=(0, 1),
        device_type="cpu",
        **keywords,
    )


def test_art(defended: Defended, x: Tensor, labels: Tensor, expected: Tensor) -> None:
    evasion = library("art.attacks.evasion")
    estimator = art_classifier(defended)
    np.testing.assert_allclose(estimator.predict(x.numpy()), defended(x).detach().numpy(), atol=1e-5)
    attacked = evasion.FastGradientMethod(estimator, eps=EPS).generate(x.numpy(), labels.numpy())
    torch.testing.assert_close(torch.from_numpy(attacked), expected)
    attack = evasion.ProjectedGradientDescent(estimator, eps=EPS, eps_step=2 / 255, max_iter=4, verbose=False)
    check(defended, x, torch.from_numpy(attack.generate(x.numpy(), labels.numpy())), labels)


@pytest.mark.parametrize("kind", ["ArtPurifier", "ArtPurifierPyTorch"])
def test_art_preprocessor(kind: str, classifier: nn.Module, purifier: pxfast.Purifier, x: Tensor) -> None:
    """Predictions are of the purified image, and attacks move the image by all of eps: the gradient is not zero."""
    evasion = library("art.attacks.evasion")
    from pxfast.defences import art

    extra = {"device_type": "cpu"} if kind == "ArtPurifierPyTorch" else {}
    preprocessor = getattr(art, kind)(purifier, **extra)
    assert preprocessor.apply_predict
    assert not preprocessor.apply_fit
    purified, given = preprocessor(x.numpy(), np.arange(COUNT))
    assert np.array_equal(purified, pxfast.purify(x.numpy(), eps=16))
    assert given.tolist() == [0, 1, 2, 3]

    model = Defended(classifier, [purifier])
    labels = model(x).argmax(1)
    estimator = art_classifier(classifier, preprocessing_defences=preprocessor)
    np.testing.assert_allclose(estimator.predict(x.numpy()), model(x).detach().numpy(), atol=1e-5)
    attacked = evasion.FastGradientMethod(estimator, eps=EPS).generate(x.numpy(), labels.numpy())
    torch.testing.assert_close(torch.from_numpy(attacked), bpda_fgsm(model, x, labels))
    attack = evasion.BasicIterativeMethod(estimator, eps=EPS, eps_step=2 / 255, max_iter=4, verbose=False)
    attacked = torch.from_numpy(attack.generate(x.numpy(), labels.numpy()))
    check(model, x, attacked, labels)
    assert float((attacked - x).abs().max()) > 0.9 * EPS


def test_art_preprocessors_refuse_what_is_no_purifier() -> None:
    library("art.defences.preprocessor")
    from pxfast.defences import art

    with pytest.raises(TypeError, match=r"Purifier.*Flatten"):
        art.ArtPurifier(nn.Flatten())


def test_arts_own_pixeldefend_is_not_algorithm_1(tiny_model: pxfast.PixelCNN) -> None:
    """It gives what one pass of the network over the input says, as the comparison's script has it."""
    library("art.defences.preprocessor")
    script = runpy.run_path(str(SOURCE / "bench" / "experiments" / "art_pixeldefend.py"))
    eps = 40
    images = noisy(real_images(1, (8, 8), 3)).clamp(eps, 254 - eps)  # beyond these ART stops with an OverflowError
    theirs, _ = script["art_pixeldefend"](tiny_model, eps)((images.float() / 255).numpy())
    single_pass = script["single_pass"](images, eps, tiny_model)
    assert torch.equal(torch.from_numpy(theirs * 255).round().byte(), single_pass)
    assert not pxfast.verify(images, single_pass, eps, model=tiny_model).passed
    purified = pxfast.purify(images, eps, model=tiny_model, engine=QUICK, precision="fp32")
    assert pxfast.verify(images, purified, eps, model=tiny_model).passed


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import sys

    for name in [name for name in sys.modules if name == "art" or name.startswith("art.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "art", None)
    monkeypatch.delitem(sys.modules, "pxfast.defences.art", raising=False)
    with pytest.raises(ImportError, match=r"pxfast\[art\]"):
        importlib.import_module("pxfast.defences.art")


def test_robustbench_contract(defended: Defended, x: Tensor) -> None:
    """Eval mode, NCHW floats in [0, 1] in, logits out, the same ones every time, whatever the batch."""
    assert not defended.training
    logits = defended(x)
    assert logits.shape == (COUNT, 10)
    assert logits.dtype == torch.float32
    assert bool((logits < 0).any())  # logits, not probabilities
    assert torch.equal(logits, defended(x))
    torch.testing.assert_close(defended(x[1:2]), logits[1:2], rtol=1e-4, atol=1e-4)
