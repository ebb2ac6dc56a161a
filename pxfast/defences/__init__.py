"""Defences that change the image before it is classified. PixelDefend itself is :class:`pxfast.Purifier`.

Defences that change the classifier's training are settings of :mod:`pxfast.classifiers.training`. ``art`` offers the
purifier to the Adversarial Robustness Toolbox.
"""

from .defended import Defended
from .feature_squeezing import FeatureSqueezing

__all__ = ["Defended", "FeatureSqueezing"]
