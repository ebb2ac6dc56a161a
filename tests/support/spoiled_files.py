"""A program, ``python -m support.spoiled_files FOLDER [SEED [TIMES]]``: spoils every kind of file that pxfast reads.

Each spoiled file is read, with five seconds and 1 GiB of memory more than the program had before. It prints JSON: how
many files of each kind were read and how many refused, the seconds of the slowest, and every problem: an exception
other than ValueError, TypeError, FileNotFoundError or FileExistsError, one that does not name the file, or one for want
of memory.
"""

from __future__ import annotations

import collections
import dataclasses
import faulthandler
import json
import os
import pickle
import random
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from support.helpers import random_model, real_images
from support.small_training import CONFIG, SETTINGS
from support.spoiling import Spoil, anywhere, json_text, png_chunk, safetensors_header, toml_text, zip_member

from pxfast.adp.files import load_score_network, read_score_metadata, save_score_network
from pxfast.adp.score_network import ScoreNetwork, ScoreNetworkConfig
from pxfast.adp.training import ScoreSettings, ScoreTrainer, read_score_settings
from pxfast.attacks.result import AttackResult
from pxfast.attacks.resumable import read_part, write_part
from pxfast.base import durations
from pxfast.base.parts import Parts
from pxfast.classifiers import ResNetConfig, VGGConfig, WideResNetConfig, build
from pxfast.classifiers.training import ClassifierSettings, ClassifierTrainer
from pxfast.classifiers.weights import load_classifier, read_notes, save_classifier
from pxfast.cli import demonstration
from pxfast.cli.rows import Rows
from pxfast.data.datasets import load_dataset
from pxfast.data.image_decoding import IMAGE_SUFFIXES
from pxfast.data.image_files import open_collection
from pxfast.evaluation.report.page import render_report
from pxfast.evaluation.results import Cell, Column, Figure, Row, Table, write_figure, write_table
from pxfast.evaluation.specification import load_table
from pxfast.kernels import trust
from pxfast.kernels.launch import Tile
from pxfast.kernels.tiles import dump, read_tiles
from pxfast.pixelcnn.files import load_model, read_metadata, save
from pxfast.pixelcnn.network import PixelCNN
from pxfast.pixelcnn.shipped import SHIPPED
from pxfast.pixelcnn.training import Trainer, read_settings
from pxfast.pixeldefend.detection import Detector
from pxfast.tensors.pretrained import CONFIG as CONFIG_JSON
from pxfast.tensors.pretrained import WEIGHTS
from pxfast.tensors.store import Entry, Store
from pxfast.training import checkpoints
from pxfast.training.log import TrainingLog, has_checkpoint

