"""The golden files: outputs of the TensorFlow graph that the PixelDefend authors released, for small trained networks.

Each ``.npz`` holds weights under their TensorFlow names, real images, mixture parameters, 256-way log-probabilities
and purified images (NHWC, float32 or uint8). ``tests/data`` ships a small cut of them; the complete ones are read
from ``shared/golden`` beside the repository where that exists.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pxfast.pixelcnn.convert import pixelcnn_from_variables
from pxfast.pixelcnn.network import PixelCNN, PixelCNNConfig

TESTS = Path(__file__).parents[1]
BUNDLED = TESTS / "data"
COMPLETE = TESTS.parent.parent / "shared" / "golden"
NAMES = ("fashion_28x28_f12_r1", "cifar_16x16_f16_r1")


def golden_weights(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of a file's arrays that are variables of the network, under their TensorFlow names."""
    return {name.removeprefix("weights/"): array for name, array in arrays.items() if name.startswith("weights/")}


@dataclasses.dataclass
class Golden:
    """One file: the network with its weights, and what the authors' graph gave, as NCHW tensors.

    clean, attacked, purified: (N, C, H, W) uint8. params: (N, F, H, W). nll: (N, C, H, W) nats.
    log_probs: (N, C, h, W, 256), of the h rows from ``row`` on (all of them in a complete file).
    """

    model: PixelCNN
    eps: int
    clean: Tensor
    attacked: Tensor
    purified: Tensor
    params: Tensor
    nll: Tensor
    log_probs: Tensor
    row: int

    @functools.cached_property
    def features(self) -> Tensor:
        """What the network gives for the clean images: (N, F, H, W)."""
        return self.model(self.clean)

    @functools.cached_property
    def authors(self) -> tuple[Tensor, Tensor]:
        """:func:`authors_log_probs` of the clean images, with the authors' switch."""
        return authors_log_probs(self.model, self.features, self.clean, switch=True)

    @property
    def rows(self) -> slice:
        return slice(self.row, self.row + self.log_probs.shape[2])


def load_golden(path: Path) -> Golden:
    with np.load(path) as file:
        arrays = dict(file)
    _, H, W, C = arrays["clean"].shape
    model = pixelcnn_from_variables(golden_weights(arrays), head="logistic", image_size=(H, W)).requires_grad_(False)
    expected = PixelCNNConfig((H, W), C, int(arrays["filters"]), int(arrays["resnets"]), int(arrays["mixtures"]))
    if model.config != expected:
        raise ValueError(f"{path}: the weights make {model.config}, the file says {expected}")

    def nchw(name: str) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(arrays[name], 3, 1)))

    names = ("clean", "attacked", "purified", "params", "nll", "log_probs")
    row = int(arrays.get("log_probs_row", 0))
    return Golden(model, int(arrays["eps"]), **{name: nchw(name) for name in names}, row=row)


def golden_paths() -> list[tuple[str, Path]]:
    """(label, path) of every golden file there could be; a complete one may be absent."""
    return [(f"bundled-{name}", BUNDLED / f"{name}.npz") for name in NAMES] + [
        (f"complete-{name}", COMPLETE / f"{name}.npz") for name in NAMES
    ]


def fullest_path(name: str) -> Path:
    """The complete file where it is there, else the bundled one, which is its first image."""
    return next(path for path in (COMPLETE / f"{name}.npz", BUNDLED / f"{name}.npz") if path.is_file())


SWITCH = 1e-5  # bin mass under which the authors' code takes the density at the bin's centre


def authors_log_probs(model: PixelCNN, features: Tensor, images: Tensor, *, switch: bool) -> tuple[Tensor, Tensor]:
    """The authors' formula in float64: 256-way log-probabilities (N, C, H, W, 256), and where the switch acted.

    With ``switch`` off it is the same mixture evaluated exactly. The bins are [(z - 128) / 128, (z - 127) / 128], 0
    and 255 take the tails; the density is taken at (z - 127.5) / 128 and multiplied by the width of 1 / 127.5 that
    the authors' code has from PixelCNN++. Normalised at the end, as theirs. The second result is boolean: true where
    some component's mass is under the switch.
    """
    log_weights, means, log_scales = (t.double().unsqueeze(-1) for t in model.head.mixture(features.double(), images))
    values = torch.arange(256, dtype=torch.float64)
    inverse_scales = torch.exp(-log_scales)
    lower = inverse_scales * ((values - 128) / 128 - means)
    upper = inverse_scales * ((values - 127) / 128 - means)
    middle = inverse_scales * ((values - 127.5) / 128 - means)
    mass = torch.sigmoid(upper) - torch.sigmoid(lower)
    inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(lower - upper))
    acted = torch.zeros_like(mass, dtype=torch.bool)
    if switch:
        edge = (values == 0) | (values == 255)
        acted = (mass <= SWITCH) & ~edge
        density = middle - log_scales - 2 * F.softplus(middle) - math.log(127.5)
        inside = torch.where(mass > SWITCH, inside, density)
    inside = torch.where(values == 0, F.logsigmoid(upper), torch.where(values == 255, F.logsigmoid(-lower), inside))
    mixed = torch.logsumexp(log_weights + inside, dim=2)
    return F.log_softmax(mixed, dim=-1) if switch else mixed, acted.any(dim=2)
