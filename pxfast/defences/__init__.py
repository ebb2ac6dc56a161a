"""Defences that change the image before it is classified. PixelDefend itself is :class:`pxfast.Purifier`.

Defences that change the classifier's training are settings of :mod:`pxfast.classifiers.training`; ``train_behind``
trains one on what a defence gives it. ``art`` offers the
purifier to the Adversarial Robustness Toolbox. :class:`OnColumn` puts a defence into pipelines of mappings.
"""

from .behind import train_behind
from .defended import Defended
from .feature_squeezing import FeatureSqueezing
from .named import DEFENCES, parse_defence
from .on_column import OnColumn
from .protocol import DifferentiablePurifier, HidesNetworks, ScoredPurifier, StochasticPurifier, is_stochastic

__all__ = [
    "DEFENCES",
    "Defended",
    "DifferentiablePurifier",
    "FeatureSqueezing",
    "HidesNetworks",
    "OnColumn",
    "ScoredPurifier",
    "StochasticPurifier",
    "is_stochastic",
    "parse_defence",
    "train_behind",
]
