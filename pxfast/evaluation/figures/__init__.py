"""The paper's figures: of a table's attacks and rows, or from a density model alone."""

from .density import density_figures, measure_density
from .detectors import detector_figures
from .evaluate import evaluate_figures, evaluate_violins
from .series import DensityMeasurements, Series

__all__ = [
    "DensityMeasurements",
    "Series",
    "density_figures",
    "detector_figures",
    "evaluate_figures",
    "evaluate_violins",
    "measure_density",
]
