"""Drawing what ``density.py`` measured, so that it can be read in greyscale: by position, hatching and line style."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ...base.files import whole_file
from ...data.image_grid import image_grid
from ...pixeldefend.detection import roc_auc_score, roc_curve

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

    from .series import DensityMeasurements

SUFFIXES = (".png", ".svg")
NAMES = {  # as the paper writes them
    "clean": "clean",
    "rand": "RAND",
    "fgsm": "FGSM",
    "bim": "BIM",
    "deepfool": "DeepFool",
    "cw-l2": "CW (L2)",
    "cw-linf": "CW",
    "gradient-sign": "gradient sign (FGSM)",
    "gradient": "gradient (FGM)",
    "deepfool-l2": "DeepFool (L2)",
    "gaussian-blur": "Gaussian blur",
    "uniform-noise": "uniform noise (RAND)",
    "lbfgs": "L-BFGS",
    "iterative-gradient-sign": "iterative FGSM (BIM)",
}
STYLE: dict[RcKeyType, Any] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.dpi": 160,
    "svg.hashsalt": "pxfast",  # the same file for the same figure
}
LINES: list[str | tuple[int, tuple[int, ...]]] = [
    "-",
    "--",
    "-.",
    ":",
    (0, (5, 1, 1, 1, 1, 1)),
    (0, (1, 3)),
    (0, (8, 2)),
    (0, (3, 1, 1, 1)),
]
HIGHEST_FRACTION = 0.4  # of the images in a bin of p-values that is drawn
MARKERS = ["", "o", "s", "^", "D", "v", "x", "+"]
GREYS = ["0.0", "0.0", "0.35", "0.35", "0.55", "0.0", "0.35", "0.55"]


def title_of(name: str) -> str:
    return NAMES.get(name, name.replace("-", " "))


def legend_above(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, its size in inches."""
    figure = Figure((width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def show_images(axes: Axes, images: Tensor, columns: int, title: str) -> None:
    """A grid of uint8 images (N, C, H, W)."""
    picture = image_grid(images, columns, enlarge=2).permute(1, 2, 0).numpy()
    axes.imshow(picture if picture.shape[2] == 3 else picture[:, :, 0], cmap="gray", vmin=0, vmax=255)
    axes.set_title(title)
    axes.axis("off")


def draw_samples(measured: DensityMeasurements) -> Figure:
    """Real images above, samples below (the paper's Figures 8 and 9)."""
    columns = 12
    rows = -(-len(measured.real) // columns)
    figure = new_figure(7.0, 0.6 * 2 * rows + 0.7)
    upper, lower = figure.subplots(2, 1)
    show_images(upper, measured.real, columns, f"Test images of {measured.settings['data set']}")
    show_images(lower, measured.samples, columns, "Samples from the model")
    return figure


def rows_of_panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """``count`` panels below each other with one horizontal axis."""
    figure = new_figure(6.4, height * count + 0.9)
    panels = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    return figure, list(panels)


def draw_bits_per_dim(measured: DensityMeasurements) -> Figure:
    """Histograms of bits/dim, a panel for each attack, over those of the clean images (the paper's Figure 2a)."""
    clean, *attacked = measured.series
    shown = attacked or [clean]
    everything = np.concatenate([bits for each in measured.series for bits in (each.bits, each.purified_bits)])
    bins: list[float] = np.linspace(everything.min(), everything.max(), 41).tolist()
    figure, panels = rows_of_panels(len(shown), 1.15)
    for axes, each in zip(panels, shown, strict=True):
        axes.hist(clean.bits, bins, color="0.8", label="clean")
        axes.hist(each.bits, bins, histtype="bar", facecolor="none", edgecolor="0.25", hatch="/////", label="attacked")
        axes.hist(each.purified_bits, bins, histtype="step", color="0.0", linewidth=1.6, label="attacked and purified")
        axes.set_title(title_of(each.name))
        axes.set_ylabel("images")
        locator = axes.yaxis.get_major_locator()
        assert isinstance(locator, MaxNLocator)  # matplotlib's default is one
        locator.set_params(integer=True)
    panels[-1].set_xlabel("bits/dim")
    legend_above(figure, panels[0], 3)
    return figure


def draw_p_values(measured: DensityMeasurements) -> Figure:
    """Histograms of p-values, before and after purification (the paper's Figures 3 and 7)."""
    bins = np.linspace(0.0, 1.0, 21)
    figure, panels = rows_of_panels(len(measured.series), 1.05)
    for axes, each in zip(panels, measured.series, strict=True):
        before, after = (np.histogram(p, bins)[0] / len(p) for p in (each.p_values, each.purified_p_values))
        axes.stairs(before, bins, fill=True, facecolor="0.85", edgecolor="0.25", hatch="/////", label="before")
        axes.stairs(after, bins, color="0.0", linewidth=1.6, label="after purification")
        axes.axhline(1.0 / len(before), color="0.0", linestyle=":", label="uniform")
        for fractions, alignment in ((before, "left"), (after, "right")):
            for i in np.flatnonzero(fractions > HIGHEST_FRACTION):  # what sticks out is written beside it
                edge = bins[i + 1] if alignment == "left" else bins[i]
                axes.annotate(
                    f" {fractions[i]:.2f} ", (edge, 0.92 * HIGHEST_FRACTION), ha=alignment, va="top", fontsize=8
                )
        axes.set_ylim(0.0, HIGHEST_FRACTION)
        axes.set_title(title_of(each.name))
        axes.set_ylabel("fraction")
    panels[-1].set_xlabel("p-value")
    panels[-1].set_xlim(0.0, 1.0)
    legend_above(figure, panels[0], 3)
    return figure


def draw_roc(measured: DensityMeasurements) -> Figure:
    """ROC curves of telling images from training images, before and after purification (the paper's Figure 6)."""
    figure = new_figure(7.4, 4.8)
    panels = figure.subplots(1, 2, sharey=True)
    titles = ("before purification", "after purification")
    for axes, title, scores in zip(panels, titles, ("bits", "purified_bits"), strict=True):
        for i, each in enumerate(measured.series):
            suspicious = getattr(each, scores)
            false, true, _ = roc_curve(measured.train_bits, suspicious)
            area = roc_auc_score(measured.train_bits, suspicious)
            axes.plot(
                false,
                true,
                color=GREYS[i % len(GREYS)],
                linestyle=LINES[i % len(LINES)],
                marker=MARKERS[i % len(MARKERS)],
                markevery=(0.06 + 0.015 * i, 0.16),  # spread along the curve, not over its many points
                markersize=4,
                markerfacecolor="white",
                clip_on=False,
                label=f"{title_of(each.name)}: {area:.3f}",
            )
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
        axes.set_aspect("equal")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_title(title)
        axes.set_xlabel("false positives: training images")
        axes.legend(
            title="area under the curve",
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
            ncols=2,
            fontsize=8,
            title_fontsize=8,
            handlelength=3.5,
        )
    panels[0].set_ylabel("true positives")
    return figure


def draw_baseline(measured: DensityMeasurements) -> Figure | None:
    """Bits/dim of the same images by what was done to them (the paper's Figure 5); None without a comparison."""
    if not measured.baseline:
        return None
    names = list(measured.baseline)
    figure = new_figure(6.4, 0.55 * len(names) + 1.1)
    axes = figure.subplots()
    for row, bits in enumerate(measured.baseline.values()):
        values = bits.reshape(len(bits), -1)
        spread = np.linspace(-0.18, 0.18, len(values))[:, None] + np.zeros_like(values)
        axes.plot(
            values.ravel(),
            (row + spread).ravel(),
            linestyle="",
            marker=("o", "s", "^", "D")[row % 4],
            markersize=4,
            color="0.35",
            markerfacecolor="white",
        )
        mean = float(values.mean())
        axes.plot([mean, mean], [row - 0.34, row + 0.34], color="0.0", linewidth=2.2, solid_capstyle="butt")
        axes.annotate(f"{mean:.2f}", (mean, row - 0.36), ha="center", va="bottom", fontsize=8)
    purified = {"L-BFGS-B", "greedy decoding"}
    labels = [f"purified by {name}" if name in purified else title_of(name) for name in names]
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.45, -0.75)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"bits/dim of {len(measured.baseline['clean'])} images; bars are means")
    return figure


PICTURES: dict[str, Callable[[DensityMeasurements], Figure | None]] = {
    "samples": draw_samples,
    "bits-per-dim": draw_bits_per_dim,
    "p-values": draw_p_values,
    "roc": draw_roc,
    "lbfgs": draw_baseline,
}


FILES: list[tuple[str, str]] = [(name, suffix) for name in PICTURES for suffix in SUFFIXES]


def draw_all(measured: DensityMeasurements, paths: Sequence[Path]) -> None:
    """Write every picture to the paths of ``FILES``, each whole or not at all; none where there is nothing to draw."""
    with rc_context(STYLE):
        for name, draw in PICTURES.items():
            figure = draw(measured)
            for (other, _), path in zip(FILES, paths, strict=True):
                if figure is not None and other == name:
                    save_picture(figure, path)


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure as .png or .svg, whole or not at all; the same file for the same figure."""
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with rc_context(STYLE), whole_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], metadata=metadata, bbox_inches="tight", pad_inches=0.1)
