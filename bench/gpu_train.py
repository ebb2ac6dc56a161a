"""A piece of the training of the CIFAR-10 model that will be shipped: what ``bench/gpu.sh train`` runs.

    python bench/gpu_train.py --data ROOT [--seconds 500] [--budget SECONDS] [--from FOLDER] [options of pxfast train]

The first piece measures the training step's rate, eager and by CUDA graphs, takes the largest network that sees enough
images within the budget, and starts from the shipped model; later ones resume, and after the end of a run a new one
starts from its model. budget: seconds of training in all pieces of a run together, by default what this one has. The
run lies in build/train, which a warm machine keeps. Its model goes to $OUT with every checkpoint, the first of them
within a minute, in pieces of at most 16 MiB (cat them in order); at the end, until the run is over, its checkpoint goes
there too where it fits, into 8 files. --from takes them from there. Exit code 0: the run is over, and the model
measured on the test set; 75: there is more to do.

The data are torchvision's root folder, or the compact copies beside the repository: unpack.py and its cifar10/. With
--add, what another folder has of them is moved to --data first, and the piece ends with 75 while any is missing: so
they may come in parts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gpu_parts import ROOT
from gpu_rows import LOG, ROWS, keep, out_folder, read_rows

from pxfast.engines.benchmark import PAPER_NETWORKS
from pxfast.pixelcnn.network import PixelCNN, PixelCNNConfig
from pxfast.pixelcnn.shipped import load
from pxfast.pixelcnn.training.trainer import CHECKPOINT_FORMAT
from pxfast.tensors.safetensors import read_header

WORK = ROOT / "build" / "train"
MODEL, CHECKPOINT = "cifar10.safetensors", "cifar10.checkpoint.safetensors"
NETWORKS = ((96, 3), (80, 4), (80, 3))  # filters and layers a level; the last is the shipped model's
EPOCH, EPOCHS = 50_000, 10  # images that a run should see: fewer teach a larger network less than a smaller one
FILES, FILE_BYTES, ALL_BYTES = 8, 16 * 2**20, 60 * 2**20  # of $OUT
SHIPPED_BYTES = 30 * 10**6  # that the package has room for
MODEL_BYTES, CHECKPOINT_BYTES = 2, 12  # a parameter: bf16; and in fp32 itself, its average and Muon's momentum
RATE_SECONDS = 60.0  # that measuring one network may take, eager or by CUDA graphs
SAME_LOSS = 0.05  # bits/dim after a dozen steps from the same weights
START, END = 45.0, 65.0  # seconds that a piece spends before its first step and on checkpoints, and after its last
CHECKPOINTS = "40s"  # between two of them
UNPACKING = 60.0  # seconds that the data may take
# A trained network is at the bottom of a valley, out of which high rates lift it at once: Muon at 0.04 raised bits/dim
# from 3.2 to 3.7, and three quarters of a run of three minutes went by before it was back. That run had come down to
# 3.26 when its falling rate was 0.012, and to 3.15 at 0.006.
GENTLY = {"muon-learning-rate": "0.01", "learning-rate": "1e-3", "warmup": "200", "schedule": "linear"}
COMPACT = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
MARGIN = 40.0  # of these: a run that is told to end has 35 seconds, and then its files are copied


def parameters(filters: int, resnets: int) -> int:
    config = PAPER_NETWORKS["paper-cifar10"]
    with torch.device("meta"):
        network = PixelCNN(PixelCNNConfig(config.image_size, config.channels, filters, resnets))
    return sum(parameter.numel() for parameter in network.parameters())


def fits(filters: int, resnets: int, one_piece: bool) -> bool:
    """Whether the model fits the package, and its checkpoint $OUT, which a run of one piece does without."""
    count = parameters(filters, resnets)
    return 1.02 * MODEL_BYTES * count < SHIPPED_BYTES and (one_piece or 1.02 * CHECKPOINT_BYTES * count < ALL_BYTES)


def rate(
    options: argparse.Namespace, filters: int, resnets: int, variables: dict[str, str]
) -> tuple[float, bool] | None:
    """Images/s of training steps, and whether by CUDA graphs, where these learn the same and are faster.

    None where it could not be measured. Each is measured in a process of its own.
    """
    plain = measured(options, filters, resnets, variables)
    if plain is None:
        return None
    found, replayed = plain["images_per_second"], None
    if options.device != "cpu":
        replayed = measured(options, filters, resnets, variables, "--cuda-graphs")
    if replayed is not None and abs(replayed["bits_per_dim"] - plain["bits_per_dim"]) < SAME_LOSS:
        return max((found, False), (replayed["images_per_second"], True))
    return found, False


def measured(
    options: argparse.Namespace, filters: int, resnets: int, variables: dict[str, str], *words: str
) -> dict[str, Any] | None:
    """The row of bench/training_rate.py, None where that failed."""
    found = WORK / "rate.jsonl"
    found.unlink(missing_ok=True)
    size = ("--filters", str(filters), "--resnets", str(resnets), "--batch-size", str(options.batch_size))
    chosen = ("--compile", "no", "--optimiser", "muon", "--device", options.device, "--json", str(found))
    command = [options.python, "bench/training_rate.py", "--preset", "full", *size, *chosen, *words]
    row: dict[str, Any] = {"part": "training rate", "filters": filters, "resnets": resnets, "options": words}
    try:
        subprocess.run(command, cwd=ROOT, env=variables, timeout=RATE_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        row["error"] = f"it was not measured within {RATE_SECONDS:g} seconds"
    rows = read_rows(found)
    keep(row | (rows[-1] if rows else {}))
    return rows[-1] if rows else None


def pick(options: argparse.Namespace, ends: float, least: tuple[int, int], variables: dict[str, str]) -> dict[str, Any]:
    """The network of a new run and its budget, which later pieces find in build/train.

    options: of the command line. ends: this piece does then, on the clock ``time.monotonic``. least: the size of the
    model that it starts from. Steps are eager: torch.compile takes longer than it spares in a piece of minutes.
    """
    chosen, budget, graphs = least, options.budget, False
    for filters, resnets in NETWORKS:
        smaller = filters < least[0] or resnets < least[1]
        if smaller or (filters, resnets) == least or not fits(filters, resnets, budget is None):
            continue
        found = rate(options, filters, resnets, variables)
        left = budget or ends - time.monotonic() - START - END
        if found is not None and found[0] * left >= EPOCHS * EPOCH:
            chosen, graphs = (filters, resnets), found[1]
            break
    else:
        found = rate(options, *least, variables)
        graphs = found is not None and found[1]
    left = budget or max(10.0, ends - time.monotonic() - START - END)
    size = {"filters": chosen[0], "resnets": chosen[1]}
    return {**size, "budget": round(left), "cuda_graphs": graphs, "over": False}


def restore(folder: Path, run: Path) -> None:
    """Take the run of an earlier piece from its $OUT. The rows tell of its size, because eight files are not many."""
    told: dict[str, Any] = {}
    for row in read_rows(folder / ROWS):
        if row["part"] == "training":
            told = {name: row[name] for name in ("filters", "resnets", "budget", "cuda_graphs", "over")}
        elif row["part"] == "training ended" and told:
            told["over"] = row.get("exit") == 0
    files = list(folder.glob("cifar10*.safetensors"))
    pieces = whole_pieces(folder)
    if not told or not (files or pieces):
        raise SystemExit(f"--from {folder} has no model of an earlier piece, or no rows of it")
    for file in files:
        shutil.copy(file, WORK)
    if pieces:
        (WORK / MODEL).write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    run.write_text(json.dumps(told))


def begin(run: Path) -> str:
    """What the run starts from. A run that is over, or lost its checkpoint, makes room for one from its model."""
    start = WORK / "start.safetensors"
    lost = (WORK / MODEL).exists() and not (WORK / CHECKPOINT).exists()
    if run.exists() and (lost or json.loads(run.read_text())["over"]):
        (WORK / MODEL).replace(start)
        for file in [*WORK.glob("cifar10*.safetensors"), run]:
            file.unlink()
    return str(start) if start.exists() else "cifar10"


def add(folder: Path, data: Path) -> None:
    """Move the files of a folder, and of its folders, to where all of the data gather."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        target = data / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, target)


