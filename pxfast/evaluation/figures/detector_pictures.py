"""Drawing what ``detectors.py`` measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .pictures import legend_above, rows_of_panels, title_of

BINS = 20
STYLES: list[tuple[tuple[str, str], dict[str, Any]]] = [
    (("log-likelihood", "lower"), {"fill": True, "facecolor": "0.85", "edgecolor": "0.25", "hatch": "/////"}),
    (("log-likelihood", "both"), {"color": "0.0", "linewidth": 1.6}),
    (("rare", "both"), {"color": "0.35", "linewidth": 1.2, "linestyle": "--"}),
]


def draw_detectors(p_values: Mapping[str, Mapping[tuple[str, str], np.ndarray]], settings: dict[str, Any]) -> Figure:
    """Histograms of p-values, a panel for each kind of images, as the paper's Figure 3; by detector (N,) each."""
    bins = np.linspace(0.0, 1.0, BINS + 1)
    figure, panels = rows_of_panels(len(p_values), 1.05)
    for axes, (kind, found) in zip(panels, p_values.items(), strict=True):
        for detector, style in STYLES:
            heights = np.histogram(found[detector], bins)[0] / len(found[detector])
            axes.stairs(heights, bins, label=f"{detector[0]}, {detector[1]}", **style)
        axes.axhline(1.0 / BINS, color="0.0", linestyle=":", label="uniform")
        axes.set_ylim(0.0, 1.0)
        axes.set_title(title_of(kind))
        axes.set_ylabel("fraction")
    panels[-1].set_xlabel(f"p-value of {settings['images']} images of {settings['data set']}, eps {settings['eps']}")
    panels[-1].set_xlim(0.0, 1.0)
    legend_above(figure, panels[0], 2)
    return figure
