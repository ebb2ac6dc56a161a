"""Attacks on classifiers. All take and give uint8 images (N, C, H, W) within ``eps`` of what they were given."""

from .fgsm import fgsm

__all__ = ["fgsm"]
