"""Every command that writes: killed at any moment and started again, and started twice at once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.evaluation_folder import TABLE, World, make_world
from support.helpers import made_once, real_images, run_python
from support.report_folder import make_folder

from pxfast.data.image_files import write_png
from pxfast.pixelcnn.files import load_model
from pxfast.pixeldefend.detection import Detector

pytestmark = pytest.mark.process

PROGRAM = """
import json, sys
from pathlib import Path
from support.kills import check
from support.small_data import small_data_sets
words, again, base, repeatable, table = json.loads(sys.argv[1])
small_data_sets(table)
check(words, again, Path(base), repeatable=repeatable)
"""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Paths of what commands read: images in several forms, models, and an evaluation's table with its data."""

    folder: Path
    array: Path
    tensor: Path
    image: Path
    model: Path
    detector: Path
    world: World
    report: Path


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Inputs:
    def make(place: Path) -> None:
        (place / "world").mkdir()
        world = make_world(place / "world")
        images = real_images(1, (8, 8), 3)
        (place / "folder").mkdir()
        for i, image in enumerate(images):
            write_png(image, place / "folder" / f"{i}.png")
        write_png(images[0], place / "image.png")
        np.save(place / "array.npy", images.numpy())
        torch.save(images, place / "tensor.pt")
        detector = Detector(load_model(world.model))
        detector.fit(real_images(1, (8, 8), 40))
        detector.save(place / "detector.safetensors")
        make_folder(place / "report")

    place = made_once(tmp_path_factory, "kills", make)
    world = place / "world"
    table = tmp_path_factory.mktemp("table") / "table.toml"
    table.write_text(TABLE.format(data=world / "data"))
    return Inputs(
        place / "folder",
        place / "array.npy",
        place / "tensor.pt",
        place / "image.png",
        world / "model.safetensors",
        place / "detector.safetensors",
        World(world / "data", world / "classifiers", world / "model.safetensors", table),
        place / "report",
    )


def purify(source: str, out: str) -> Callable[[Inputs], list[object]]:
    return lambda x: ["purify", getattr(x, source), out, "--model", x.model, "--engine", "cpu", "--threads", 1]


def training(name: str, *words: object) -> Callable[[Inputs], list[object]]:
    options = [
        "--root",
        "-",
        "--device",
        "cpu",
        "--batch-size",
        8,
        "--threads",
        1,
        "--no-compile",
        "--precision",
        "fp32",
    ]
    return lambda x: [name, "fashion-mnist", *words, *options, "--out", "m.safetensors"]


def evaluation(x: Inputs, *words: object) -> list[object]:
    rest = ["--model", x.model, "--batch-size", 4, "--images", 4, "--threads", 1, "--classifiers", x.world.classifiers]
    return ["evaluate", *words, *rest, "--out", "out"]


# By name: the command, which writes to the current folder.
COMMANDS: dict[str, Callable[[Inputs], list[object]]] = {
    "purify a folder": purify("folder", "out"),
    "purify an array": purify("array", "out.npy"),
    "purify a tensor": purify("tensor", "out.pt"),
    "purify an image": purify("image", "out.png"),
    "purify a folder, with a grid": lambda x: [*purify("folder", "out")(x), "--grid", "g.png"],
    "sample": lambda x: ["sample", 2, "--model", x.model, "--out", "s.npy", "--grid", "s.png", "--threads", 1],
    "attack": lambda x: [
        *("attack", x.world.data / "test", "--attack", "fgsm", "--out", "a.npy", "--threads", 1),
        *("--classifier", x.world.classifiers / "data-resnet62-normal.safetensors"),
    ],
    "certify": lambda x: [
        *("certify", x.world.data / "test", "--guess", "midpoints", "--width", 130, "--out", "c.json"),
        *("--curve", "c.svg", "--page", "c.html", "--threads", 1),
        *("--classifier", x.world.classifiers / "data-resnet62-normal.safetensors"),
    ],
    "bpd": lambda x: ["bpd", x.array, "--model", x.model, "--out", "bits.json", "--batch-size", 2],
    "detect": lambda x: [
        *("detect", x.folder, x.array, "--model", x.model, "--out", "p.tsv", "--batch-size", 2),
        *("--detector", x.detector, "--alpha", 0.1),
    ],
    "train": training("train", "--preset", "small", "--filters", 2, "--resnets", 1, "--epochs", 0.5),
    "train-classifier": training("train-classifier", "resnet62", "--epochs", 0.5),
    "train-adp": training("train-adp", "--preset", "small", "--ngf", 4, "--epochs", 0.5),
    "evaluate table": lambda x: evaluation(
        x, "table", x.world.table, "--no-train", "--columns", "clean,fgsm,strongest"
    ),
    "evaluate figures": lambda x: evaluation(
        x,
        *("figures", "--dataset", "fashion-mnist", "--columns", "rand"),
        *("--train-images", 20, "--lbfgs-images", 0),
    ),
    "figures density": lambda x: [
        *("figures", "density", x.world.data, "--model", x.model, "--images", 4, "--train-images", 20),
        *("--lbfgs-images", 0, "--out", "out", "--threads", 1),
    ],
    "report": lambda x: ["report", x.report, "--out", "page.html"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_any_moment_and_started_again_and_twice_at_once(name: str, inputs: Inputs, tmp_path: Path) -> None:
    """The next run ends as an undisturbed one, and nothing else is left; of two at once one wins, the other says why
    it does not.
    """
    words = [*map(str, COMMANDS[name](inputs)), *([] if name == "report" else ["--quiet"])]
    again = [*words, "--resume"] if name.startswith("train") else words
    given = json.dumps([words, again, str(tmp_path), name.startswith("evaluate"), str(inputs.world.table)])
    run_python(PROGRAM, given, OMP_NUM_THREADS="1")