SECONDS = 5
MEMORY = 1 << 30
NOT_FILES = 5  # what stands in a file's place: nothing, a folder, a pipe, an empty file, a pickle


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file. path: a good one. read: reads it as pxfast does. spoil: ways to spoil what is inside; its bytes
    are spoiled anyway. named: what an error says, if not the file's name.
    """

    path: Path
    read: Callable[[Path], object]
    spoil: tuple[Spoil, ...] = ()
    named: str = ""


def read_all(path: Path) -> None:
    for _ in open_collection(path).batches(2):
        pass


def image_kinds(folder: Path) -> list[Kind]:
    (image,) = real_images(3, (12, 16), 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = []
    for suffix in IMAGE_SUFFIXES:
        path = folder / f"image{suffix}"
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        if suffix in (".pgm", ".pbm"):
            picture = picture.convert("L" if suffix == ".pgm" else "1")
        options = {"exif": exif} if suffix in (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp") else {}
        picture.save(path, **options)
        kinds.append(Kind(path, read_all, (png_chunk,) if suffix == ".png" else ()))
    return kinds


def array_kinds(folder: Path) -> list[Kind]:
    images = real_images(3, (8, 8), 3)
    np.save(folder / "images.npy", images.numpy())
    np.save(folder / "floats.npy", (images / 255).numpy())
    torch.save(images, folder / "images.pt")
    torch.save((images / 255).half(), folder / "half.pt")
    torch.save(images, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    ways: dict[str, tuple[Spoil, ...]] = {"images.pt": (zip_member,), "half.pt": (zip_member,)}
    names = ("images.npy", "floats.npy", "images.pt", "half.pt", "legacy.pt")
    return [Kind(folder / name, read_all, ways.get(name, ())) for name in names]


def weight_kinds(folder: Path) -> list[Kind]:
    def header(name: str, *reads: Callable[[Path], object]) -> list[Kind]:
        return [Kind(folder / name, read, (safetensors_header,)) for read in reads]

    model = random_model((8, 8), filters=4, mixtures=2)
    save(model, folder / "model.safetensors", notes={"parts": [{"steps": 3}]})
    kinds = header("model.safetensors", load_model, read_metadata)
    model.save_pretrained(folder / "pretrained")
    for name, way in ((WEIGHTS, safetensors_header), (CONFIG_JSON, json_text)):
        kinds.append(Kind(folder / "pretrained" / name, lambda path: PixelCNN.from_pretrained(path.parent), (way,)))
    configs = {
        "resnet": ResNetConfig((8, 8), 1, (4, 4, 4), units=1),
        "vgg": VGGConfig((8, 8), 1, ((4, 1), (4, 1)), 8),
        "wide": WideResNetConfig((8, 8), 1, depth=10, widen=1),
    }
    for name, config in configs.items():
        save_classifier(build(config), folder / f"{name}.safetensors", notes={"test_accuracy": 0.5})
        kinds += header(f"{name}.safetensors", load_classifier)
    kinds += header("resnet.safetensors", read_notes)
    save_score_network(ScoreNetwork(ScoreNetworkConfig((8, 8), 1, ngf=2)), folder / "score.safetensors")
    kinds += header("score.safetensors", load_score_network, read_score_metadata)
    Detector(model).fit(real_images(1, (8, 8), 5)).save(folder / "detector.safetensors")
    kinds += header("detector.safetensors", lambda path: Detector.load(path, model))
    shipped = Path(demonstration.__file__).parents[1] / "assets" / demonstration.ASSETS[demonstration.MODEL]
    (folder / "demo.safetensors").write_bytes(shipped.read_bytes())

    def read_demo(path: Path) -> None:
        demonstration.ASSETS[demonstration.MODEL] = str(path)
        demonstration.load_demo_images()

    return kinds + header("demo.safetensors", read_demo)


def training_kinds(folder: Path) -> list[Kind]:
    images, ways = real_images(1, (8, 8), 16), (safetensors_header,)
    settings = dataclasses.replace(SETTINGS, batch_size=8, optimiser="muon")
    trainer = Trainer(CONFIG, settings, images)
    trainer.initialise()
    trainer.train_step()
    trainer.history.append({"step": 1, "train_bits_per_dim": 8.0})
    trainer.save(folder / "model.checkpoint.safetensors")
    scores = ScoreTrainer(ScoreNetworkConfig((8, 8), 1, ngf=2), ScoreSettings(batch_size=8, precision="fp32"), images)
    scores.train_step()
    scores.save(folder / "score.checkpoint.safetensors")
    config = ResNetConfig((8, 8), 1, (4, 4, 4), units=1)
    classifiers = ClassifierTrainer(
        config, ClassifierSettings(batch_size=8, precision="fp32"), images, torch.zeros(16, dtype=torch.int64)
    )
    classifiers.train_step()
    classifiers.save(folder / "classifier.checkpoint.safetensors")
    checkpoints.SINGLE_FILE_BYTES = checkpoints.SHARD_BYTES = 20_000
    scores.save(folder / "large.safetensors")
    shard = min(folder.glob("large.a-*"))

    log = TrainingLog(folder / "model.safetensors", own=False, force=True)
    for step in range(1, 5):
        log.write(step, {"seconds": 0.5 * step, "train_loss": 1.0 / step})
    log.close()

    def read_shards(path: Path) -> None:
        scores.restore(folder / "large.safetensors")

    return [
        Kind(folder / "model.checkpoint.safetensors", trainer.restore, ways),
        Kind(folder / "model.checkpoint.safetensors", read_settings, ways),
        Kind(folder / "score.checkpoint.safetensors", scores.restore, ways),
        Kind(folder / "score.checkpoint.safetensors", read_score_settings, ways),
        Kind(folder / "classifier.checkpoint.safetensors", classifiers.restore, ways),
        Kind(folder / "large.safetensors", scores.restore, ways, named="large."),
        Kind(shard, read_shards, ways, named="large."),
        Kind(log.path, has_checkpoint),
    ]


def attack_kinds(folder: Path) -> list[Kind]:
    images, wrong = real_images(1, (8, 8), 3), torch.tensor([True, False, True])
    result = AttackResult(images, *(wrong.clone() for _ in range(4)), seconds=0.5)
    write_part(torch.arange(3), result, folder / "part.safetensors")
    parts = Parts(folder / "attack.npy", {"attack": "fgsm", "eps": 8, "options": {}})
    parts.open(force=False)
    parts.promise([folder / "part.safetensors"])
    rows = Rows(None, Parts(folder / "bpd.tsv", {"model": "m"}))
    rows.parts.open(force=False)
    rows._keep([[3.5, True], [2.5, False]], 0)

    return [
        Kind(folder / "part.safetensors", read_part, (safetensors_header,)),
        Kind(parts.folder / "settings.json", lambda path: parts.open(force=False), (json_text,), named="npy.parts"),
        Kind(parts.folder / "outputs.json", lambda path: parts.published([folder / "part.safetensors"]), (json_text,)),
        Kind(rows.parts.folder / "000000000000.rows", lambda path: rows._kept(), (json_text,)),
    ]


def evaluation_kinds(folder: Path) -> list[Kind]:
    tables = Path(sys.modules[load_table.__module__].__file__ or "").with_name("tables")
    (folder / "mine.toml").write_bytes((tables / "table2.toml").read_bytes())
    (folder / "adaptive.toml").write_bytes((tables / "adaptive.toml").read_bytes())
    store, recipe = Store(folder / "store"), {"step": "attack"}
    store.write(recipe, Entry({"values": torch.arange(6)}, 0.5))
    table = Table(
        name="small",
        title="A table",
        caption="",
        dataset="cifar10",
        images=500,
        source={"title": "a paper", "where": "Table 2"},
        columns=[Column("clean", "Clean"), Column("fgsm", "FGSM", "a note")],
        rows=[Row("normal", "ResNet", "Normal"), Row("bim", "ResNet", "BIM", "no classifier")],
        cells=[
            Cell.counted("normal", "clean", None, 450, 500, published=92),
            Cell.counted("normal", "fgsm", 8, 71, 500, seconds=12.5, published=15.0),
        ],
        models=[
            {"role": "density model", "name": "m", "sha256": "ab", "notes": {"test_bits_per_dim": 3.0, "steps": 7}},
            {"role": "classifier", "name": "c", "sha256": "cd", "rows": ["normal"], "notes": {"test_accuracy": 0.9}},
        ],
        settings={"attack eps": [8], "attacks": {"fgsm": {"attack": "fgsm", "options": {}}}, "defences": {}},
        machine={"cpu": "a processor", "cores": 2},
        rates=[{"what": "attack by fgsm", "images_per_second": 3.5, "images": 500}],
        finished=False,
    )
    out = folder / "out"
    written = write_table(out, table)
    (out / "figures").mkdir()
    Image.new("L", (4, 4)).save(out / "figures" / "roc.png")
    source = {"title": "a paper", "where": "Figure 3"}
    roc = Figure("roc", "ROC", "", "cifar10", source, "roc.png", "curves", {}, {"AUC": 0.9})
    figure = write_figure(out, roc)
    return [
        Kind(folder / "mine.toml", load_table, (toml_text,)),
        Kind(folder / "adaptive.toml", load_table, (toml_text,)),
        Kind(store.path(recipe), lambda path: store.read(recipe), (safetensors_header,)),
        Kind(written, lambda path: render_report(out), (json_text,), named=str(out)),
        Kind(figure, lambda path: render_report(out), (json_text,), named=str(out)),
    ]


def kernel_kinds(folder: Path) -> list[Kind]:
    (folder / "tiles.json").write_text(dump({"sm_90": {"bf16 row": Tile(128, 64, 64, 8, 3)}}))
    trust.record_file = lambda: folder / "cache" / "trials.json"
    trust._write_record({"triton, a GPU": None, "cuda, a GPU": "wrong"})
    durations.record_file = lambda: folder / "cache" / "durations.json"
    durations.keep_time("compiling a step", 290.5)
    return [
        Kind(folder / "tiles.json", read_tiles, (json_text,)),
        Kind(durations.record_file(), lambda path: durations.last_time("compiling a step"), (json_text,)),
        Kind(trust.record_file(), lambda path: trust._read_record(), (json_text,)),
    ]


def dataset_kinds(folder: Path) -> list[Kind]:
    raw = folder / "root" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    images = real_images(1, (28, 28), 3).numpy().tobytes()
    for part in ("train", "t10k"):
        head = b"\0\0\x08\x03" + b"".join(side.to_bytes(4, "big") for side in (3, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x03\0\1\2")

    def read(path: Path) -> None:
        load_dataset("fashion-mnist", folder / "root", train=True)

    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    return [Kind(raw / name, read, named=str(folder / "root")) for name in names]


class Bomb:
    """Unpickling this makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.trace,)


