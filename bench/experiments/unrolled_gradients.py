"""What the gradient through PixelDefend is, unrolled end to end: the paper's section 4.4, at small sizes.

    python bench/experiments/unrolled_gradients.py --root DIR --sizes 8 --temperatures 1 0.1 0.01 --json out.json

Fashion-MNIST test images, averaged down to H x H; the shipped density model's weights at that size; a logistic
regression on such images as classifier. For every temperature of the relaxation (pxfast/pixeldefend/relaxed.py): how
long the gradient of the classifier's loss with respect to the image is, beside BPDA's, how much of the image has none,
and what BIM by it leaves of the real, hard PixelDefend. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pxfast
from pxfast.attacks import BPDA, UnrolledBIM, bim_steps
from pxfast.attacks.gradients import loss_gradient
from pxfast.base.files import output_files, refuse_existing
from pxfast.base.machine import processor_name
from pxfast.data.datasets import load_dataset
from pxfast.defences import Defended
from pxfast.engines.cpu import isa_of
from pxfast.pixelcnn.fingerprint import model_fingerprint
from pxfast.pixeldefend.relaxed import RelaxedPurifier

NAME = "bench/experiments/unrolled_gradients.py"
ATTACK_EPS, PURIFY_EPS = 8, 16
TRAINING_IMAGES = 10_000
FAINT = 1e-3  # of BPDA's mean gradient: less than that counts as none


def smaller(images: Tensor, size: int) -> Tensor:
    """uint8 images (N, 1, 28, 28) averaged down to (N, 1, size, size)."""
    return F.interpolate(images.float(), (size, size), mode="area").round().to(torch.uint8)


def logistic_regression(images: Tensor, labels: Tensor) -> nn.Module:
    """A linear classifier of ten classes of uint8 images, fitted by L-BFGS with a little weight decay."""
    x = images.float() / 255
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 10))
    optimiser = torch.optim.LBFGS(network.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(network(x), labels) + 1e-4 * network[1].weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return network.eval().requires_grad_(False)


def model_of_size(size: int) -> pxfast.PixelCNN:
    """The shipped model's weights as a network of size x size images."""
    shipped = pxfast.load("fashion-mnist")
    model = pxfast.PixelCNN(dataclasses.replace(shipped.config, image_size=(size, size)))
    model.load_state_dict(shipped.state_dict())
    return model.eval().requires_grad_(False)


def measure(root: Path, size: int, temperatures: list[float], count: int) -> dict[str, Any]:
    """One size: rows by temperature, JSON-able."""
    given, labels = load_dataset("fashion-mnist", root, train=True)
    given, labels = smaller(given[:TRAINING_IMAGES], size), labels[:TRAINING_IMAGES]
    classifier = logistic_regression(given, labels)
    images, labels = load_dataset("fashion-mnist", root, train=False)
    images, labels = smaller(images[:count], size), labels[:count]
    purifier = pxfast.Purifier(PURIFY_EPS, model=model_of_size(size))
    defended = Defended(classifier, [purifier])
    x = images.float() / 255
    straight = loss_gradient(defended, x, labels)
    scale = float(straight.abs().mean())

    def right(model: nn.Module, x: Tensor) -> float:
        with torch.no_grad():
            return float((model(x).argmax(1) == labels).double().mean())

    def row(name: str, gradient: Tensor, attacked: Tensor) -> dict[str, Any]:
        lengths = gradient.flatten(1).norm(dim=1) / straight.flatten(1).norm(dim=1)
        cosine = F.cosine_similarity(gradient.flatten(1), straight.flatten(1))
        return {
            "gradient": name,
            "length": {
                "smallest": float(lengths.min()),
                "median": float(lengths.median()),
                "largest": float(lengths.max()),
            },
            "without": float((gradient.abs() < FAINT * scale).double().mean()),
            "cosine": float(cosine.mean()),
            "unchanged": float((attacked == images).double().mean()),
            "accuracy": right(defended, attacked.float() / 255),
        }

    steps = bim_steps(ATTACK_EPS)
    rows = [row("BPDA", straight, BPDA(steps=steps, step=1)(defended, images, labels, ATTACK_EPS))]
    for temperature in temperatures:
        soft = Defended(classifier, [RelaxedPurifier.of(purifier, tuple(x.shape[1:]), temperature=temperature)])
        gradient = loss_gradient(soft, x, labels)
        attacked = UnrolledBIM(temperature=temperature)(defended, images, labels, ATTACK_EPS)
        rows.append(row(f"unrolled, temperature {temperature:g}", gradient, attacked))
    clean = {"undefended": right(classifier, x), "defended": right(defended, x)}
    return {"size": size, "images": len(images), "clean": clean, "rows": rows}


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| size | gradient | its length beside BPDA's (smallest, median, largest) | cosine with BPDA's "
        "| values without one | left as they were | accuracy clean | accuracy attacked |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        for row in result["rows"]:
            length = ", ".join(f"{row['length'][end]:.2g}" for end in ("smallest", "median", "largest"))
            shares = " | ".join(f"{100 * value:.0f} %" for value in (row["without"], row["unchanged"]))
            rates = f"{100 * result['clean']['defended']:.0f} % | {100 * row['accuracy']:.0f} %"
            size = f"{result['size']} x {result['size']}"
            lines.append(f"| {size} | {row['gradient']} | {length} | {row['cosine']:.2f} | {shares} | {rates} |")
    return "\n".join(lines)


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the results depend on, JSON-able."""
    return {
        "script": NAME,
        "data": f"the first {arguments.images} test images of fashion-mnist, averaged down",
        "eps": {"attack": ATTACK_EPS, "purifier": PURIFY_EPS},
        "temperatures": arguments.temperatures,
        "density model": model_fingerprint(pxfast.load("fashion-mnist")),
        "machine": {"cpu": processor_name(), "isa": isa_of(), "torch": torch.__version__},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8], help="multiples of 4 (default 8)")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 0.1, 0.01])
    parser.add_argument("--images", type=int, default=8, help="how many test images (default 8)")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    arguments = parser.parse_args()
    if arguments.images < 1:
        parser.error(f"--images must be positive, got {arguments.images}")
    if arguments.json:
        refuse_existing(arguments.json, force=arguments.force)
    results = [measure(arguments.root, size, arguments.temperatures, arguments.images) for size in arguments.sizes]
    if arguments.json:
        with output_files(arguments.json, force=arguments.force) as (temporary,):
            temporary.write_text(json.dumps({**settings(arguments), "results": results}, indent=2) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
