"""Fast PixelDefend: purify images with a PixelCNN++ and compiled, cached decoding."""

from .adp import ADPPurifier
from .density import bits_per_dim, log_prob
from .detection import Detector
from .pixelcnn import PixelCNN, PixelCNNConfig
from .purify import Purifier, purify
from .sampling import sample
from .verify import Verification, verify
from .weights import load

__version__ = "0.1.0"

__all__ = [
    "ADPPurifier",
    "Detector",
    "PixelCNN",
    "PixelCNNConfig",
    "Purifier",
    "Verification",
    "__version__",
    "bits_per_dim",
    "load",
    "log_prob",
    "purify",
    "sample",
    "verify",
]
