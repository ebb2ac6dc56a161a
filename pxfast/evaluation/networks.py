"""The networks of an evaluation, by the hashes that name them in recipes, loaded when they are first asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..base.files import file_digest
from ..classifiers import load_classifier
from ..classifiers.weights import read_notes
from ..data.datasets import check_classes
from ..pixelcnn.files import load_model
from ..pixelcnn.fingerprint import model_fingerprint
from ..pixelcnn.network import PixelCNN

# What recipes name in another way: the registries, whose findings have hashes of their own, networks, by the bytes of
# their files, and the store.
ELSEWHERE = (
    "pxfast.attacks",
    "pxfast.engines.registry",
    "pxfast.evaluation.defences",
    "pxfast.evaluation.networks",
    "pxfast.tensors.store",
)


class EvaluatedClassifier(Protocol):
    """A classifier of a table.

    key: SHA-256, in hexadecimal, of what it computes, by which recipes name it. modules: Python modules of pxfast that
    have its network. name: as shown.
    """

    @property
    def key(self) -> str: ...
    @property
    def modules(self) -> tuple[str, ...]: ...
    @property
    def name(self) -> str: ...
    def notes(self) -> dict[str, Any]:
        """What is known of it, JSON-able."""
        ...


@dataclasses.dataclass(frozen=True)
class ClassifierModule:
    """A classifier in memory: any module, whose ``key`` depends on all that it computes with."""

    network: nn.Module
    key: str
    name: str

    @property
    def modules(self) -> tuple[str, ...]:
        return ()  # the key has its code

    def notes(self) -> dict[str, Any]:
        kind = type(self.network)
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        return {"class": f"{kind.__module__}.{kind.__qualname__}", "parameters": parameters}


@dataclasses.dataclass(frozen=True)
class ClassifierFile:
    """A classifier's file. key: the SHA-256 of its bytes. module: the Python module that has its network."""

    path: Path
    key: str
    module: str

    @property
    def modules(self) -> tuple[str, ...]:
        return (self.module,)

    @property
    def name(self) -> str:
        return self.path.stem

    def notes(self) -> dict[str, Any]:
        return read_notes(self.path)

    @classmethod
    def of(cls, path: Path, image_shape: tuple[int, ...], dataset: str) -> ClassifierFile:
        """The file at this path.

        ValueError when it holds no classifier of images (C, H, W) = image_shape and as many classes as the data set.
        """
        classifier = load_classifier(path)
        classifier.check_image_shape(image_shape, path)
        try:
            check_classes(dataset, classifier.config.classes)
        except ValueError as error:
            raise ValueError(f"{path} is a classifier of other classes: {error}") from None
        return cls(path, file_digest(path), type(classifier).__module__)


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """Where the networks lie: paths of classifiers by the SHA-256 of their files, of density models by fingerprints.

    Picklable, so that other processes can load the same networks from the same places. in_memory: classifiers without
    a file, by their keys, for workers in this process alone.
    """

    classifiers: dict[str, str]
    densities: dict[str, str]
    in_memory: dict[str, nn.Module] = dataclasses.field(default_factory=dict)


class Models:
    """The networks of ``files`` on a device, each loaded once. ValueError when a file is no longer what it was.

    threads: of the CPU engine; None: its default.
    """

    def __init__(self, files: ModelFiles, device: str, threads: int | None = None) -> None:
        self.files = files
        self.device: torch.device = torch.device(device)
        self.threads = threads
        self._classifiers: dict[str, nn.Module] = dict(files.in_memory)
        self._densities: dict[str, PixelCNN] = {}

    def classifier(self, key: str) -> nn.Module:
        """The classifier whose file has this SHA-256, in eval mode, on the device; or that in memory, as it is."""
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
