"""Attacks on classifiers, each callable as ``attack(classifier, images, labels, eps)`` on uint8 images (N, C, H, W).

``attack.run`` takes the same and also says which images are misclassified before and after rounding to the grid.
"""

from .attack import Attack
from .autoattack import autoattack
from .box_lbfgs import lbfgs
from .carlini_wagner import cw_l2, cw_linf
from .deepfool import deepfool
from .defence_aware import blind_pgd, bpda, bpda_eot, full_gradient, joint_full, joint_score, unrolled_bim
from .foolbox_attacks import (
    contrast_reduction,
    deepfool_l2,
    gaussian_blur,
    gradient,
    gradient_sign,
    iterative_gradient_sign,
    salt_and_pepper,
    uniform_noise,
)
from .gradients import NoGradient
from .result import AttackResult
from .saliency_map import saliency_map
from .sign_steps import bim, bim_steps, fgsm, pgd, rand
from .spsa import spsa

PAPER = (rand, fgsm, bim, deepfool, cw_l2, cw_linf)  # of Song et al. 2018
REPRODUCTION = (  # the ten of its first reproduction, in the order of its table
    gradient_sign,
    gradient,
    deepfool_l2,
    gaussian_blur,
    saliency_map,
    uniform_noise,
    salt_and_pepper,
    lbfgs,
    contrast_reduction,
    iterative_gradient_sign,
)
YARDSTICKS = (pgd, autoattack)  # today's
ADAPTIVE = (blind_pgd, bpda, bpda_eot, joint_score, joint_full, spsa, full_gradient, unrolled_bim)  # on defended models

ATTACKS = {attack.name: attack for attack in (*PAPER, *REPRODUCTION, *YARDSTICKS, *ADAPTIVE)}


def find_attack(name: str) -> Attack:
    """The attack of this name. ValueError lists the known ones."""
    if name not in ATTACKS:
        raise ValueError(f"unknown attack {name!r}; known: {', '.join(ATTACKS)}")
    return ATTACKS[name]


__all__ = [
    "ADAPTIVE",
    "ATTACKS",
    "PAPER",
    "REPRODUCTION",
    "YARDSTICKS",
    "Attack",
    "AttackResult",
    "NoGradient",
    "autoattack",
    "bim",
    "bim_steps",
    "blind_pgd",
    "bpda",
    "bpda_eot",
    "contrast_reduction",
    "cw_l2",
    "cw_linf",
    "deepfool",
    "deepfool_l2",
    "fgsm",
    "find_attack",
    "full_gradient",
    "gaussian_blur",
    "gradient",
    "gradient_sign",
    "iterative_gradient_sign",
    "joint_full",
    "joint_score",
    "lbfgs",
    "pgd",
    "rand",
    "saliency_map",
    "salt_and_pepper",
    "spsa",
    "uniform_noise",
    "unrolled_bim",
]
