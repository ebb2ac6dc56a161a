"""Data sets and networks so small that a command trains on them within a fraction of a second."""

from __future__ import annotations

import torch
from support.helpers import real_images

from pxfast.adp import training as adp_training
from pxfast.classifiers import ResNetConfig
from pxfast.classifiers import training as classifier_training
from pxfast.cli import evaluate
from pxfast.data import datasets
from pxfast.pixelcnn import training as pixelcnn_training


def small_data_sets(table: str) -> None:
    """From now on, in this process, fashion-mnist is 32 images of 8x8 pixels, and networks are made for these.

    Other data sets stay what they are. Trainings keep a checkpoint after each step. table: the file of a table, from
    whose work ``evaluate figures`` draws.
    """
    evaluate.FIGURES["fashion-mnist"] = table
    load = datasets.load_dataset
    images = real_images(1, (8, 8), 32)
    labels = torch.arange(32) % 5

    def load_dataset(name, root=None, *, train):
        return (images, labels) if name == "fashion-mnist" else load(name, root, train=train)

    datasets.load_dataset = load_dataset
    classifier_training.load_dataset = load_dataset
    classifier_training.architecture_for = lambda arch, dataset: ResNetConfig((8, 8), 1, (4, 6, 8), units=1, classes=5)
    datasets.DATASETS["fashion-mnist"] = (1, 8, 8)
    for module, name in (
        (pixelcnn_training, "train"),
        (adp_training, "train_score_network"),
        (classifier_training, "train_classifier"),
    ):
        setattr(module, name, _keeping_each_step(getattr(module, name)))


def _keeping_each_step(train):
    return lambda *arguments, **options: train(*arguments, **{**options, "checkpoint_interval": 0.0})
