"""Certificates against changes of an L2 norm, by randomised smoothing: they hold with a confidence.

Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019, algorithm CERTIFY.
The smoothed classifier's label is the likeliest one under Gaussian noise. Of ``first_samples`` noisy copies the label
of most votes is taken. Of ``samples`` others its votes are counted, and their Clopper-Pearson bound p at level alpha
makes the radius sigma Phi^-1(p). Where p is at most 1/2 the classifier abstains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..adp.purifier import ADPPurifier
from ..base.checks import (
    check_choice,
    check_count,
    check_eps,
    check_instance,
    check_number,
    check_progress,
    check_seed,
)
from ..base.extras import require
from ..base.progress import reporting
from ..base.records import shown
from ..classifiers.contract import Labels
from ..data.images import Images, to_grid
from ..defences.defended import VIEWS
from ..pixelcnn.shipped import model_for
from ..pixeldefend.purify import purify
from ..tensors.ambient import in_plain_torch
from ..tensors.seeds import derived_seeds, image_seeds, standard_normal
from .certificates import ABSTAINS, Certificates
from .guesses import given_images
from .splitting import check_eval_mode, checked_arithmetic, checked_labels, name_of
from .votes import votes

PURIFIERS = ("none", "adp", "pixeldefend")
TOGETHER = 128  # noisy copies that are purified at once
# noisy images, floating (M, C, H, W), and not clamped, to images of that shape in [0, 1]
Denoiser: TypeAlias = Callable[[Tensor], Tensor]


@in_plain_torch
@torch.no_grad()
def certify_l2(
    classifier: nn.Module,
    images: Images,
    labels: Labels,
    *,
    sigma: float = 0.25,
    samples: int = 1000,
    first_samples: int = 100,
    alpha: float = 0.001,
    purifier: str | Denoiser = "none",
    model: Any = None,
    eps: int | None = None,
    views: str = "one",
    seed: int = 0,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    progress: bool | Callable[[int], None] = False,
) -> Certificates:
    """Certify images against changes of an L2 norm, each with probability 1 - alpha at least, by random noise.

    classifier: gives logits (M, classes) for floating images (M, C, H, W), and stands in eval mode. images: (N, C, H,
    W), as :func:`pxfast.purify` takes them. labels: integers (N,). sigma: the noise's deviation on images in [0, 1],
    above 0. samples: noisy copies of an image that are counted, N in the paper (100,000 there), at least 1.
    first_samples: those that choose the label, N0 (100). alpha: in (0, 1), the probability that a radius is too large.

    purifier: what stands in front of the classifier. 'none': nothing. 'adp': one denoising step, x + sigma s(x), of the
    score network, clamped to [0, 1]. 'pixeldefend': the noisy image, clamped and rounded, purified within ±``eps``, by
    default sigma in grey levels. Or a function of noisy images. model: a model of the purifier's kind, as it takes
    them. views: as for :func:`certify`. engine, precision, threads, progress: as for :func:`pxfast.purify`. seed: of
    the noise, with the image's own values: an image's result does not depend on the others.

    Returns the :class:`Certificates`, whose radii are in units of [0, 1]. Raises TypeError or ValueError for bad input;
    ImportError without scipy (``pip install 'pxfast[evaluate]'``).
    """
    check_instance("classifier", classifier, nn.Module)
    sigma = check_number("sigma", sigma, 0.0, ends="()")
    samples, first_samples = check_count("samples", samples, 1), check_count("first_samples", first_samples, 1)
    alpha = check_number("alpha", alpha, 0.0, 1.0, ends="()")
    if not callable(purifier) and (not isinstance(purifier, str) or purifier not in PURIFIERS):
        kind = ValueError if isinstance(purifier, str) else TypeError
        raise kind(f"purifier must be one of {', '.join(PURIFIERS)}, or a function of images, got {shown(purifier)}")
    eps = None if eps is None else check_eps(eps)
    if eps is not None and purifier != "pixeldefend":
        raise ValueError(f"eps={shown(eps)} means nothing to purifier={name_of(purifier)!r}: only pixeldefend takes it")
    if model is not None and (callable(purifier) or purifier == "none"):
        raise ValueError(f"a model means nothing to purifier={name_of(purifier)!r}: only adp and pixeldefend take one")
    eps = min(255, round(255.0 * sigma)) if eps is None else eps
    check_choice("views", views, VIEWS)
    seed = check_seed(seed)
    arithmetic = checked_arithmetic(engine, precision, threads)
    engine, precision = arithmetic["engine"], arithmetic["precision"]
    check_progress(progress)
    check_eval_mode(classifier)
    require("scipy", "evaluate")
    grid, form = to_grid(images)
    labels = checked_labels(classifier, labels, grid, form.device)
    denoise: Denoiser
    if callable(purifier):
        denoise = purifier
    elif purifier == "adp":
        denoise = _adp(sigma, model)
    elif purifier == "pixeldefend":
        density = model_for(model, grid.shape[1:])  # once: a training may replace the file meanwhile

        def denoise(noisy: Tensor) -> Tensor:
            clamped = noisy.clamp(0.0, 1.0)
            return purify(clamped, eps, model=density, engine=engine, precision=precision, threads=threads)

    else:
        denoise = _nothing
    found = []
    with reporting(len(grid), progress) as report:
        for image in grid.to(form.device).float() / 255.0:
            key = image_seeds(image[None], seed)
            first = _noisy_votes(classifier, views, denoise, image, sigma, derived_seeds(key, 0)[0], first_samples)
            counted = _noisy_votes(classifier, views, denoise, image, sigma, derived_seeds(key, 1)[0], samples)
            found.append((int(first.argmax()), counted))
            report(len(found))
    tops = torch.tensor([top for top, _ in found], dtype=torch.int64)
    counts = torch.stack([counted for _, counted in found]) if found else torch.zeros((0, 2), dtype=torch.int64)
    predictions, radii = l2_radii(counts, tops, sigma, alpha)
    settings: dict[str, Any] = {
        "norm": "l2",
        "sigma": sigma,
        "samples": samples,
        "first_samples": first_samples,
        "alpha": alpha,
        "purifier": name_of(purifier),
        "seed": seed,
    }
    if views != "one":
        settings["views"] = views
    if purifier == "pixeldefend":
        settings |= {"eps": eps, **arithmetic}
    return Certificates(labels, predictions, radii, counts, "l2", settings)


def l2_radii(counts: Tensor, tops: Tensor, sigma: float, alpha: float) -> tuple[Tensor, Tensor]:
    """Predictions, int64 (N,), -1 where abstained, and radii, float64 (N,), from counts (N, classes) of other copies
    than those that chose ``tops`` (N,).
    """
    from scipy.stats import norm

    predictions = torch.full_like(tops, ABSTAINS)
    radii = torch.zeros(len(tops), dtype=torch.float64)
    for i, (own, top) in enumerate(zip(counts.tolist(), tops.tolist(), strict=True)):
        bound = clopper_pearson(own[top], sum(own), alpha)
        if bound > 0.5:
            predictions[i] = top
            radii[i] = sigma * float(norm.ppf(bound))
    return predictions, radii


def clopper_pearson(successes: int, trials: int, alpha: float) -> float:
    """The one-sided lower bound, at level 1 - alpha, of the probability of what came ``successes`` times of ``trials``.

    It is the least p under which so many successes or more have a probability of alpha (Clopper and Pearson 1934).
    """
    from scipy.stats import beta

    bound = float(beta.ppf(alpha, successes, trials - successes + 1)) if successes else 0.0
    return min(bound, math.nextafter(1.0, 0.0))  # it is below 1, and for an alpha near 1 was rounded to it


def _noisy_votes(
    classifier: nn.Module, views: str, denoise: Denoiser, image: Tensor, sigma: float, seed: int, samples: int
) -> Tensor:
    """Votes, int64 (classes,), of noisy copies of an image (C, H, W); copy k has noise of its own by ``seed`` and k."""
    total: Tensor | None = None
    for start in range(0, samples, TOGETHER):
        count = min(TOGETHER, samples - start)
        seeds = [derived_seeds([seed], k)[0] for k in range(start, start + count)]
        clean = image.expand(count, *image.shape)
        noisy = clean + sigma * standard_normal(seeds, clean)
        own = votes(classifier, given_images(denoise(noisy.clone()), noisy), views)
        total = own if total is None else total + own
    assert total is not None
    return total


def _nothing(noisy: Tensor) -> Tensor:
    return noisy


def _adp(sigma: float, model: Any) -> Denoiser:
    """One step along the score to the posterior mean (Tweedie's formula), if noise of ``sigma`` is what there is."""
    purifier = ADPPurifier(sigma=min(sigma, 1.0), model=model)

    def denoise(noisy: Tensor) -> Tensor:
        return (noisy + sigma * purifier.log_prob_gradient(noisy)).clamp(0.0, 1.0)

    return denoise
