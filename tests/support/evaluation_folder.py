"""A small world to evaluate in: real images in class folders, tiny networks, and a table over them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from support.helpers import real_images, trained_model

from pxfast.classifiers import ResNetConfig, build, save_classifier
from pxfast.data.image_files import write_png
from pxfast.evaluation.results import Table
from pxfast.pixelcnn.files import save

TABLE = """
name = "small"
title = "A small table"
dataset = "{data}"
images = 12
attack_eps = [4, 12]

[source]
title = "a paper"
where = "Table 9"

[[columns]]
name = "clean"
label = "Clean"

[[columns]]
name = "rand"
label = "RAND"
attack = "rand"

[[columns]]
name = "fgsm"
label = "FGSM"
attack = "fgsm"

[[columns]]
name = "deepfool"
label = "DeepFool"
attack = "deepfool"
options = {{ steps = 5 }}

[[columns]]
name = "strongest"
label = "Strongest attack"
strongest = true

[[rows]]
name = "normal"
network = "ResNet"
technique = "Normal"
architecture = "resnet62"

[[rows]]
name = "squeezed"
network = "ResNet"
technique = "Feature Squeezing"
architecture = "resnet62"
defences = [{{ kind = "feature-squeezing" }}]

[[rows]]
name = "purified"
network = "ResNet"
technique = "Normal + PixelDefend"
architecture = "resnet62"
defences = [{{ kind = "purifier", eps = 16 }}]
published = {{ clean = [80, 70], fgsm = [50, 40] }}

[[rows]]
name = "bim"
network = "ResNet"
technique = "Adversarial BIM"
architecture = "resnet62"
training = "bim"
"""


@dataclasses.dataclass(frozen=True)
class World:
    """Paths: a folder of 8x8 images with classes 0..4, a folder of classifiers, a density model, and a table's file."""

    data: Path
    classifiers: Path
    model: Path
    table: Path

    def arguments(self, out: Path, *more: object) -> list[str]:
        """The command line that evaluates the table into ``out`` in shards of four images."""
        given = (
            self.table,
            "--out",
            out,
            "--classifiers",
            self.classifiers,
            "--model",
            self.model,
            "--batch-size",
            4,
            *more,
        )
        return ["evaluate", "table", *map(str, given)]


def make_world(folder: Path) -> World:
    """A world in this folder. The classifier is random, but for being sure of itself; the density model is trained."""
    images = real_images(1, (8, 8), 150)
    for part, chosen in (("test", images[:20]), ("train", images[20:])):
        for i, image in enumerate(chosen):
            place = folder / "data" / part / str(i % 5)
            place.mkdir(parents=True, exist_ok=True)
            write_png(image, place / f"{i:03d}.png")
    classifiers = folder / "classifiers"
    classifiers.mkdir()
    save_classifier(tiny_classifier(0), classifiers / "data-resnet62-normal.safetensors")
    save(trained_model((8, 8), 1, 8, 1), folder / "model.safetensors")
    (folder / "table.toml").write_text(TABLE.format(data=folder / "data"))
    return World(folder / "data", classifiers, folder / "model.safetensors", folder / "table.toml")


def tiny_classifier(seed: int):
    """A random ResNet of 8x8 images and five classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(ResNetConfig((8, 8), 1, (4, 6, 8), units=1, classes=5))
        with torch.no_grad():
            network.output.weight.mul_(20.0)
    return network.eval()


def entries(out: Path) -> dict[str, tuple[int, int]]:
    """The store's files by name, with what changes when one is written again."""
    files = (out / "store").glob("*/*.safetensors")
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def timeless(table: Table) -> dict[str, Any]:
    """A table without what differs from run to run: seconds and rates."""
    values = json.loads(json.dumps(dataclasses.asdict(table)))
    for cell in values["cells"]:
        del cell["seconds"]
    del values["rates"]
    return values