def put(kind: Kind, index: int, good: bytes, draw: random.Random, trace: Path) -> None:
    """The spoiled file number ``index`` in the place of the good one."""
    kind.path.unlink()
    if index == 0:
        return
    if index == 1:
        kind.path.mkdir()
    elif index == 2:
        os.mkfifo(kind.path)
    elif index == 3:
        kind.path.touch()
    elif index == 4:
        if kind.path.suffix == ".pt":
            torch.save([torch.zeros(3), Bomb(trace)], kind.path)
        else:
            kind.path.write_bytes(pickle.dumps(Bomb(trace)))
    else:
        spoil = draw.choice((anywhere, *kind.spoil, *kind.spoil))
        kind.path.write_bytes(spoil(draw, good))


def attempt(kind: Kind) -> str | None:
    """'read', 'refused', or what is wrong with the way in which it was refused."""
    try:
        kind.read(kind.path)
    except (ValueError, TypeError, FileNotFoundError, FileExistsError) as error:
        message = str(error)
        if (kind.named or kind.path.name) not in message:
            return f"does not name the file: {type(error).__name__}: {message[:300]}"
        if "memory" in message.lower() or "MemoryError" in message:
            return f"took too much memory: {message[:300]}"
        return "refused" if len(message) < 2000 else f"says too much: {message[:300]}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:300]}\n{''.join(traceback.format_tb(error.__traceback__)[-4:])}"
    return "read"


