"""A piece of the training of the CIFAR-10 model that will be shipped: what ``bench/gpu.sh train`` runs.

    python bench/gpu_train.py --data ROOT [--seconds 500] [--budget SECONDS] [--from FOLDER] [options of pxfast train]

The first piece measures the training step's rate, takes the largest network that sees enough images within the budget,
and starts from the shipped model; later ones resume, and after the end of a run a new one starts from its model.
budget: seconds of training in all pieces of a run together, by default what this one has. The run lies in build/train,
which a warm machine keeps; a copy goes to $OUT where it fits: the model and, until the run is over, its checkpoint, of
8 files none of which is over 16 MiB. --from takes them from there. Exit code 0: the run is over, and the model measured
on the test set; 75: there is more to do.
"""

from __future__ import annotations

import argparse
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

WORK = ROOT / "build" / "train"
MODEL, CHECKPOINT = "cifar10.safetensors", "cifar10.checkpoint.safetensors"
NETWORKS = ((72, 3), (80, 2), (64, 3), (64, 2))  # filters and layers a level; the last is the shipped model's
EPOCH, EPOCHS = 50_000, 10  # images that a run should see: fewer teach a larger network less than a smaller one
FILES, FILE_BYTES, ALL_BYTES = 8, 16 * 2**20, 60 * 2**20  # of $OUT
MODEL_BYTES, CHECKPOINT_BYTES = 2, 12  # a parameter: bf16; and in fp32 itself, its average and Muon's momentum
RATE_SECONDS = 60.0  # that measuring one network may take
START, END = 30.0, 65.0  # seconds that a piece spends before its first step and after its last
MARGIN = 40.0  # of these: a run that is told to end has 35 seconds, and then its files are copied


def parameters(filters: int, resnets: int) -> int:
    config = PAPER_NETWORKS["paper-cifar10"]
    with torch.device("meta"):
        network = PixelCNN(PixelCNNConfig(config.image_size, config.channels, filters, resnets))
    return sum(parameter.numel() for parameter in network.parameters())


def fits(filters: int, resnets: int, one_piece: bool) -> bool:
    """Whether the model fits a file of $OUT, and its checkpoint $OUT, which a run of one piece does without."""
    count = parameters(filters, resnets)
    return 1.02 * MODEL_BYTES * count < FILE_BYTES and (one_piece or 1.02 * CHECKPOINT_BYTES * count < ALL_BYTES)


def rate(options: argparse.Namespace, filters: int, resnets: int, variables: dict[str, str]) -> float | None:
    """Images/s of training steps, as bench/training_rate.py measures them; None where that failed."""
    found = WORK / "rate.jsonl"
    found.unlink(missing_ok=True)
    size = ("--filters", str(filters), "--resnets", str(resnets), "--batch-size", str(options.batch_size))
    chosen = ("--compile", "no", "--optimiser", "muon", "--device", options.device, "--json", str(found))
    command = [options.python, "bench/training_rate.py", "--preset", "full", *size, *chosen]
    row: dict[str, Any] = {"part": "training rate", "filters": filters, "resnets": resnets}
    try:
        subprocess.run(command, cwd=ROOT, env=variables, timeout=RATE_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        row["error"] = f"it was not measured within {RATE_SECONDS:g} seconds"
    rows = read_rows(found)
    keep(row | (rows[-1] if rows else {}))
    return float(rows[-1]["images_per_second"]) if rows else None


def pick(options: argparse.Namespace, ends: float, least: tuple[int, int], variables: dict[str, str]) -> dict[str, Any]:
    """The network of a new run and its budget, which later pieces find in build/train.

    options: of the command line. ends: this piece does then, on the clock ``time.monotonic``. least: the size of the
    model that it starts from. Steps are eager: torch.compile takes longer than it spares in a piece of minutes.
    """
    chosen, budget = least, options.budget
    for filters, resnets in NETWORKS:
        smaller = filters < least[0] or resnets < least[1]
        if smaller or (filters, resnets) == least or not fits(filters, resnets, budget is None):
            continue
        found = rate(options, filters, resnets, variables)
        left = budget or ends - time.monotonic() - START - END
        if found is not None and found * left >= EPOCHS * EPOCH:
            chosen = (filters, resnets)
            break
    left = budget or max(10.0, ends - time.monotonic() - START - END)
    return {"filters": chosen[0], "resnets": chosen[1], "budget": round(left), "over": False}


def restore(folder: Path, run: Path) -> None:
    """Take the run of an earlier piece from its $OUT. The rows tell of its size, because eight files are not many."""
    told: dict[str, Any] = {}
    for row in read_rows(folder / ROWS):
        if row["part"] == "training":
            told = {name: row[name] for name in ("filters", "resnets", "budget", "over")}
        elif row["part"] == "training ended" and told:
            told["over"] = row.get("exit") == 0
    files = list(folder.glob("cifar10*.safetensors"))
    if not told or not files:
        raise SystemExit(f"--from {folder} has no model of an earlier piece, or no rows of it")
    for file in files:
        shutil.copy(file, WORK)
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


def copy_out() -> None:
    """The run as far as it is there goes to $OUT, in the place of what an earlier piece left.

    That is its model alone where it is over or its checkpoint does not fit.
    """
    out = out_folder()
    for old in out.glob("cifar10*.safetensors"):
        old.unlink()
    others = sum(1 for file in out.iterdir() if file.is_file())
    over = json.loads((WORK / "run.json").read_text())["over"]
    for files in ([] if over else sorted(WORK.glob("cifar10*.safetensors")), list(WORK.glob(MODEL))):
        sizes = [file.stat().st_size for file in files]
        if files and len(files) + others <= FILES and max(sizes) <= FILE_BYTES and sum(sizes) <= ALL_BYTES:
            for file in files:
                shutil.copy(file, out)
            keep({"part": "files", "files": [file.name for file in files], "bytes": sum(sizes)})
            return
    keep({"part": "files", "files": []})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="torchvision's root folder, unpacked")
    parser.add_argument("--seconds", type=float, default=500.0, help="of this piece, start and measuring included")
    parser.add_argument("--budget", type=float, help="seconds of training steps, of all pieces together")
    parser.add_argument("--from", type=Path, dest="earlier", help="the folder of an earlier piece's files")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the parts")
    options, others = parser.parse_known_args()
    ends = time.monotonic() + options.seconds
    if not options.data.is_dir():
        raise SystemExit(f"--data {options.data} is no folder: expected torchvision's root folder")
    WORK.mkdir(parents=True, exist_ok=True)
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
    words = ["--root", str(options.data.resolve()), "--preset", "full"]
    words += [] if (WORK / CHECKPOINT).exists() else ["--start", start]
    words += ["--filters", str(size["filters"]), "--resnets", str(size["resnets"])]
    words += [
        "--batch-size",
        str(options.batch_size),
        "--budget",
        f"{size['budget']}s",
        "--schedule",
        "linear",
        "--quiet",
        "--json",
        *others,
    ]
    row: dict[str, Any] = {"part": "training ended"}
    try:
        with open(out_folder() / LOG, "a") as log:
            train = ["bench/scripts/train_gpu.sh", "cifar10", str(WORK / MODEL), "1", *words]
            done = subprocess.run(train, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=log, text=True)
        row["exit"] = done.returncode
        if done.returncode == 0:
            row |= json.loads(done.stdout)
            run.write_text(json.dumps({**size, "over": True}))
    finally:
        keep(row)
        copy_out()
    sys.exit(row["exit"])


if __name__ == "__main__":
    main()
