"""What users write, as type checkers read it; nothing runs this file. A call whose type is another one is an error."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn
from typing_extensions import assert_type

import pxfast
from pxfast.adp.score_network import ScoreNetwork
from pxfast.attacks import BIM, BPDA, AttackResult
from pxfast.classifiers import Classifier, RandomAboveThreshold, load_classifier
from pxfast.data.image_grid import image_grid
from pxfast.defences import Defended, FeatureSqueezing, OnColumn
from pxfast.pixeldefend.lbfgs import lbfgs_purify
from pxfast.pixeldefend.relaxed import RelaxedPurifier

Array = npt.NDArray[Any]


def purified(tensor: Tensor, array: Array, bytes_: npt.NDArray[np.uint8], either: Tensor | Array) -> None:
    result: Tensor = pxfast.purify(tensor)
    numpy: np.ndarray[Any, Any] = pxfast.purify(array, 8, adaptive="image", progress=True)
    assert_type(pxfast.purify(result, model=pxfast.load("cifar10")), Tensor)
    assert_type(pxfast.purify(numpy), Array)
    assert_type(pxfast.purify(bytes_), Array)
    assert_type(pxfast.purify(either), Tensor | Array)
    assert_type(pxfast.purify(nn.Parameter(tensor)), Tensor)
    pxfast.purify([tensor])  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]


def likelihoods(tensor: Tensor, array: Array) -> None:
    assert_type(pxfast.log_prob(tensor), Tensor)
    assert_type(pxfast.log_prob(array, batch_size=8), Array)
    assert_type(pxfast.bits_per_dim(tensor, model="cifar10"), Tensor)
    assert_type(pxfast.bits_per_dim(array), Array)
    assert_type(pxfast.surprise(tensor, batch_size=8), Tensor)
    assert_type(pxfast.surprise(array), Array)


def verified(tensor: Tensor, array: Array) -> None:
    found = pxfast.verify(tensor, pxfast.purify(tensor))
    assert_type(found, pxfast.Verification)
    assert_type(found.regret, Tensor)
    assert_type(found.passed, bool)
    assert_type(pxfast.verify(tensor, array, 8).mean_regret, float)


def detected(tensor: Tensor, array: Array) -> None:
    detector = pxfast.Detector().fit(tensor)
    assert_type(detector, pxfast.Detector)
    assert_type(detector.p_value(tensor), Tensor)
    assert_type(detector.p_value(array), Array)
    assert_type(detector.bits_per_dim(array), Array)
    assert_type(detector.is_adversarial(tensor, alpha=0.1), Tensor)
    assert_type(detector.judge(array), tuple[Array, Array])


def modules(tensor: Tensor, array: Array) -> None:
    purifier, adp = pxfast.Purifier(eps=8), pxfast.ADPPurifier(0.1)
    assert_type(purifier(tensor), Tensor)
    assert_type(purifier(array), Array)
    assert_type(adp(tensor), Tensor)
    assert_type(adp(array), Array)
    nn.Sequential(purifier, load_classifier("cifar10"))
    defended = Defended(load_classifier("cifar10"), [FeatureSqueezing(), purifier, adp]).eval()
    assert_type(defended(tensor), Tensor)
    assert_type(FeatureSqueezing()(tensor), Tensor)
    assert_type(RelaxedPurifier(4, "cifar10")(tensor), Tensor)


def networks(model: pxfast.PixelCNN, classifier: Classifier, score: ScoreNetwork, tensor: Tensor) -> None:
    assert_type(model(tensor), Tensor)
    assert_type(model.config.image_size, tuple[int, int])
    assert_type(score(tensor), Tensor)
    assert_type(classifier(tensor), Tensor)
    assert_type(RandomAboveThreshold(classifier)(tensor), Tensor)
    assert_type(pxfast.sample(4, model=model), Tensor)
    assert_type(pxfast.PixelCNN(pxfast.PixelCNNConfig((8, 8), 1, filters=8, resnets=1)).eval(), pxfast.PixelCNN)


def optimised(tensor: Tensor, array: Array) -> None:
    assert_type(lbfgs_purify(tensor).images, Tensor)
    assert_type(lbfgs_purify(array, starts=2).images, Array)
    assert_type(image_grid(array), Tensor)


def attacked(classifier: Classifier, images: Tensor, labels: Tensor) -> None:
    attack = BIM(steps=10)
    broken: Tensor = attack(classifier, images, labels, eps=8)
    assert_type(pxfast.purify(broken), Tensor)
    assert_type(attack.run(classifier, images, labels, 8), AttackResult)
    assert_type(BPDA(draws=1)(pxfast.Defended(classifier, [pxfast.Purifier()]), images, labels, 8), Tensor)
    BIM(step_count=10)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def kept(path: Path) -> None:
    model = pxfast.load(path)
    assert_type(model, pxfast.PixelCNN)
    pxfast.save(model, path.with_suffix(".safetensors"))
    assert_type(OnColumn(pxfast.Purifier(), "image")({"image": 0, "label": 1}), dict[str, Any])
