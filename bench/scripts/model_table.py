"""Write the README's table of shipped models: what the files record, and the AUC of detecting uniform noise.

python bench/scripts/model_table.py --root DIR [--images 1000] [--readme README.md]

bits/dim, training time and machine are read from the model files' notes, where ``pxfast train`` and
bench/scripts/record_bits_per_dim.py put them. The AUC is measured here: of telling the first test images of the data
set from the same images plus uniform noise of up to ±8 (a fixed seed), by log p(X).
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
from torch import Tensor

import pxfast
from pxfast.base.files import whole_file
from pxfast.data.datasets import DATASETS, load_dataset
from pxfast.evaluation.report.network_facts import PUBLISHED_BITS_PER_DIM
from pxfast.pixelcnn.files import read_metadata
from pxfast.pixelcnn.network import PixelCNNConfig
from pxfast.pixelcnn.shipped import SHIPPED
from pxfast.pixelcnn.training import network_size
from pxfast.pixeldefend.detection import roc_auc_score

BEGIN, END = "<!-- models: bench/scripts/model_table.py -->", "<!-- end of models -->"
NOISE = 8


def noise_auc(name: str, images: Tensor) -> float:
    """AUC of log p(X) between clean images (N, C, H, W) uint8 and the same ones with uniform noise."""
    noise = torch.randint(-NOISE, NOISE + 1, images.shape, generator=torch.Generator().manual_seed(0))
    noisy = (images.int() + noise).clamp(0, 255).to(torch.uint8)
    scores = (pxfast.bits_per_dim(each, model=name, progress=True) for each in (images, noisy))
    return roc_auc_score(*scores)


def training(notes: dict, config: PixelCNNConfig) -> str:
    """What a file's notes say of how it was trained: a phrase per size of network, one grown from another."""
    parts = notes.get("parts", [notes])
    phrases = []
    for size, runs in itertools.groupby(parts, lambda part: part.get("network", network_size(config))):
        runs = list(runs)
        images, minutes = sum(run["images_seen"] for run in runs), sum(run["seconds"] for run in runs) / 60
        phrase = f"{images:,} images, {minutes:.0f} minutes" + (f" in {len(runs)} runs" if len(runs) > 1 else "")
        if size != network_size(config):
            phrase += f" with filters {size['filters']}, resnets {size['resnets']}"
        phrases.append(phrase)
    machines = dict.fromkeys(part.get("machine", "a machine not recorded") for part in parts)
    return f"{', then '.join(phrases)}; on {', '.join(machines)}"


def row(name: str, images: Tensor) -> str:
    config, notes = read_metadata(SHIPPED[name])
    network = f"filters {config.filters}, resnets {config.resnets}, {config.mixtures} logistics"
    paper = PUBLISHED_BITS_PER_DIM[name]
    bits = f"{notes['test_bits_per_dim']:.3f} on {notes['test_images']:,} images (the paper's: {paper})"
    size = SHIPPED[name].stat().st_size / 1e6
    auc = noise_auc(name, images)
    detection = f"{auc:.4f} ({len(images):,} images)"
    return f"| `{name}` | {network} | {size:.1f} MB | {bits} | {detection} | {training(notes, config)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder")
    parser.add_argument("--images", type=int, default=1000, help="test images for the AUC")
    parser.add_argument("--readme", type=Path, default=Path(__file__).parent.parent / "README.md")
    arguments = parser.parse_args()
    lines = [
        f"| model | network | file | test bits/dim | AUC, uniform noise of ±{NOISE} | training |",
        "|---|---|---:|---:|---:|---|",
    ]
    for name in sorted(SHIPPED):
        assert name in DATASETS
        lines.append(row(name, load_dataset(name, arguments.root, train=False)[0][: arguments.images]))
    text = arguments.readme.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    with whole_file(arguments.readme) as temporary:
        Path(temporary).write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
