"""The paper's figures from one's own models: ``density`` measures, ``pictures`` draws."""

from .density import density_figures, measure_density
from .series import DensityMeasurements, Series

__all__ = ["DensityMeasurements", "Series", "density_figures", "measure_density"]