def data_root(data: Path) -> Path | None:
    """Torchvision's root folder, unpacked from compact copies if need be; None while some of these are missing.

    SystemExit where the folder is neither, or the copies are damaged.
    """
    if (data / "cifar-10-batches-py").is_dir():
        return data
    names = ["unpack.py", *(f"cifar10/{name}.webp" for name in COMPACT), "cifar10/index.tsv.xz", "cifar10/batches.meta"]
    missing = [name for name in names if not (data / name).is_file()]
    if missing:
        keep({"part": "data", "missing": missing})
        if len(missing) == len(names):
            raise SystemExit(f"--data {data}: expected torchvision's root folder, or unpack.py and cifar10/")
        return None
    root = WORK / "data"
    command = [sys.executable, str(data / "unpack.py"), str(root)]
    done = subprocess.run(command, timeout=UNPACKING, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise SystemExit(f"--data {data} could not be unpacked: {done.stdout[-500:]}")
    return root


def take_out(file: Path) -> None:
    """A copy of a file in $OUT, whole at every moment; of a large one in pieces: NAME.DIGEST.1-of-2, and so on."""
    out, content = out_folder(), file.read_bytes()
    count, names = pieces_of(len(content)), [file.name]
    if count > 1:
        digest = hashlib.sha256(content).hexdigest()[:8]
        names = [f"{file.name}.{digest}.{n + 1}-of-{count}" for n in range(count)]
    earlier = {*out.glob(f"{file.name}.*-of-*"), *out.glob(file.name)} - {out / name for name in names}
    for n, name in enumerate(names):
        half = out / f"{name}.part"
        half.write_bytes(content[n * FILE_BYTES : (n + 1) * FILE_BYTES])
        half.replace(out / name)
    for old in earlier:
        old.unlink()


def pieces_of(size: int) -> int:
    """The files of $OUT that so many bytes take."""
    return max(1, -(-size // FILE_BYTES))


def whole_pieces(folder: Path) -> list[Path]:
    """The pieces of a model in order, if all of them are there; after a kill the last ones may be of another."""
    for first in sorted(folder.glob(f"{MODEL}.*.1-of-*")):
        start, _, count = first.name.rpartition(".1-of-")
        pieces = [folder / f"{start}.{n + 1}-of-{count}" for n in range(int(count))]
        if all(piece.exists() for piece in pieces):
            return pieces
    return []


def watch(training: subprocess.Popen[str]) -> None:
    """Until it ends, take a training's model out with every checkpoint, and keep where it stands."""
    model = WORK / MODEL
    seen = model.stat().st_mtime_ns if model.exists() else 0
    over, told = False, None
    while not over:
        over = training.poll() is not None
        now = model.stat().st_mtime_ns if model.exists() else seen
        if now != seen:
            seen = now
            take_out(model)
            entry = last_entry()
            if entry != told:  # the file is written again when its bits/dim are known
                keep({"part": "checkpoint", **entry})
            told = entry
        if not over:
            time.sleep(0.2)


def last_entry() -> dict[str, Any]:
    """What the checkpoint's history tells last; nothing where there is no checkpoint, or is another this moment."""
    try:
        history = json.loads(read_header(WORK / CHECKPOINT, CHECKPOINT_FORMAT).metadata["history"])
        return dict(history[-1])
    except (OSError, ValueError, LookupError):
        return {}


def copy_out() -> None:
    """The run as far as it is there goes to $OUT, in the place of what an earlier piece left.

    That is its model alone where it is over or its checkpoint does not fit.
    """
    out = out_folder()
    for old in out.glob("cifar10.checkpoint*.safetensors"):
        old.unlink()
    others = sum(1 for file in out.iterdir() if file.is_file() and not file.name.startswith(MODEL))
    over = json.loads((WORK / "run.json").read_text())["over"]
    for files in ([] if over else sorted(WORK.glob("cifar10*.safetensors")), list(WORK.glob(MODEL))):
        sizes = [file.stat().st_size for file in files]
        if files and sum(map(pieces_of, sizes)) + others <= FILES and sum(sizes) <= ALL_BYTES:
            for file in files:
                take_out(file)
            keep({"part": "files", "files": [file.name for file in files], "bytes": sum(sizes)})
            return
    keep({"part": "files", "files": []})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="torchvision's root folder, or the compact copies")
    parser.add_argument("--add", type=Path, help="a folder whose files are moved to --data first")
    parser.add_argument("--seconds", type=float, default=500.0, help="of this piece, start and measuring included")
    parser.add_argument("--budget", type=float, help="seconds of training steps, of all pieces together")
    parser.add_argument("--from", type=Path, dest="earlier", help="the folder of an earlier piece's files")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the parts")
    options, others = parser.parse_known_args()
    ends = time.monotonic() + options.seconds
    if options.add is not None:
        add(options.add, options.data)
    if not options.data.is_dir():
        raise SystemExit(f"--data {options.data} is no folder: expected torchvision's root folder, or compact copies")
    WORK.mkdir(parents=True, exist_ok=True)
    root = data_root(options.data)
    if root is None:
        sys.exit(75)
    run = WORK / "run.json"
    if options.earlier is not None and not run.exists():
        restore(options.earlier, run)
    path = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "bench"), os.environ.get("PYTHONPATH", ""))))
    variables = {**os.environ, "PYTHONPATH": path, "PXFAST_TRIAL": "0"}
    start = begin(run)
    if not run.exists():
        config = load(start).config
        least = (config.filters, config.resnets)
        run.write_text(json.dumps(pick(options, ends, least, variables)))
    size = json.loads(run.read_text())
    keep({"part": "training", **size, "seconds_left": round(ends - time.monotonic())})
    seconds = max(1, int(ends - time.monotonic() - MARGIN))
    variables |= {"PIECE_SECONDS": str(seconds), "DEVICE": options.device}
    variables.setdefault("TRAIN", f"{options.python} -m pxfast.cli")
    words = ["--root", str(root.resolve()), "--preset", "full"]
    words += [] if (WORK / CHECKPOINT).exists() else ["--start", start]
    chosen = {"filters": size["filters"], "resnets": size["resnets"], "batch-size": options.batch_size}
    chosen |= {"budget": f"{size['budget']}s", "checkpoint-interval": CHECKPOINTS, **GENTLY}
    words += [word for name, value in chosen.items() for word in (f"--{name}", str(value))]
    words += ["--cuda-graphs"] if size["cuda_graphs"] else []
    words += ["--quiet", "--json", *others]
    row: dict[str, Any] = {"part": "training ended"}
    try:
        with open(out_folder() / LOG, "a") as log:
            train = ["bench/scripts/train_gpu.sh", "cifar10", str(WORK / MODEL), "1", *words]
            done = subprocess.Popen(train, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=log, text=True)
            try:
                watch(done)
            finally:
                done.kill()  # of no effect where it is over
            said, _ = done.communicate()
        row["exit"] = done.returncode
        if done.returncode == 0:
            row |= json.loads(said)
            run.write_text(json.dumps({**size, "over": True}))
    finally:
        keep(row)
        copy_out()
    sys.exit(row["exit"])


if __name__ == "__main__":
    main()
