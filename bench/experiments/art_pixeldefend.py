"""ART's PixelDefend and Algorithm 1 on the same images, with the same network: what evaluating it once costs.

    pip install 'pxfast[art]' && python bench/experiments/art_pixeldefend.py --root DIR --images 128 --json results.json

ART (Adversarial Robustness Toolbox) evaluates the network on the image as given, and takes for every sub-pixel the
likeliest value in range under that; Algorithm 1 evaluates it on what has been purified so far. On real images ART's
class stops with an OverflowError under NumPy 2, since its range is computed in uint8. So this script computes what ART
would with that arithmetic mended (``single_pass``), and first holds it to ART's own class, value for value, on images
whose contrast is reduced so far that ART runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import pxfast
from pxfast.attacks import FGSM
from pxfast.base.extras import require
from pxfast.base.files import output_files, refuse_existing
from pxfast.classifiers import accuracy, load_classifier
from pxfast.data.datasets import load_dataset
from pxfast.engines.info import collect

MODEL = "fashion-mnist"
PROBED = 4  # images on which ART's own class is run


class SubPixelProbabilities(nn.Module):
    """Images (N, C, H, W) in [0, 1] to the probabilities (N, C H W, 256) of every sub-pixel, in one forward pass."""

    def __init__(self, model: pxfast.PixelCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.log_probs((images * 255).round().to(torch.uint8)).exp().flatten(1, 3)


def art_pixeldefend(model: pxfast.PixelCNN, eps: int) -> Any:
    """ART's own class on a pxfast network."""
    estimators = require("art.estimators.classification", "art")
    defences = require("art.defences.preprocessor", "art")
    config = model.config
    network = estimators.PyTorchClassifier(
        model=nn.Sequential(SubPixelProbabilities(model)).eval(),
        loss=nn.CrossEntropyLoss(),
        input_shape=(config.channels, *config.image_size),
        nb_classes=2,  # asked for, and not used
        clip_values=(0, 1),
        device_type="cpu",
    )
    return defences.PixelDefend(eps=eps, pixel_cnn=network)


@torch.no_grad()
def single_pass(images: Tensor, eps: int, model: pxfast.PixelCNN, batch_size: int = 16) -> Tensor:
    """What ART's PixelDefend gives for uint8 images (N, C, H, W), its range computed without overflow."""
    parts = []
    for batch in images.split(batch_size):
        probabilities = model.log_probs(batch).exp().numpy()
        distance = np.abs(np.arange(256) - batch.numpy()[..., None].astype(int))
        allowed = np.where(distance <= eps, probabilities, -1.0)
        parts.append(torch.from_numpy(allowed.argmax(-1).astype(np.uint8)))  # the first of equals, as in ART
    return torch.cat(parts)


def probe(images: Tensor, eps: int, model: pxfast.PixelCNN) -> dict[str, Any]:
    """What ART's class does with real images, and whether ``single_pass`` agrees with it where it runs."""
    defence = art_pixeldefend(model, eps)
    try:
        defence((images.float() / 255).numpy())
        outcome = "ran"
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    lowest, highest = eps, 254 - eps
    gentle = (images.float() / 255 * (highest - lowest) + lowest).round().to(torch.uint8)
    theirs, _ = defence((gentle.float() / 255).numpy())
    differing = (torch.from_numpy(theirs * 255).round().to(torch.uint8) != single_pass(gentle, eps, model)).sum()
    return {"on_real_images": outcome, "images": len(images), "values_that_differ": int(differing)}


def measure(root: Path, count: int, attack_eps: list[int], eps: int) -> dict[str, Any]:
    """Everything the table shows, JSON-able; accuracies and fractions in [0, 1]."""
    images, labels = load_dataset("fashion-mnist", root, train=False)
    images, labels = images[:count], labels[:count]
    model, classifier = pxfast.load(MODEL), load_classifier(MODEL)
    inputs = {"clean": images}
    inputs |= {f"FGSM, eps {attack}": FGSM()(classifier, images, None, attack) for attack in attack_eps}
    rows = []
    for name, x in inputs.items():
        ours = pxfast.purify(x, eps, model=model, precision="fp32")
        theirs = single_pass(x, eps, model)
        for method, result in (("none", x), ("ART: single pass", theirs), ("pxfast: Algorithm 1", ours)):
            verification = pxfast.verify(x, result, eps, model=model)
            rows.append(
                {
                    "images": name,
                    "purification": method,
                    "bits_per_dim": float(pxfast.bits_per_dim(result, model=model).mean()),
                    "accuracy": accuracy(classifier, result, labels),
                    "mean_regret": verification.mean_regret,
                    "is_algorithm_1": verification.passed,
                    "unlike_algorithm_1": float((result != ours).double().mean()),
                }
            )
    return {
        "images": len(images),
        "eps": eps,
        "probe": probe(images[:PROBED], eps, model),
        "installation": collect(),
        "rows": rows,
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    found = results["probe"]
    lines = [
        f"ART's class on {found['images']} test images as they are: {found['on_real_images']}. With their contrast "
        f"reduced: {found['values_that_differ']} values unlike the mended arithmetic's.",
        "",
        f"{results['images']} Fashion-MNIST test images, eps {results['eps']}:",
        "",
        "| images | purification | bits/dim | accuracy | mean regret, nats | passes `verify` | unlike Algorithm 1 |",
        "|---|---|---:|---:|---:|---|---:|",
    ]
    for row in results["rows"]:
        lines.append(
            f"| {row['images']} | {row['purification']} | {row['bits_per_dim']:.3f} | {100 * row['accuracy']:.1f} % | "
            f"{row['mean_regret']:.2g} | {'yes' if row['is_algorithm_1'] else 'no'} | "
            f"{100 * row['unlike_algorithm_1']:.1f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder with Fashion-MNIST")
    parser.add_argument("--images", type=int, default=128, help="how many test images (default 128)")
    parser.add_argument("--attack-eps", type=int, nargs="+", default=[8, 25])
    parser.add_argument("--eps", type=int, default=32, help="of the purification (default 32, the paper's)")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    arguments = parser.parse_args()
    if arguments.images < PROBED:
        parser.error(f"--images must be at least {PROBED}, got {arguments.images}")
    if arguments.json:
        refuse_existing(arguments.json, force=arguments.force)
    results = measure(arguments.root, arguments.images, arguments.attack_eps, arguments.eps)
    if arguments.json:
        with output_files(arguments.json, force=arguments.force) as (temporary,):
            temporary.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
