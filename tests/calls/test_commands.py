"""Wrong commands: exit code 2, one line that says what is wrong, no traceback, and nothing written."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.helpers import random_model

import pxfast
from pxfast.data.image_files import write_png

# a right beginning of each command, but for what it works on: {images} are images, {model} a model of their shape,
# {pictures} a folder of 28x28 images, {classes} two of them, {empty} an empty folder, {garbage} a file of nobody's
COMMANDS = {
    "purify": "purify {images} out.npy --model {model}",
    "bpd": "bpd {images} --model {model}",
    "detect": "detect {images} --model {model}",
    "sample": "sample 1 --model {model} --out a.npy",
    "attack": "attack {pictures} --out a.npy",
    "certify": "certify {classes} --out a.json",
    "train": "train {pictures} --out a.safetensors",
    "train-classifier": "train-classifier {classes} resnet62 --out a.safetensors",
    "train-adp": "train-adp {pictures} --out a.safetensors",
    "table1": "evaluate table1 --root {empty} --out out",
    "reproduction": "evaluate reproduction --root {empty} --out out",
    "adaptive": "evaluate adaptive --root {empty} --out out",
    "table": "evaluate table {table} --root {empty} --out out",
    "classifier": "evaluate classifier support.own_classifiers:small --dataset {classes} --out out",
    "figures": "evaluate figures --root {empty} --out out",
    "density": "figures density --root {empty} --out out",
    "report": "report {empty}",
    "convert": "convert openai-tf {garbage} out.safetensors",
    "app": "app --no-browser",
    "info": "info",
    "bench": "bench",
    "tune": "tune",
    "demo": "demo",
}
ONE_BATCH = "expected at least one batch of 5 images, got 3"
EVALUATE = "table1 reproduction adaptive table figures"
TRAIN = "train train-adp train-classifier"
# options that several commands have, a wrong value, and what is said of it
SHARED = [
    (
        f"classifier purify sample certify {EVALUATE} bench tune convert {TRAIN}",
        "--precision fp64",
        "precision must be one of",
    ),
    (
        f"classifier purify sample certify {EVALUATE} density",
        "--engine abacus",
        "unknown engine 'abacus'; known: auto, cuda, triton",
    ),
    (
        f"classifier purify bpd detect sample attack certify demo app density {EVALUATE} {TRAIN}",
        "--device tpu",
        "device must be auto, cpu, cuda",
    ),
    (
        f"classifier purify bpd detect sample attack certify demo density {EVALUATE} {TRAIN}",
        "--device cuda:99",
        "device 'cuda:99' was asked",
    ),
    (
        f"classifier purify bpd detect sample attack demo app bench density {EVALUATE} {TRAIN}",
        "--threads 0",
        "'--threads'",
    ),
    (f"purify bench {TRAIN}", "--threads two", "'--threads'"),
    (f"purify bench {TRAIN}", "--threads 99999999999", "65536"),
    (f"classifier purify bpd detect bench {EVALUATE} {TRAIN}", "--batch-size 0", "'--batch-size'"),
    (f"purify tune {TRAIN}", "--batch-size 1.5", "'--batch-size'"),
    (f"classifier sample attack density {TRAIN}", "--seed a", "'--seed'"),
    (f"classifier sample attack density {TRAIN}", "--seed -1", "seed must be an integer in 0.."),
    ("purify attack", "--eps 256", "eps must be an integer in 0..255, got 256"),
    ("purify attack", "--eps -1", "eps must be an integer in 0..255, got -1"),
    ("purify attack", "--eps 0.5", "'--eps'"),
    (
        f"classifier purify bpd detect sample density {EVALUATE}",
        "--model nothing",
        "unknown model 'nothing'; shipped: cifar10",
    ),
    ("purify bpd detect sample density", "--model {garbage}", "garbage.safetensors"),
    ("purify bpd detect sample density", "--model {empty}", "{empty}"),
    ("attack certify density", "--classifier nothing", "unknown classifier 'nothing'; shipped: cifar10"),
    ("purify attack", "--defence nothing", "unknown defence 'nothing'; known: purifier, adp, feature-squeezing"),
    ("purify attack", "--defence adp:sigma=16", "sigma must be a number in [0, 1], got 16"),
    ("purify attack", "--defence adp:runs=0", "runs must be an integer in 1..10000, got 0"),
    ("attack", "--defence feature-squeezing:colours=1", "colours must be an integer in 2..65536, got 1"),
    ("purify attack", "--defence purifier:eps=300", "eps must be an integer in 0..255, got 300"),
    (f"classifier attack certify density {EVALUATE}", "--images 0", "'--images'"),
    (EVALUATE.replace("figures", ""), "--columns nothing", "has no column 'nothing'"),
    (f"{EVALUATE} density".replace("density", ""), "--columns ,", "expected names such as a,b, got ','"),
    (EVALUATE.replace("figures", ""), "--rows nothing", "the table has no row 'nothing'"),
    (EVALUATE, "--runner cloud", "unknown runner 'cloud'; known: local, ray"),
    (EVALUATE.replace("figures", ""), "--train-budget soon", "budget must be a duration such as 45m"),
    (EVALUATE.replace("figures", ""), "--train-budget 0s", "train_budget must be a number in (0, inf)"),
    ("figures density", "--lbfgs-images -1", "'--lbfgs-images'"),
    ("figures density", "--lbfgs-starts 0", "'--lbfgs-starts'"),
    ("figures density", "--train-images 0", "'--train-images'"),
    (TRAIN, "--epochs 0", "epochs must be a number in (0, inf), got 0.0"),
    (TRAIN, "--epochs nan", "epochs must be a number in (0, inf), got nan"),
    (TRAIN, "--epochs -1", "epochs must be a number in (0, inf), got -1.0"),
    (TRAIN, "--budget soon", "budget must be a duration such as 45m, 2h or 1h30m, got 'soon'"),
    (TRAIN, "--budget 0s", "budget must be a number in (0, inf), got 0"),
    (TRAIN, "--learning-rate 0", "learning_rate must be a number in (0, inf), got 0.0"),
    (TRAIN, "--learning-rate inf", "learning_rate must be a number in (0, inf), got inf"),
    (TRAIN, "--seed 1099511627776", "seed must be an integer in 0..1099511627775, got 1099511627776"),
    ("train train-adp", "--ema-decay 1", "ema_decay must be a number in [0, 1), got 1.0"),
    ("train train-adp", "--gradient-clip -1", "gradient_clip must be a number in [0, inf), got -1.0"),
    ("train train-adp", "--warmup -1", "warmup must be an integer of at least 0, got -1"),
    ("train train-adp", "--preset huge", "unknown preset 'huge'; known: "),
    (TRAIN, "--start nothing", "unknown (model|score network|classifier) 'nothing'; shipped: cifar10"),
    ("train train-adp", "--start {garbage}", "garbage.safetensors"),
    (" ".join(COMMANDS), "--strength 3", "No such option: --strength"),
]
# the rest: a whole command, and what is said of it
ALONE = [
    ("fly", "No such command 'fly'"),
    ("evaluate", "pxfast evaluate needs a command: table1, table2"),
    ("evaluate table3 --out out", "No such command 'table3'"),
    ("figures", "pxfast figures needs a command: density"),
    ("convert", "pxfast convert needs a command: openai-tf"),
    ("purify", "Missing argument 'IN'"),
    ("purify {images}", "Missing argument 'OUT'"),
    ("purify {images} out.npy more", "unexpected extra argument"),
    ("purify no-such.npy out.npy", "no-such.npy"),
    ("purify {empty} out", "no image"),
    ("purify {garbage} out.npy", "garbage.safetensors"),
    ("purify {text} out.npy", "text.npy"),
    ("purify {images} out.png --model {model}", "out.png"),
    ("purify {images} no/out.npy --model {model}", "no such folder"),
    ("purify {images} {images} --model {model}", "exists"),
    ("purify {images} out.npy --model fashion-mnist", "takes images of shape (C, H, W) = (1, 28, 28), got (1, 8, 8)"),
    ("purify {images} out.npy", "no shipped model takes images of shape (1, 8, 8)"),
    ("purify {images} out.npy --model {model} --adaptive pixel", "adaptive must be None, 'image' or 'sub-pixel'"),
    ("purify {images} out.npy --model {model} --threshold 3", "means nothing without adaptive"),
    (
        "purify {images} out.npy --model {model} --adaptive image --threshold -1",
        "threshold must be a number in [0, inf)",
    ),
    (
        "purify {images} out.npy --model {model} --adaptive image --threshold nan",
        "threshold must be a number in [0, inf)",
    ),
    ("purify {images} out.npy --defence adp --defence purifier --eps 4", "which defence's is --eps?"),
    ("purify {images} out.npy --defence adp:sigma", "expected NAME=VALUE"),
    ("purify {images} out.npy --defence adp:eps=4", "expected NAME=VALUE with one of the names sigma"),
    ("purify {images} out.npy --defence adp:seed=1.5", "seed must be an integer in 0.."),
    ("purify {images} out.npy --defence feature-squeezing:padding=zero", "padding must be one of symmetric, reflect"),
    ("bpd", "Missing argument 'IN'"),
    ("bpd {empty}", "no image"),
    ("bpd {text}", "text.npy"),
    ("bpd no-such.png", "no-such.png"),
    ("bpd {images}", "no shipped model takes images of shape (1, 8, 8)"),
    ("detect", "Missing argument 'FILES...'"),
    ("detect {images} --model {model} --alpha 0", "alpha"),
    ("detect {images} --model {model} --alpha nan", "alpha"),
    ("detect {images} --model {model} --alpha often", "'--alpha'"),
    ("detect {images} --model {model}", "fit(train_images) first, in Python; its save(FILE) makes what pxfast detect"),
    ("sample 0 --out a.npy", "Invalid value for 'N'"),
    ("sample many --out a.npy", "Invalid value for 'N'"),
    ("sample 1", "nothing would be written: pass --grid, --out or both"),
    ("sample 1 --out a.txt", "a.txt"),
    ("sample 1 --grid a.npy", "a.npy"),
    ("sample 1 --out no/a.npy", "no such folder"),
    ("sample 1 --out a.npy --temperature 0", "temperature must be a number in [0.001, 4], got 0.0"),
    ("sample 1 --out a.npy --temperature nan", "temperature must be a number in [0.001, 4], got nan"),
    ("sample 1 --out a.npy --first -1", "first must be an integer in 0.."),
    ("sample 1 --out a.npy --per-row 0", "'--per-row'"),
    ("sample 1 --out a.npy --enlarge 0", "'--enlarge'"),
    ("sample 1 --out a.npy --per-row 1", "--per-row is of --grid, which is not given"),
    ("sample 1 --out a.npy --enlarge 2", "--enlarge is of --grid, which is not given"),
    ("attack --out a.npy", "Missing argument 'DATASET'"),
    ("attack {pictures}", "Missing option '--out'"),
    ("attack {pictures} --out a.png", "a.png: a .png holds one image, and there are 4"),
    ("attack {pictures} --out a.jpg", "suffix .npy or .png, never a lossy format"),
    ("attack {pictures} --out {pictures} --force", "is the input folder"),
    ("attack {classes} --out {classes}/cat --force", "lies in the input folder"),
    ("attack {classes}/cat --out {classes} --force", "is a folder that the input lies in"),
    ("purify {pictures}/0.png {pictures} --force", "is a folder that the input lies in"),
    ("attack {pictures} --out a.npy --grid a.npy", "a.npy: this output must have the suffix .png"),
    ("attack {pictures} --out a.npy --grid no/a.png", "no such folder"),
    ("purify {images} out.jpg --model {model}", "out.jpg: this output must have the suffix"),
    ("purify {images} out.nyp --model {model}", "out.nyp: this output must have the suffix"),
    ("purify {images} out.npy --model {model} --grid out.jpg", "out.jpg: this output must have the suffix .png"),
    ("attack {pictures} --out no/a.npy", "no such folder"),
    ("attack {pictures} --out a.npy --attack magic", "unknown attack 'magic'; known: rand, fgsm"),
    ("attack {pictures} --out a.npy --option speed=1", "expected NAME=VALUE with one of the names steps, label_rule"),
    ("attack {pictures} --out a.npy --option steps", "expected NAME=VALUE"),
    ("attack {pictures} --out a.npy --option steps=many", "steps must be None or an integer of at least 0, got 'many'"),
    ("attack {pictures} --out a.npy --option steps=1.5", "steps must be None or an integer of at least 0, got 1.5"),
    ("attack {pictures} --out a.npy --attack pgd --option step=nan", "step must be a number in (0, inf), got nan"),
    ("attack {pictures} --out a.npy --attack deepfool --option overshoot=-1", "overshoot must be a number in [0, inf)"),
    ("attack {pictures} --out a.npy --attack cw-l2 --option binary_search_steps=0", "binary_search_steps must be"),
    ("attack {pictures} --out a.npy --attack rand --steps 3", "expected NAME=VALUE with one of the names (none)"),
    ("attack {pictures} --out a.npy --steps -1", "'--steps'"),
    ("attack {pictures} --out a.npy --attack saliency-map --eps 8", "is not bounded: it takes no eps, got 8"),
    (
        "attack {pictures} --out a.npy --attack bpda",
        "bpda attacks a purifier and the classifier behind it: it needs a defence",
    ),
    ("attack {pictures} --out a.npy --classifier cifar10", "cifar10 is a classifier of images of shape (C, H, W)"),
    ("purify {pictures} out --grid a.png --classifier cifar10", "cifar10 is a classifier of images of shape"),
    ("certify {classes} --out a.json --classifier cifar10", "cifar10 is a classifier of images of shape (C, H, W)"),
    ("attack cifar10 --out a.npy", "cifar10 needs a root: torchvision's root folder"),
    ("attack cifar10 --root {empty} --out a.npy", "cifar10 was not found under"),
    ("attack no-such --out a.npy", "no-such"),
    ("attack {empty} --out a.npy", "{empty}"),
    ("train {pictures}", "Missing option '--out'"),
    ("train no-such --out a.safetensors", "no-such"),
    ("train cifar10 --out a.safetensors", "cifar10 needs a root"),
    ("train {pictures} --out no/a.safetensors", "no such folder"),
    ("train {pictures} --out a.safetensors --filters 0", "filters must be an integer in 1..4096, got 0"),
    ("train {pictures} --out a.safetensors --resnets 101", "resnets must be an integer in 1..100, got 101"),
    ("train {pictures} --out a.safetensors --head cauchy", "head must be one of logistic, softmax, pixelcnn++"),
    ("train {pictures} --out a.safetensors --dropout 1", "dropout must be a number in [0, 1), got 1.0"),
    ("train {pictures} --out a.safetensors --optimiser sgd", "optimiser must be one of adam, muon, got 'sgd'"),
    ("train {pictures} --out a.safetensors --schedule step", "schedule must be one of cosine, linear, exponential"),
    ("train {pictures} --out a.safetensors --muon-learning-rate 0", "muon_learning_rate must be a number in (0, inf)"),
    ("train-adp {pictures} --out a.safetensors --ngf 1", "ngf must be an integer in 2..4096, got 1"),
    ("train-adp {pictures} --out a.safetensors --levels 0", "levels must be an integer of at least 1, got 0"),
    ("train-adp {pictures} --out a.safetensors --sigma-max 0", "sigma_max must be a number in (0, inf), got 0.0"),
    ("train-adp {pictures} --out a.safetensors --sigma-min nan", "sigma_min must be a number in (0, inf), got nan"),
    ("train-adp {pictures} --out a.safetensors --sigma-min 2", "expected 0 < sigma_min <= sigma_max, got 2.0 and 1.0"),
    ("train-adp {pictures} --out a.safetensors --clamped 2", "clamped must be a number in [0, 1], got 2.0"),
    ("train-classifier {pictures} --out a.safetensors", "Missing argument 'ARCH'"),
    ("train-classifier {classes} lenet --out a.safetensors", "unknown architecture 'lenet'; known: resnet62"),
    ("train-classifier {pictures} resnet62 --out a.safetensors", "has no labels: a classifier needs a subfolder"),
    ("train-classifier cifar10 resnet62 --out a.safetensors --defence magic", "defence must be one of none, fgsm, bim"),
    ("train-classifier cifar10 resnet62 --out a.safetensors --delta 0", "delta must be a number in (0, inf), got 0.0"),
    ("train-classifier cifar10 resnet62 --out a.safetensors --smoothing 1", "smoothing must be a number in [0, 1)"),
    (
        "train-classifier cifar10 resnet62 --out a.safetensors --delta 8",
        "--delta is for --defence fgsm or bim, and for --behind, got --defence none",
    ),
    (
        "train-classifier cifar10 resnet62 --out a.safetensors --smoothing 0.1 --defence bim",
        "--smoothing is for --defence label-smoothing, got --defence bim",
    ),
    ("train-classifier cifar10 resnet62 --out a.safetensors --momentum 1", "momentum must be a number in [0, 1)"),
    (
        "train-classifier cifar10 resnet62 --out a.safetensors --weight-decay -1",
        "weight_decay must be a number in [0, inf",
    ),
    (
        "train-classifier cifar10 resnet62 --out a.safetensors --max-shift -1",
        "max_shift must be an integer of at least 0",
    ),
    (
        "train-classifier cifar10 resnet62 --out a.safetensors --batch-size 1",
        "batch_size must be an integer of at least 2",
    ),
    ("evaluate table1", "Missing option '--out'"),
    ("evaluate table1 --out out", "fashion-mnist needs a root"),
    ("evaluate table1 --out out --root {empty}", "fashion-mnist was not found under"),
    ("evaluate table --out out", "Missing argument 'FILE'"),
    ("evaluate table no-such.toml --out out", "no-such.toml"),
    ("evaluate table {garbage} --out out", "garbage.safetensors"),
    ("evaluate figures --out out --dataset mnist", "unknown data set 'mnist'; known: cifar10, fashion-mnist"),
    ("evaluate classifier --out out", "Missing argument 'MODULE:NAME'"),
    ("evaluate classifier support.own_classifiers:small", "Missing option '--out'"),
    ("evaluate classifier support.own_classifiers:small --out out", "cifar10 needs a root"),
    ("evaluate classifier support.own_classifiers:small --out out --row magic", "unknown defence 'magic'; known: none"),
    (
        "evaluate classifier support.own_classifiers:small --out out --column magic",
        "unknown attack 'magic'; known: rand",
    ),
    ("evaluate classifier support.own_classifiers:small --dataset {pictures} --out out", "has no labels: a benchmark"),
    ("figures density --out out --root {empty} --attacks magic", "unknown attack 'magic'"),
    ("figures density --out out --root {empty} --attack-eps 300", "attack_eps must be an integer in 0..255, got 300"),
    ("figures density --out out --root {empty} --purify-eps -1", "purify_eps must be an integer in 0..255, got -1"),
    ("figures density --out out", "needs a root"),
    ("train {pictures} --out a.safetensors --preset small --filters 2 --resnets 1 --batch-size 5", ONE_BATCH),
    ("train-adp {pictures} --out a.safetensors --preset small --ngf 2 --batch-size 5", ONE_BATCH),
    ("train-classifier {classes} resnet62 --out a.safetensors --batch-size 5", ONE_BATCH),
    ("purify {pictures}/0.png o.png --grid o.png", "expected a path of its own for each output, got o.png and o.png"),
    ("attack {pictures} --out o --grid o/g.png --force", "no such folder|o/g.png lies in o"),
    ("report", "Missing argument 'DIR'"),
    ("report no-such", "no such folder: no-such"),
    ("report {empty}", "has neither tables nor figures"),
    ("convert openai-tf", "Missing argument 'CKPT'"),
    ("convert openai-tf {garbage}", "Missing argument 'OUT'"),
    ("convert openai-tf {garbage} out.safetensors --image-size 8", "'--image-size' requires 2 arguments"),
    ("convert openai-tf {garbage} out.safetensors --head cauchy", "cauchy"),
    ("bench --network magic", "unknown network 'magic'; known: paper-cifar10"),
    ("bench --rounds 0", "'--rounds'"),
    ("bench --batch-size 100000000", "batch-size must be an integer in 1..65536, got 100000000"),
    ("sample 4 --model {model} --grid g.png --enlarge 100000", "expected a picture of 134217728 pixels at most, got"),
    ("certify {classes} --out c5.json --keep c5.json", "a path of its own for each output, got c5.json and c5.json"),
    (
        "train-classifier {classes} resnet62 --out a.safetensors --behind cells:width=8 --keep a.safetensors",
        "a path of its own for each output",
    ),
    ("tune --batch-size 17", "batch-size must be a multiple of 16, got 17"),
    ("tune --network magic", "unknown network 'magic'; known: paper-cifar10"),
    ("info more", "unexpected extra argument"),
    ("app --port 65536", "'--port'"),
    ("app --port -1", "'--port'"),
    ("app --share", "No such option: --share"),
]
TABLE = [
    *((f"{COMMANDS[name]} {option}", words) for names, option, words in SHARED for name in names.split()),
    *ALONE,
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("wrong-commands")
    found = {
        "images": folder / "images.npy",
        "model": folder / "tiny.safetensors",
        "pictures": folder / "pictures",
        "classes": folder / "classes",
        "empty": folder / "empty",
        "garbage": folder / "garbage.safetensors",
        "text": folder / "text.npy",
        "table": folder / "table.toml",
    }
    np.save(found["images"], np.full((2, 1, 8, 8), 100, np.uint8))
    pxfast.save(random_model(), found["model"])
    for each in (found["pictures"], found["empty"], *(found["classes"] / name for name in ("cat", "dog"))):
        each.mkdir(parents=True)
    for n in range(4):
        picture = torch.full((1, 28, 28), 50 * n, dtype=torch.uint8)
        write_png(picture, found["pictures"] / f"{n}.png")
        write_png(picture, found["classes"] / ("cat", "dog")[n % 2] / f"{n}.png")
    save_file({"x": torch.zeros(1)}, found["garbage"], metadata={"format": "somebody's"})
    found["text"].write_text("hello\n")
    table = Path(pxfast.__file__).parent / "evaluation" / "tables" / "table1.toml"
    found["table"].write_text(table.read_text())
    return found


def test_the_table_is_long_enough():
    assert len(TABLE) >= 120


@pytest.mark.parametrize(("command", "words"), TABLE, ids=[command for command, _ in TABLE])
def test_wrong_commands_are_refused(command, words, places, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # of this process
    before = written(places["images"].parent)
    line = refused(*(part.format(**places) for part in command.split()))
    expected = words.format(**places)
    assert expected in line or ("|" in words and re.search(words, line)), line
    assert len(line) < 1000
    assert not list(tmp_path.iterdir()), "something was written"
    assert written(places["images"].parent) == before


def written(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}
