"""Which classifiers a table needs, where they are, and training those that are not there."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from ..classifiers.training import ClassifierSettings, train_classifier
from ..classifiers.weights import SHIPPED, read_notes
from ..data.datasets import DATASETS
from ..training.log import log_path
from ..training.processes import join
from ..training.run import checkpoint_path
from .specification import RowSpecification

TRAIN_BUDGET = 1800.0  # seconds of training for a classifier that is missing
FINE_TUNING_RATE = 0.03  # the first learning rate of a run that starts from trained weights
SHIPPED_ARCHITECTURE = "resnet62"


@dataclasses.dataclass(frozen=True, order=True)
class ClassifierNeed:
    """A classifier that rows ask for: the data set, the architecture's name, and how it is trained."""

    dataset: str
    architecture: str
    training: str

    @classmethod
    def of(cls, dataset: str, row: RowSpecification) -> ClassifierNeed:
        return cls(dataset, row.architecture, row.training)

    @property
    def name(self) -> str:
        """Such as cifar10-resnet62-fgsm."""
        return f"{Path(self.dataset).name}-{self.architecture}-{self.training}"

    @property
    def file_name(self) -> str:
        """What its file is called, such as cifar10-resnet62-fgsm.safetensors."""
        return f"{self.name}.safetensors"

    @property
    def shipped(self) -> Path | None:
        """Its file in the package, or None."""
        if self.dataset not in SHIPPED:
            return None  # a folder of images, whatever it is called
        normal = self.training == "normal" and self.architecture == SHIPPED_ARCHITECTURE
        return SHIPPED.get(self.dataset if normal else self.name)

    def find(self, folder: Path) -> Path | None:
        """Its file: that in the folder, or else the shipped one, or None."""
        path = folder / self.file_name
        return path if path.is_file() else self.shipped

    def check(self, path: Path) -> None:
        """ValueError where the notes of a classifier's file say that it was trained on another data set.

        Files are called by the last name of a folder of images, which several folders may share. Notes of a relative
        path, or none, leave open which one it was.
        """
        noted = read_notes(path).get("dataset")
        if not isinstance(noted, str) or (noted not in DATASETS and not os.path.isabs(noted)):
            return
        known = noted in DATASETS or self.dataset in DATASETS
        if noted != self.dataset if known else os.path.realpath(noted) != os.path.realpath(self.dataset):
            raise ValueError(
                f"{path} is a classifier of {noted}, expected one of {self.dataset}: keep the classifiers of each data "
                "set in a folder of their own (--classifiers), or move the file away"
            )

    def settings(self, budget: float) -> ClassifierSettings:
        """How it is trained in ``budget`` seconds. A defence is fine-tuned where a shipped classifier can be its start,
        which reaches further in the same time than random weights do.
        """
        changes: dict[str, Any] = {"budget": budget}
        if self.training != "normal":
            changes["defence"] = self.training
            if self.architecture == SHIPPED_ARCHITECTURE and self.dataset in SHIPPED:
                changes |= {"start": self.dataset, "learning_rate": FINE_TUNING_RATE}
        return ClassifierSettings(**changes)

    def train(
        self, root: str | os.PathLike[str] | None, folder: Path, budget: float, device: str, progress: bool
    ) -> Path:
        """Train it into the folder, or go on with a run that was killed. Returns its file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.file_name
        with join(device) as processes:
            train_classifier(
                self.dataset,
                self.architecture,
                root,
                path,
                settings=self.settings(budget),
                resume=checkpoint_path(path).exists() or log_path(path).exists(),
                progress=progress,
                processes=processes,
            )
        return path