def main(folder: Path, seed: int = 0, times: int = 12) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    kinds = [
        kind
        for make in (
            *(image_kinds, array_kinds, weight_kinds, training_kinds),
            *(attack_kinds, evaluation_kinds, kernel_kinds, dataset_kinds),
        )
        for kind in make(folder)
    ]
    shipped = SHIPPED.load("fashion-mnist")  # what is read once by everybody is not a spoiled file's memory
    if problems := attempt_all(kinds):
        return {"outcomes": {}, "problems": problems, "slowest": (0.0, "")}
    trace = folder / "unpickled"
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    outcomes: dict[str, collections.Counter[str]] = {}
    slowest = (0.0, "")
    for number, kind in enumerate(kinds):
        draw = random.Random(f"{seed} {number} {kind.path.name}")
        good = kind.path.read_bytes()
        counts = outcomes.setdefault(str(kind.path.relative_to(folder)), collections.Counter())
        for index in range(NOT_FILES + times * (1 + len(kind.spoil))):
            put(kind, index, good, draw, trace)
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            started = time.perf_counter()
            outcome = attempt(kind)
            slowest = max(slowest, (time.perf_counter() - started, f"{kind.path.name} {index}"))
            faulthandler.cancel_dump_traceback_later()
            counts[outcome if outcome in ("read", "refused") else "problem"] += 1
            if outcome not in ("read", "refused"):
                problems.append(f"{kind.path.name} {number} {index} {outcome}")
            if kind.path.is_dir():
                kind.path.rmdir()
            kind.path.parent.mkdir(exist_ok=True)
            kind.path.unlink(missing_ok=True)
            kind.path.write_bytes(good)
    if trace.exists():
        problems.append("something was unpickled")
    assert shipped is not None
    return {"outcomes": outcomes, "problems": problems, "slowest": slowest}


def attempt_all(kinds: list[Kind]) -> list[str]:
    """What is wrong with the good files."""
    return [f"{kind.path.name}: {outcome}" for kind in kinds if (outcome := attempt(kind)) != "read"]


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
