"""Writes tests/data/attack_fixtures.npz: what other libraries' saliency map and L-BFGS attacks do to a small network.

    python bench/scripts/make_attack_fixtures.py --out tests/data/attack_fixtures.npz

The file that is in the repository was made by torchattacks 3.5.1 (JSMA, the pairs of Papernot et al. 2016) and Foolbox
2.4.0 (its LBFGSAttack), which no longer imports by itself: install it without dependencies into an environment of its
own, over torch, SciPy and torchattacks. The network is a random one of two layers over crops of real images, and both
attacks lead to the likeliest wrong class. The tests hold pxfast's own attacks to these results.
"""

from __future__ import annotations

import argparse
import collections
import collections.abc
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pxfast.base.files import output_files, refuse_existing

for name in ("Iterable", "Mapping", "MutableMapping", "Sequence"):  # where Foolbox 2 looks for them
    setattr(collections, name, getattr(collections.abc, name))

IMAGES = Path(__file__).parents[2] / "tests" / "data" / "real_images.npz"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(100, 16), nn.LeakyReLU(0.1), nn.Linear(16, 10))
    with torch.no_grad():
        layers[3].weight.mul_(4.0)
    return layers.eval()


def crops(count: int) -> np.ndarray:
    """(count, 1, 10, 10) uint8, none of them so bright that torchattacks takes a value for saturated."""
    with np.load(IMAGES) as file:
        return np.minimum(file["fashion_mnist"][:count, :, 9:19, 9:19], 250)


def jsma(model: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    import torchattacks

    attack = torchattacks.JSMA(model, theta=1.0, gamma=1.0)
    attack.set_mode_targeted_by_label(quiet=True)
    return attack(x, targets).numpy()


def lbfgs(model: nn.Module, x: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    import foolbox

    assert foolbox.__version__ == "2.4.0"
    wrapped = foolbox.models.PyTorchModel(model, bounds=(0, 1), num_classes=10, device="cpu")
    results = []
    for image, label, target in zip(x.numpy(), labels.tolist(), targets.tolist(), strict=True):
        attack = foolbox.v1.attacks.LBFGSAttack(wrapped, criterion=foolbox.criteria.TargetClass(target))
        results.append(attack(image, label=label, epsilon=1e-6))
    return np.stack(results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    arguments = parser.parse_args()
    refuse_existing(arguments.out, force=arguments.force)
    model, images = network(), crops(8)
    x = torch.from_numpy(images).float() / 255
    with torch.no_grad():
        labels, targets = model(x).topk(2).indices.unbind(1)
    results = {"jsma": jsma(model, x, targets), "lbfgs": lbfgs(model, x, labels, targets)}
    weights = {name.replace(".", "_"): value.numpy() for name, value in model.state_dict().items()}
    with output_files(arguments.out, force=arguments.force) as (temporary,):
        np.savez_compressed(
            temporary, images=images, labels=labels.numpy(), targets=targets.numpy(), **results, **weights
        )
    print(f"{arguments.out}: {arguments.out.stat().st_size} bytes, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
