"""Write the tables of shipped models in docs/results.md: what the files record, and the AUC of detecting noise.

python bench/scripts/model_table.py --root DIR [--images 500] [--document docs/results.md]

bits/dim, training runs and machines are read from the model files' notes, where ``pxfast train`` and
bench/scripts/record_bits_per_dim.py put them. The AUC is measured here: of telling the first test images of the data
set from the same images plus uniform noise of up to ±8 (a fixed seed), by log p(X).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import pxfast
from pxfast.base.files import whole_file
from pxfast.data.datasets import DATASETS, load_dataset
from pxfast.evaluation.report.network_facts import PUBLISHED_BITS_PER_DIM
from pxfast.pixelcnn.files import read_metadata
from pxfast.pixelcnn.shipped import SHIPPED
from pxfast.pixelcnn.training import network_size
from pxfast.pixeldefend.detection import roc_auc_score
from pxfast.training.provenance import training_parts

BEGIN, END = "<!-- models: bench/scripts/model_table.py -->", "<!-- end of models -->"
NOISE = 8
TEST_IMAGES = 10_000  # of either data set
ROOT = Path(__file__).resolve().parents[2]


def noise_auc(name: str, images: Tensor) -> float:
    """AUC of log p(X) between clean images (N, C, H, W) uint8 and the same ones with uniform noise."""
    noise = torch.randint(-NOISE, NOISE + 1, images.shape, generator=torch.Generator().manual_seed(0))
    noisy = (images.int() + noise).clamp(0, 255).to(torch.uint8)
    scores = (pxfast.bits_per_dim(each, model=name, progress=True) for each in (images, noisy))
    return roc_auc_score(*scores)


def row(name: str, images: Tensor) -> str:
    """A model's figures."""
    config, notes = read_metadata(SHIPPED[name])
    assert notes["test_images"] == TEST_IMAGES
    cells = (
        f"`{name}`",
        config.filters,
        config.resnets,
        config.mixtures,
        f"{SHIPPED[name].stat().st_size / 1e6:.1f}",
        f"{notes['test_bits_per_dim']:.3f}",
        PUBLISHED_BITS_PER_DIM[name],
        f"{noise_auc(name, images):.4f}",
        f"{notes['images_seen']:,}",
        f"{notes['seconds'] / 60:.0f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def runs(name: str) -> list[str]:
    """A row for every training run that made a model's weights."""
    config, notes = read_metadata(SHIPPED[name])
    rows = []
    for number, run in enumerate(training_parts(notes), start=1):
        size = run.get("network", network_size(config))
        machine = run.get("machine", "not recorded")
        cells = (f"`{name}`", number, size["filters"], f"{run['images_seen']:,}", f"{run['seconds'] / 60:.0f}", machine)
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder")
    parser.add_argument("--images", type=int, default=500, help="test images for the AUC")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "results.md")
    arguments = parser.parse_args()
    figures = [
        "| model | filters | resnets | logistics | file, MB | test bits/dim | the paper's "
        f"| AUC, noise of ±{NOISE} | images seen | minutes |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    trainings = ["| model | run | filters | images seen | minutes | machine |", "|---|---:|---:|---:|---:|---|"]
    for name in sorted(SHIPPED):
        assert name in DATASETS
        figures.append(row(name, load_dataset(name, arguments.root, train=False)[0][: arguments.images]))
        trainings += runs(name)
    between = (
        f"bits/dim of all {TEST_IMAGES:,} test images; AUC, the area under the ROC curve, of telling the first "
        f"{arguments.images} from themselves with\nuniform noise.",
        "\n".join(figures),
        "The runs that made them, each from the weights of the one before:",
        "\n".join(trainings),
    )
    text = arguments.document.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    with whole_file(arguments.document) as temporary:
        Path(temporary).write_text("\n\n".join((f"{before}{BEGIN}", *between, f"{END}{after}")))
    print("\n\n".join(between))


if __name__ == "__main__":
    main()
