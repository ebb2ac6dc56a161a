"""Fast PixelDefend: purify images with a PixelCNN++ and compiled, cached decoding."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .base.version import __version__

if TYPE_CHECKING:
    from . import attacks, certification, classifiers, data, defences, evaluation, serving
    from .adp.purifier import ADPPurifier
    from .certification.certificates import Certificates
    from .certification.smoothing import certify_l2
    from .certification.splitting import certify
    from .defences.defended import Defended
    from .engines.registry import list_engines
    from .evaluation.benchmark import benchmark
    from .evaluation.referee import referee
    from .pixelcnn.files import save
    from .pixelcnn.likelihood import bits_per_dim, log_prob, surprise
    from .pixelcnn.network import PixelCNN, PixelCNNConfig
    from .pixelcnn.shipped import list_models, load
    from .pixeldefend.detection import Detector
    from .pixeldefend.purify import Purifier, purify
    from .pixeldefend.sampling import sample
    from .pixeldefend.verify import Verification, verify

__all__ = [
    "ADPPurifier",
    "Certificates",
    "Defended",
    "Detector",
    "PixelCNN",
    "PixelCNNConfig",
    "Purifier",
    "Verification",
    "__version__",
    "attacks",
    "benchmark",
    "bits_per_dim",
    "certification",
    "certify",
    "certify_l2",
    "classifiers",
    "data",
    "defences",
    "evaluation",
    "list_engines",
    "list_models",
    "load",
    "log_prob",
    "purify",
    "referee",
    "sample",
    "save",
    "serving",
    "surprise",
    "verify",
]

# where the names above come from; imported when they are first asked for, so that `pxfast --help` need not import torch
_ORIGINS = {
    "ADPPurifier": "adp.purifier",
    "Certificates": "certification.certificates",
    "Defended": "defences.defended",
    "Detector": "pixeldefend.detection",
    "PixelCNN": "pixelcnn.network",
    "PixelCNNConfig": "pixelcnn.network",
    "Purifier": "pixeldefend.purify",
    "Verification": "pixeldefend.verify",
    "benchmark": "evaluation.benchmark",
    "bits_per_dim": "pixelcnn.likelihood",
    "certify": "certification.splitting",
    "certify_l2": "certification.smoothing",
    "list_engines": "engines.registry",
    "list_models": "pixelcnn.shipped",
    "load": "pixelcnn.shipped",
    "log_prob": "pixelcnn.likelihood",
    "purify": "pixeldefend.purify",
    "referee": "evaluation.referee",
    "sample": "pixeldefend.sampling",
    "save": "pixelcnn.files",
    "surprise": "pixelcnn.likelihood",
    "verify": "pixeldefend.verify",
}
_PACKAGES = ("attacks", "certification", "classifiers", "data", "defences", "evaluation", "serving")


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _ORIGINS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_ORIGINS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
