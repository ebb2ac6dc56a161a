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

    class _Preprocessor:
        """ART's, whose types checkers don't know; an instance is anything to them, so that ART's functions take it."""

        def __new__(cls, *arguments: Any, **settings: Any) -> Any: ...
        def __init__(self, **settings: bool | str) -> None: ...

    _PreprocessorPyTorch = _Preprocessor
else:
    _art = require("art.defences.preprocessor.preprocessor", "art")
    _Preprocessor, _PreprocessorPyTorch = _art.Preprocessor, _art.PreprocessorPyTorch


def _check(purifier: object) -> None:
    if not isinstance(purifier, Purifier):
        raise TypeError(f"expected a pxfast.Purifier, got {type(purifier).__name__}")


class ArtPurifier(_Preprocessor):
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
        _check(self.purifier)

    def __call__(self, x: np.ndarray, y: Any | None = None) -> tuple[np.ndarray, Any | None]:
        """Images (N, C, H, W) purified, of the same dtype, and the labels as they are."""
        return self.purifier(x), y


class ArtPurifierPyTorch(_PreprocessorPyTorch):
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

    def _check_params(self) -> None:
        _check(self.purifier)

    def forward(self, x: Tensor, y: Any | None = None) -> tuple[Tensor, Any | None]:
        """Images (N, C, H, W) purified, of the same dtype and device, and the labels as they are."""
        return self.purifier(x), y
