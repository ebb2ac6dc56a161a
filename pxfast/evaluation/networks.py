"""The networks of an evaluation, by the hashes that name them in recipes, loaded when they are first asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from ..base.files import file_digest
from ..classifiers import Classifier, load_classifier
from ..data.datasets import check_classes
from ..pixelcnn.files import load_model
from ..pixelcnn.fingerprint import model_fingerprint
from ..pixelcnn.network import PixelCNN


@dataclasses.dataclass(frozen=True)
class ClassifierFile:
    """A classifier's file. key: the SHA-256 of its bytes. module: the Python module that has its network."""

    path: Path
    key: str
    module: str

    @classmethod
    def of(cls, path: Path, image_shape: tuple[int, ...], dataset: str) -> ClassifierFile:
        """The file at this path.

        ValueError when it holds no classifier of images (C, H, W) = image_shape and as many classes as the data set.
        """
        classifier = load_classifier(path)
        expected = (classifier.config.channels, *classifier.config.image_size)
        if expected != image_shape:
            raise ValueError(f"{path} is a classifier of images of shape (C, H, W) = {expected}, not {image_shape}")
        try:
            check_classes(dataset, classifier.config.classes)
        except ValueError as error:
            raise ValueError(f"{path} is a classifier of other classes: {error}") from None
        return cls(path, file_digest(path), type(classifier).__module__)


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """Where the networks lie: paths of classifiers by the SHA-256 of their files, of density models by fingerprints.

    Picklable, so that other processes can load the same networks from the same places.
    """

    classifiers: dict[str, str]
    densities: dict[str, str]


class Models:
    """The networks of ``files`` on a device, each loaded once. ValueError when a file is no longer what it was.

    threads: of the CPU engine; None: its default.
    """

    def __init__(self, files: ModelFiles, device: str, threads: int | None = None) -> None:
        self.files = files
        self.device: torch.device = torch.device(device)
        self.threads = threads
        self._classifiers: dict[str, Classifier] = {}
        self._densities: dict[str, PixelCNN] = {}

    def classifier(self, key: str) -> Classifier:
        """The classifier whose file has this SHA-256, in eval mode, on the device."""
        if key not in self._classifiers:
            path = self.files.classifiers[key]
            if file_digest(path) != key:
                raise ValueError(f"{path} has changed since the evaluation began; run it again")
            self._classifiers[key] = load_classifier(path).to(self.device)
        return self._classifiers[key]

    def density(self, key: str) -> PixelCNN:
        """The density model with this fingerprint, on the CPU, from where engines take it."""
        if key not in self._densities:
            path = self.files.densities[key]
            model = load_model(path)
            if model_fingerprint(model) != key:
                raise ValueError(f"{path} has changed since the evaluation began; run it again")
            self._densities[key] = model
        return self._densities[key]
