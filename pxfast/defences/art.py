"""pxfast's purifier as a preprocessing defence of the Adversarial Robustness Toolbox (``pip install 'pxfast[art]'``).

ART takes defences of either kind, not of both at once: use :class:`ArtPurifier` beside NumPy preprocessors and
:class:`ArtPurifierPyTorch` beside PyTorch ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from ..base.extras import require
from ..pixeldefend.purify import Purifier

if TYPE_CHECKING:
    from art.defences.preprocessor import preprocessor
else:
    preprocessor = require("art.defences.preprocessor.preprocessor", "art")


class ArtPurifier(preprocessor.Preprocessor):
    """The purifier for NumPy arrays (N, C, H, W), floating in [0, 1]: ``preprocessing_defences=ArtPurifier()``.

    purifier: None for ``Purifier()``. apply_fit, apply_predict: whether ART purifies while it trains and predicts.
    Its gradient is ART's default, the identity at the purified image, which is BPDA.
    """

    params: ClassVar[list[str]] = ["purifier"]

    def __init__(
        self, purifier: Purifier | None = None, *, apply_fit: bool = False, apply_predict: bool = True
    ) -> None:
        super().__init__(is_fitted=True, apply_fit=apply_fit, apply_predict=apply_predict)
        self.purifier: Purifier = Purifier() if purifier is None else purifier
        self._check_params()

    def _check_params(self) -> None:
        if not isinstance(self.purifier, Purifier):
            raise TypeError(f"expected a pxfast.Purifier, got {type(self.purifier).__name__}")

    def __call__(self, x: np.ndarray, y: Any | None = None) -> tuple[np.ndarray, Any | None]:
        """Images (N, C, H, W) purified, of the same dtype, and the labels as they are."""
        return self.purifier(x), y


class ArtPurifierPyTorch(preprocessor.PreprocessorPyTorch):
    """As :class:`ArtPurifier`, for tensors; the purifier's own straight-through gradient lies inside ``forward``."""

    params: ClassVar[list[str]] = ["purifier"]

    def __init__(
        self,
        purifier: Purifier | None = None,
        *,
        apply_fit: bool = False,
        apply_predict: bool = True,
        device_type: str = "gpu",
    ) -> None:
        super().__init__(device_type=device_type, is_fitted=True, apply_fit=apply_fit, apply_predict=apply_predict)
        self.purifier: Purifier = Purifier() if purifier is None else purifier
        self._check_params()

    _check_params = ArtPurifier._check_params

    def forward(self, x: Tensor, y: Any | None = None) -> tuple[Tensor, Any | None]:
        """Images (N, C, H, W) purified, of the same dtype and device, and the labels as they are."""
        return self.purifier(x), y
