"""Attacks on classifiers: classes, made with their options and called with images (N, C, H, W).

The images are uint8, or floating in [0, 1], and what comes back is of the same type.
``BIM(steps=10)(classifier, images, labels, eps=8)`` gives the attacked images. ``BIM(steps=10).run(...)`` takes the
same and also says which images are misclassified before and after rounding to the grid.
"""

import inspect
from typing import Any

from ..base.checks import check_text
from .apgd import APGDBPDA
from .attack import Attack
from .autoattack import AutoAttack
from .box_lbfgs import LBFGS
from .carlini_wagner import CWL2, CWLinf
from .clipped import ClippedAttack
from .deepfool import DeepFool
from .defence_aware import BPDA, BPDAEOT, BlindPGD, FullGradient, JointFull, JointScore
from .foolbox_attacks import (
    ContrastReduction,
    DeepFoolL2,
    GaussianBlur,
    Gradient,
    GradientSign,
    IterativeGradientSign,
    SaltAndPepper,
    UniformNoise,
)
from .gradients import NoGradient
from .likelihood_aware import LikelihoodAware
from .random_search import RandomSearch
from .result import AttackResult
from .resumable import attack_to_file
from .saliency_map import SaliencyMap
from .sign_steps import BIM, FGSM, PGD, Rand, bim_steps
from .spsa import SPSA
from .unrolled_bim import UnrolledBIM

PAPER: tuple[type[Attack], ...] = (Rand, FGSM, BIM, DeepFool, CWL2, CWLinf)  # of Song et al. 2018
REPRODUCTION: tuple[type[Attack], ...] = (  # the ten of its first reproduction, in the order of its table
    GradientSign,
    Gradient,
    DeepFoolL2,
    GaussianBlur,
    SaliencyMap,
    UniformNoise,
    SaltAndPepper,
    LBFGS,
    ContrastReduction,
    IterativeGradientSign,
)
YARDSTICKS: tuple[type[Attack], ...] = (PGD, AutoAttack)  # today's
ADAPTIVE: tuple[type[Attack], ...] = (  # on defended models
    BlindPGD,
    BPDA,
    BPDAEOT,
    JointScore,
    JointFull,
    SPSA,
    FullGradient,
    UnrolledBIM,
    APGDBPDA,
    RandomSearch,
)
DETECTION: tuple[type[Attack], ...] = (LikelihoodAware,)  # on a classifier and a detector at once

ATTACKS: dict[str, type[Attack]] = {
    attack.name: attack for attack in (*PAPER, *REPRODUCTION, *YARDSTICKS, *ADAPTIVE, *DETECTION)
}


def find_attack(name: str, **options: Any) -> Attack:
    """The attack of this name in ``ATTACKS``, made with these options of its own.

    ValueError lists the known names; TypeError for an option that the attack lacks, which lists its own, and what its
    constructor raises.
    """
    if check_text("an attack", name) not in ATTACKS:
        raise ValueError(f"unknown attack {name!r}; known: {', '.join(ATTACKS)}")
    known = list(inspect.signature(ATTACKS[name]).parameters)
    for option in options:
        if option not in known:
            raise TypeError(f"{name} has no option {option!r}; it takes {', '.join(known) or 'none'}")
    return ATTACKS[name](**options)


__all__ = [
    "ADAPTIVE",
    "APGDBPDA",
    "ATTACKS",
    "BIM",
    "BPDA",
    "BPDAEOT",
    "CWL2",
    "DETECTION",
    "FGSM",
    "LBFGS",
    "PAPER",
    "PGD",
    "REPRODUCTION",
    "SPSA",
    "YARDSTICKS",
    "Attack",
    "AttackResult",
    "AutoAttack",
    "BlindPGD",
    "CWLinf",
    "ClippedAttack",
    "ContrastReduction",
    "DeepFool",
    "DeepFoolL2",
    "FullGradient",
    "GaussianBlur",
    "Gradient",
    "GradientSign",
    "IterativeGradientSign",
    "JointFull",
    "JointScore",
    "LikelihoodAware",
    "NoGradient",
    "Rand",
    "RandomSearch",
    "SaliencyMap",
    "SaltAndPepper",
    "UniformNoise",
    "UnrolledBIM",
    "attack_to_file",
    "bim_steps",
    "find_attack",
]
