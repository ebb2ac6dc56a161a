"""The paper's figures from one's own models: ``density`` measures, ``pictures`` draws."""

from .density import DensityMeasurements, Series, density_figures, measure_density

__all__ = ["DensityMeasurements", "Series", "density_figures", "measure_density"]
