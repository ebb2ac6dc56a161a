"""What a step of a classifier's training minimises, in nats."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .adversarial import ADVERSARIAL_WEIGHT

CONFUSION_WEIGHT = 0.5  # of the entropy beside a consistency loss, as published


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy in nats with targets 1 - smoothing for the label and smoothing / (K - 1) for the K - 1 others.

    torch gives every class, the label too, an equal share of what it takes away, so it is to take K / (K - 1) as much.
    ValueError for a smoothing of more than (K - 1) / K, with which the label would be the class that is least wanted.
    """
    K = logits.shape[1]
    if smoothing * K > K - 1:
        raise ValueError(f"expected a smoothing of at most {(K - 1) / K:g} for {K} classes, got {smoothing}")
    return F.cross_entropy(logits, labels, label_smoothing=smoothing * K / (K - 1))


def mixed_cross_entropy(logits: Tensor, labels: Tensor, clean: int) -> Tensor:
    """Weighted mean of the cross-entropies in nats; those behind the first ``clean`` count ADVERSARIAL_WEIGHT each."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    weights = torch.full_like(losses, ADVERSARIAL_WEIGHT)
    weights[:clean] = 1.0
    return (weights * losses).sum() / weights.sum()


def consistent_cross_entropy(logits: Tensor, labels: Tensor, weight: float) -> Tensor:
    """Mean cross-entropy in nats, and how much the halves of ``logits`` (2 M, K) differ: two versions of M images.

    labels: (2 M,). weight: of the mean Kullback-Leibler divergence of both versions' probabilities from their mean,
    whose own entropy counts CONFUSION_WEIGHT. Jeong and Shin, "Consistency Regularization for Certified Robustness of
    Smoothed Classifiers", NeurIPS 2020, with two versions of an image.
    """
    logs = logits.float().log_softmax(dim=1).unflatten(0, (2, -1))
    mean = logs.exp().mean(dim=0)
    log_mean = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
    divergence = (mean * (log_mean - logs.mean(dim=0))).sum(dim=1).mean()
    entropy = -(mean * log_mean).sum(dim=1).mean()
    found: Tensor = F.cross_entropy(logits.float(), labels) + weight * divergence + CONFUSION_WEIGHT * entropy
    return found
