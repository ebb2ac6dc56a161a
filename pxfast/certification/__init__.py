"""Certificates: radii within which no change of an image, by whatever attack, alters a smoothed classifier's label.

``certify`` counts the votes of a classifier over all offsets of splitting noise (Levine and Feizi, ICML 2021), with
PixelDefend as the guess of the image behind its cells: an L1 radius without sampling. ``certify_l2`` is randomised
smoothing (Cohen et al., ICML 2019): an L2 radius that holds with a confidence.
"""

from ..pixeldefend.cells import cells, shifts
from .certificates import Certificates
from .estimates import Estimate
from .guesses import Guess
from .smoothing import certify_l2
from .splitting import certify, radii_of

__all__ = ["Certificates", "Estimate", "Guess", "cells", "certify", "certify_l2", "radii_of", "shifts"]
