"""What a service answers about images: the label behind the purifier, and how unlikely the image is."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..base.checks import check_instance, check_number
from ..base.records import shown
from ..classifiers.classifier import Classifier
from ..classifiers.contract import checked_logits
from ..classifiers.weights import load_classifier
from ..data.images import Array
from ..defences.defended import Defended
from ..pixeldefend.detection import Detector
from ..pixeldefend.purify import Purifier


@dataclasses.dataclass(frozen=True)
class Answer:
    """What is said about one image.

    label: the likeliest class, by the logits of the purified image. probabilities: their softmax, one a class.
    undefended_label: the class by the image as it came. p_value, suspicious: of the image as it came, by the detector,
    and whether it is at most alpha; None without a detector. purified: what the classifier saw, uint8 (C, H, W).
    """

    label: int
    probabilities: list[float]
    undefended_label: int
    p_value: float | None
    suspicious: bool | None
    purified: Array

    def to_json(self) -> dict[str, object]:
        """Everything but the image."""
        values = dataclasses.asdict(self)
        del values["purified"]
        return values


class Protected:
    """A classifier behind a purifier, beside a detector: uint8 images to answers.

    classifier: the name of a shipped one, the path of a classifier file, or a module that takes floating images in
    [0, 1] to logits. purifier: a module of images to images, such as :class:`pxfast.Purifier`; None: PixelDefend with
    its default eps. detector: a :class:`pxfast.Detector`, None: no p-values. image_shape: (C, H, W) of the images;
    None: that of the classifier, which has to be one of pxfast's. alpha: an image whose p-value is at most this is
    suspicious.

    Raises TypeError or ValueError for something else, also when a grey image of that shape does not come through.
    """

    def __init__(
        self,
        classifier: str | os.PathLike[str] | nn.Module,
        *,
        purifier: nn.Module | None = None,
        detector: Detector | None = None,
        image_shape: Sequence[int] | None = None,
        alpha: float = 0.05,
    ) -> None:
        if not isinstance(classifier, nn.Module):
            classifier = load_classifier(classifier)
        if image_shape is None:
            if not isinstance(classifier, Classifier):
                raise ValueError("image_shape=(C, H, W) is needed for a classifier that is none of pxfast's")
            config = classifier.config
            image_shape = (config.channels, *config.image_size)
        shape = tuple(image_shape)
        if len(shape) != 3 or not all(isinstance(size, int) and size > 0 for size in shape):
            raise ValueError(f"expected image_shape=(C, H, W), three positive integers, got {shown(image_shape)}")
        if detector is not None:
            check_instance("detector", detector, Detector)
        self.image_shape: tuple[int, int, int] = (shape[0], shape[1], shape[2])
        self.alpha: float = check_number("alpha", alpha, 0.0, 1.0, ends="()")
        self.detector = detector
        self.defended: Defended = Defended(classifier.eval(), [Purifier() if purifier is None else purifier]).eval()
        self.answer(np.full((1, *self.image_shape), 128, np.uint8))

    def check(self, image: Array) -> None:
        """ValueError unless the image is one of this classifier's: uint8 (C, H, W)."""
        if image.dtype != np.uint8 or image.shape != self.image_shape:
            raise ValueError(
                f"expected an image {self.image_shape} of 8 bits a channel, got {image.shape} of {image.dtype}"
            )

    @torch.inference_mode()
    def answer(self, images: Array) -> list[Answer]:
        """One answer an image. images: uint8 (N, C, H, W), N > 0.

        The purified images do not depend on the batch; probabilities and p-values do, up to their rounding.
        """
        given = torch.from_numpy(np.ascontiguousarray(images))
        purified = self.defended.defend(given)
        behind, bare = self._logits(purified), self._logits(given.float() / 255)
        p_values: list[float | None] = [None] * len(given)
        flags: list[bool | None] = [None] * len(given)
        if self.detector is not None:
            values, suspicious = self.detector.judge(given, self.alpha)
            p_values, flags = [float(value) for value in values], [bool(flag) for flag in suspicious]
        probabilities = behind.double().softmax(dim=1)
        seen = (purified * 255).round().byte().numpy()
        return [
            Answer(
                label=int(behind[i].argmax()),
                probabilities=[float(value) for value in probabilities[i]],
                undefended_label=int(bare[i].argmax()),
                p_value=p_values[i],
                suspicious=flags[i],
                purified=seen[i],
            )
            for i in range(len(given))
        ]

    def _logits(self, images: Tensor) -> Tensor:
        return checked_logits(self.defended.classifier(images), len(images))
