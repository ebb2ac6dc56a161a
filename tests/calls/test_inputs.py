"""Wrong images, labels and logits, over the whole public surface: each with its exception and words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.wrong_values import IMAGES, UNIT, Wrong, assert_refused, classifier, scorer, tiny
from torch import Tensor, nn

import pxfast
from pxfast import attacks, classifiers, defences
from pxfast.adp.score_network import ScoreNetworkConfig
from pxfast.adp.training import train_score_network
from pxfast.pixelcnn.likelihood import log_prob_gradient
from pxfast.pixelcnn.network import PixelCNNConfig
from pxfast.pixelcnn.training import train
from pxfast.pixeldefend.relaxed import RelaxedPurifier

Call = Callable[..., Any]
NOT_A_NUMBER = UNIT.clone()
NOT_A_NUMBER[1, 0, 0, 0] = torch.nan


class Gives(nn.Module):
    """A classifier that gives the same, whatever it is asked."""

    def __init__(self, what: object) -> None:
        super().__init__()
        self.what = what
        self.training = False

    def forward(self, images: Tensor) -> Any:
        return self.what(len(images)) if callable(self.what) else self.what


# what no function takes as images
NO_IMAGES = {
    "a list": Wrong([[0]], TypeError, "got list"),
    "None": Wrong(None, TypeError, "got NoneType"),
    "a text": Wrong("images.npy", TypeError, "got str"),
    "integers": Wrong(IMAGES.long(), TypeError, "int64"),
    "bools": Wrong(IMAGES.bool(), TypeError, "bool"),
    "complex ones": Wrong(UNIT.to(torch.complex64), TypeError, "complex64"),
}
# nor most of them, which look at the values as well
NO_PIXELS = {
    **NO_IMAGES,
    "two dimensions": Wrong(IMAGES[0, 0], ValueError, r"\(8, 8\)"),
    "five dimensions": Wrong(IMAGES[None], ValueError, r"\(1, 2, 1, 8, 8\)"),
    "0..255 as floats": Wrong(IMAGES.float(), ValueError, r"in \[0, 1\], got values from 100 to 100"),
    "negative ones": Wrong(-UNIT, ValueError, r"in \[0, 1\], got values"),
    "NaN": Wrong(NOT_A_NUMBER, ValueError, r"in \[0, 1\], got NaN"),
    "infinity": Wrong(UNIT / 0.0, ValueError, r"in \[0, 1\], got values"),
    "two channels": Wrong(IMAGES.expand(2, 2, 8, 8), ValueError, r"\(1, 8, 8\), got \(2, 8, 8\)"),
    "another size": Wrong(IMAGES[..., :4], ValueError, r"\(1, 8, 8\), got \(1, 8, 4\)"),
    "an array of integers": Wrong(IMAGES.numpy().astype(int), TypeError, "a NumPy array of int64"),
    "an array of objects": Wrong(IMAGES.numpy().astype(object), TypeError, "a NumPy array of object"),
}
TENSORS_ALONE = {**NO_IMAGES, "an array": Wrong(IMAGES.numpy(), TypeError, "ndarray")}
FLOATS_ALONE = {
    "uint8": Wrong(IMAGES, TypeError, "floating"),
    "a single image": Wrong(UNIT[0], TypeError, r"\(N, C, H, W\)"),
}


def only(table: dict[str, Wrong], *left_out: str) -> dict[str, Wrong]:
    return {what: wrong for what, wrong in table.items() if what not in left_out}


IMAGE_CALLS: dict[str, tuple[Call, dict[str, Wrong]]] = {
    "purify": (lambda images: pxfast.purify(images, model=tiny()), NO_PIXELS),
    "Purifier": (lambda images: pxfast.Purifier(model=tiny())(images), NO_PIXELS),
    "log_prob": (lambda images: pxfast.log_prob(images, model=tiny()), NO_PIXELS),
    "bits_per_dim": (lambda images: pxfast.bits_per_dim(images, model=tiny()), NO_PIXELS),
    "surprise": (lambda images: pxfast.surprise(images, model=tiny()), NO_PIXELS),
    "verify": (
        lambda images: pxfast.verify(images, IMAGES, model=tiny()),
        only(NO_PIXELS, "two channels", "another size"),
    ),
    "verify, purified": (
        lambda images: pxfast.verify(IMAGES, images, model=tiny()),
        only(NO_PIXELS, "two channels", "another size"),
    ),
    "certify": (
        lambda images: pxfast.certify(classifier(), images, [0] * 2, model=tiny(), width=2),
        only(NO_PIXELS),
    ),
    "certify_l2": (
        lambda images: pxfast.certify_l2(classifier(), images, [0] * 2, samples=2),
        only(NO_PIXELS, "two channels", "another size"),
    ),
    "Detector.fit": (lambda images: pxfast.Detector(tiny()).fit(images), NO_PIXELS),
    "Detector.p_value": (lambda images: pxfast.Detector(tiny()).p_value(images), NO_PIXELS),
    "log_prob_gradient": (
        lambda images: log_prob_gradient(images, model=tiny()),
        {**only(NO_PIXELS, "two channels", "another size"), **FLOATS_ALONE},
    ),
    "RelaxedPurifier": (lambda images: RelaxedPurifier(2, tiny())(images), only(NO_PIXELS)),
    "ADPPurifier": (lambda images: pxfast.ADPPurifier(model=scorer())(images), NO_PIXELS),
    "ADPPurifier.log_prob_gradient": (
        lambda images: pxfast.ADPPurifier(model=scorer()).log_prob_gradient(images),
        {**TENSORS_ALONE, "uint8": FLOATS_ALONE["uint8"]},
    ),
    "Defended": (lambda images: pxfast.Defended(classifier())(images), TENSORS_ALONE),
    "FeatureSqueezing": (lambda images: defences.FeatureSqueezing()(images), TENSORS_ALONE),
    "RandomAboveThreshold": (
        lambda images: classifiers.RandomAboveThreshold(classifier(), model=tiny())(images),
        only(NO_PIXELS, "two channels", "another size"),
    ),
    "an attack": (
        lambda images: attacks.BIM()(classifier(), images, None, 8),
        TENSORS_ALONE,
    ),
    "predict": (lambda images: classifiers.predict(classifier(), images), TENSORS_ALONE),
    "accuracy": (lambda images: classifiers.accuracy(classifier(), images, [0, 0]), TENSORS_ALONE),
    "a classifier": (lambda images: classifier()(images), TENSORS_ALONE),
    "standardise": (classifiers.standardise, TENSORS_ALONE),
    "train": (
        lambda images: train(PixelCNNConfig((8, 8), 1, 4, 1), images, "out.safetensors"),
        {
            **TENSORS_ALONE,
            "floats": Wrong(UNIT, TypeError, "uint8 training images"),
            "none": Wrong(IMAGES[:0], ValueError, "N > 0"),
        },
    ),
    "train, validation": (
        lambda images: train(PixelCNNConfig((8, 8), 1, 4, 1), IMAGES, "out.safetensors", validation=images),
        {**only(TENSORS_ALONE, "None"), "one image": Wrong(IMAGES[0], ValueError, "uint8 validation images")},
    ),
    "train_score_network": (
        lambda images: train_score_network(ScoreNetworkConfig((8, 8), 1, 2), images, "out.safetensors"),
        {**TENSORS_ALONE, "another size": Wrong(IMAGES[..., :4], ValueError, r"\(N, 1, 8, 8\), N > 0, got")},
    ),
}


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        pytest.param(call, wrong, id=f"{what}-{name}")
        for what, (call, table) in IMAGE_CALLS.items()
        for name, wrong in table.items()
    ],
)
def test_wrong_images_are_refused(call, wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(lambda: call(wrong.value), wrong, "images")
    assert not list(tmp_path.iterdir()), "something was written"


LABELS = {
    "too few": Wrong([0], ValueError, r"expected labels \(2,\), one per image, got \(1,\)"),
    "a column": Wrong([[0], [1]], ValueError, r"got \(2, 1\)"),
    "floats": Wrong([0.0, 1.0], TypeError, "expected integer labels"),
    "bools": Wrong([True, False], TypeError, "expected integer labels"),
    "texts": Wrong(["cat", "dog"], TypeError, "expected integer labels"),
    "of no class": Wrong([0, 10], ValueError, r"labels in 0\.\.9, the classifier's 10 classes, got 10"),
    "negative": Wrong([-1, 0], ValueError, r"labels in 0\.\.9"),
    "one number": Wrong(3, ValueError, r"got \(\)"),
    "ragged": Wrong([[1], [1, 2]], TypeError, "expected integer labels"),
    "a dictionary": Wrong({"labels": [0, 1]}, TypeError, "expected integer labels"),
}


@pytest.mark.parametrize("what", LABELS)
@pytest.mark.parametrize("use", ["attack", "targets", "accuracy"])
def test_wrong_labels_are_refused(what, use):
    wrong = LABELS[what]
    calls: dict[str, Call] = {
        "attack": lambda: attacks.BIM()(classifier(), IMAGES, wrong.value, 8),
        "targets": lambda: attacks.SaliencyMap()(classifier(), IMAGES, None, targets=wrong.value),
        "accuracy": lambda: classifiers.accuracy(classifier(), IMAGES, wrong.value),
    }
    words = wrong.words.replace("labels", "targets") if use == "targets" else wrong.words
    assert_refused(calls[use], wrong._replace(words=words), use)


LOGITS = {
    "a tuple": Wrong((torch.zeros(2, 3),), TypeError, "expected logits .* got tuple"),
    "a dictionary": Wrong({"logits": torch.zeros(2, 3)}, TypeError, "got dict"),
    "None": Wrong(None, TypeError, "got NoneType"),
    "integers": Wrong(lambda n: torch.zeros(n, 3, dtype=torch.int64), TypeError, "got torch.int64"),
    "one class": Wrong(lambda n: torch.zeros(n, 1), ValueError, "at least two classes, got"),
    "no classes": Wrong(lambda n: torch.zeros(n), ValueError, "at least two classes, got"),
    "other images": Wrong(lambda n: torch.zeros(n + 1, 3), ValueError, "expected logits"),
    "NaN": Wrong(lambda n: torch.full((n, 3), torch.nan), ValueError, "expected finite logits"),
    "infinity": Wrong(lambda n: torch.full((n, 3), torch.inf), ValueError, "expected finite logits"),
}


@pytest.mark.parametrize("what", LOGITS)
@pytest.mark.parametrize("use", ["attack", "predict", "accuracy", "RandomAboveThreshold"])
def test_logits_that_are_none_are_refused(what, use):
    network = Gives(LOGITS[what].value)
    calls: dict[str, Call] = {
        "attack": lambda: attacks.BIM()(network, IMAGES, [0, 1], 8),
        "predict": lambda: classifiers.predict(network, IMAGES),
        "accuracy": lambda: classifiers.accuracy(network, IMAGES, [0, 1]),
        "RandomAboveThreshold": lambda: classifiers.RandomAboveThreshold(network, model=tiny())(IMAGES),
    }
    assert_refused(calls[use], LOGITS[what], use)
