"""What the page computes: an image attacked and purified, and how the classifier and the density model judge it.

Nothing here knows of a browser.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ...attacks import Attack, find_attack
from ...base.checks import check_choice, check_count, check_eps
from ...base.machine import parse_device
from ...classifiers import Classifier, load_classifier
from ...defences import Defended
from ...evaluation.figures.attack_pictures import CLASSES
from ...pixelcnn.likelihood import bits_per_dim, surprise
from ...pixelcnn.network import PixelCNN
from ...pixelcnn.shipped import load
from ...pixeldefend.detection import Detector
from ...pixeldefend.purify import Purifier

DATASETS = {"fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
PURIFY_EPS = {"fashion-mnist": 32, "cifar10": 16}  # the paper's
ATTACK_EPS = {"fashion-mnist": 25, "cifar10": 8}
BPDA_STEPS = 10  # of its 100: an answer within seconds

# what the page offers, by the attacks' names
ATTACKS = {
    "none": "none",
    "rand": "RAND: noise",
    "fgsm": "FGSM: one step",
    "bim": "BIM: small steps",
    "pgd": "PGD: from a random start",
    "deepfool": "DeepFool: nearest class",
    "bpda": "BPDA: knows the purifier",
}


@dataclasses.dataclass(frozen=True)
class Judged:
    """One image and what the networks say of it.

    image: uint8 (C, H, W). classes: names with their confidences in [0, 1], the highest first. bits_per_dim, p_value:
    of the density model. surprise: the bits of every sub-pixel, float32 (C, H, W).
    """

    image: Tensor
    classes: tuple[tuple[str, float], ...]
    bits_per_dim: float
    p_value: float
    surprise: Tensor

    @property
    def label(self) -> str:
        """What the classifier calls it."""
        return self.classes[0][0]


@dataclasses.dataclass(frozen=True)
class Examination:
    """An image at its three stages, and the settings that led there; both eps in steps of 0..255."""

    dataset: str
    attack: str
    attack_eps: int
    purify_eps: int
    clean: Judged
    attacked: Judged
    purified: Judged

    @property
    def rows(self) -> int:
        """How many rows the image has."""
        return self.clean.image.shape[1]


class Laboratory:
    """The networks of one data set: 'fashion-mnist' or 'cifar10'.

    device: where they compute, as ``--device`` has it; engine, threads: of purification. Raises ValueError for another
    data set, and what :func:`pxfast.load` raises.
    """

    def __init__(self, dataset: str, *, device: str = "auto", engine: str = "auto", threads: int | None = None) -> None:
        self.dataset: str = check_choice("dataset", dataset, DATASETS)
        self.device: torch.device = parse_device(device)
        self.model: PixelCNN = load(dataset)
        self.classifier: Classifier = load_classifier(dataset).to(self.device)
        self.detector: Detector = Detector(self.model)
        self.engine = engine
        self.threads = threads

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the networks take."""
        config = self.model.config
        return (config.channels, *config.image_size)

    def examine(self, image: Tensor, attack: str, attack_eps: int, purify_eps: int) -> Examination:
        """Attack one uint8 image (C, H, W) and purify the result.

        attack: of ``ATTACKS``; it leads away from what the classifier calls the image. attack_eps, purify_eps: 0..255.
        Raises TypeError or ValueError for others, and for an image of another shape.
        """
        check_choice("attack", attack, ATTACKS)
        attack_eps, purify_eps = check_eps(attack_eps), check_eps(purify_eps)
        if tuple(image.shape) != self.image_shape:
            raise ValueError(f"expected an image (C, H, W) = {self.image_shape}, got {tuple(image.shape)}")
        clean = image[None].to(self.device)
        purifier = Purifier(eps=purify_eps, model=self.model, engine=self.engine, threads=self.threads)
        attacked = clean
        if attack != "none":
            target = Defended(self.classifier, [purifier]) if attack == "bpda" else self.classifier
            attacked = attack_on_one(attack)(target, clean, None, attack_eps)
        stages = self.judge(torch.cat((clean, attacked, purifier(attacked))))
        return Examination(self.dataset, attack, attack_eps, purify_eps, *stages)

    @torch.no_grad()
    def judge(self, images: Tensor) -> list[Judged]:
        """What the networks say of uint8 images (N, C, H, W)."""
        images = images.to(self.device)
        confidences = self.classifier(images.float() / 255).softmax(1).cpu()
        bits, p_values = bits_per_dim(images, model=self.model), self.detector.p_value(images)
        maps = surprise(images, model=self.model).cpu()
        names = CLASSES[self.dataset]
        return [
            Judged(
                images[n].cpu(),
                tuple((names[k], float(confidences[n, k])) for k in confidences[n].argsort(descending=True).tolist()),
                float(bits[n]),
                float(p_values[n]),
                maps[n],
            )
            for n in range(len(images))
        ]

    def decoded(self, examination: Examination, rows: int) -> Judged:
        """The image once so many rows of it are purified: 0 is the attacked one, all rows are the purified one."""
        return self.judge(partly_purified(examination, rows)[None])[0]


def partly_purified(examination: Examination, rows: int) -> Tensor:
    """The first ``rows`` rows of the purified image above the rest of the attacked one: uint8 (C, H, W).

    Purification goes from row to row and never returns to one, so this is what stands there after ``rows`` of them.
    Raises TypeError or ValueError for rows outside 0..H.
    """
    rows = check_count("rows", rows)
    if rows > examination.rows:
        raise ValueError(f"rows must be an integer in 0..{examination.rows}, got {rows}")
    return torch.cat((examination.purified.image[:, :rows], examination.attacked.image[:, rows:]), dim=1)


def attack_on_one(name: str) -> Attack:
    """The attack of this name for a single image."""
    attack = find_attack(name, **({"steps": BPDA_STEPS} if name == "bpda" else {}))
    # its batches would be filled up to 32 images, for 32 times the work; an instance's own size wins over its class's
    vars(attack)["batch"] = 1
    return attack
