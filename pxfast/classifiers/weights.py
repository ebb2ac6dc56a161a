"""Classifier files: safetensors with architecture and configuration in the metadata. Nothing is ever unpickled.

Weights of convolutions and of linear layers are stored in bf16; batch normalisation and biases in fp32.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..base.checks import check_flag, check_instance, check_path, notes_json
from ..base.files import output_files
from ..base.records import shown
from ..tensors.safetensors import floating_state, load_network, metadata_record, read_header, stored_tensors
from ..tensors.safetensors import read_notes as notes_in
from ..tensors.shipped import Shipped
from .architectures import KINDS, build, kind_of
from .classifier import Classifier, ClassifierConfig

FORMAT = "pxfast-classifier"


def save_classifier(
    model: Classifier, path: str | os.PathLike[str], *, notes: dict[str, Any] | None = None, force: bool = False
) -> None:
    """Write ``model`` to the classifier file ``path``, whole or not at all.

    notes: JSON-able facts kept in the metadata (how it was trained, its measured accuracy). Raises TypeError for
    others, and FileExistsError when ``path`` exists and ``force`` is off.
    """
    check_instance("model", model, Classifier)
    check_path("path", path)
    metadata = {
        "format": FORMAT,
        "architecture": kind_of(model.config),
        "config": json.dumps(dataclasses.asdict(model.config)),
        "notes": notes_json(notes),
    }
    with output_files(path, force=check_flag("force", force)) as (temporary,):
        save_file(stored_tensors(model), temporary, metadata=metadata)


def read_notes(name_or_path: str | os.PathLike[str]) -> dict[str, Any]:
    """The notes of a classifier file: how it was trained and its measured ``test_accuracy``.

    Raises what :func:`load_classifier` raises.
    """
    path = SHIPPED.path(name_or_path)
    return notes_in(read_header(path, FORMAT).metadata, path)


def runs_in(notes: dict[str, Any]) -> list[dict[str, Any]]:
    """The training runs that a classifier file's notes tell of, oldest first: settings, steps and seconds of each."""
    earlier = notes.get("earlier_runs")
    last = {key: notes[key] for key in ("training", "steps", "seconds") if key in notes}
    return [*(earlier if isinstance(earlier, list) else []), *([last] if last else [])]


def _config(metadata: dict[str, str], path: Path) -> ClassifierConfig:
    kind = metadata.get("architecture", "none")
    if kind not in KINDS:
        raise ValueError(f"{path}: unknown classifier architecture {shown(kind)}; known: {', '.join(KINDS)}")
    return metadata_record(KINDS[kind][1], metadata, path, "classifier configuration")


def _read(path: Path) -> Classifier:
    header = read_header(path, FORMAT)
    config = _config(header.metadata, path)
    return load_network(header, config.layers, lambda: build(config), floating_state).eval()


# The normal ResNet-62 of a data set has its name. The others are called as the evaluation calls their files; those
# called cellsW were fine-tuned on the midpoints of cells of W grey levels, for certificates.
TRAINED = (
    "cifar10-resnet62-fgsm",
    "cifar10-resnet62-bim",
    "cifar10-resnet62-label-smoothing",
    "cifar10-resnet62-cells132",
    "fashion-mnist-vgg16-normal",
    "fashion-mnist-resnet62-fgsm",
    "fashion-mnist-resnet62-bim",
    "fashion-mnist-resnet62-label-smoothing",
    "fashion-mnist-resnet62-cells32",
    "fashion-mnist-resnet62-cells64",
    "fashion-mnist-resnet62-cells132",
)
SHIPPED = Shipped(
    "classifier",
    Classifier,
    {name: f"{name}-resnet62.safetensors" for name in ("cifar10", "fashion-mnist")}
    | {name: f"{name}.safetensors" for name in TRAINED},
    _read,
    lambda path: _config(read_header(path, FORMAT).metadata, path),
)


def load_classifier(name_or_path: str | os.PathLike[str]) -> Classifier:
    """A classifier in eval mode, fp32, on the CPU.

    name_or_path: the name of a shipped one, or the path of a file. 'cifar10' and 'fashion-mnist' are the normal
    ResNets. Others are called by data set, architecture and training, such as 'fashion-mnist-resnet62-fgsm': those of
    the paper's tables, and for :func:`pxfast.certify` on midpoints 'cifar10-resnet62-cells132' of width=132 and
    'fashion-mnist-resnet62-cells32', '-cells64' and '-cells132'.
    Raises ValueError for an unknown name and for a truncated or foreign file, FileNotFoundError for a path that does
    not exist, TypeError for what is neither. Nothing is unpickled.
    """
    return SHIPPED.load(name_or_path)
