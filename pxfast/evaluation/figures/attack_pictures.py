"""Pictures of attacks: images attacked and purified, errors by attack, and violins of bits/dim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from .pictures import legend_above, new_figure, show_images, title_of

CLASSES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "fashion-mnist": (
        *("T-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
}


def class_name(dataset: str, label: int) -> str:
    """What a data set calls a class; its number where it has no names here."""
    return CLASSES[dataset][label] if dataset in CLASSES else f"class {label}"


def draw_images(attacked: Tensor, purified: Tensor, attack: str, columns: int = 12) -> Figure:
    """Attacked images above, the same purified below (the paper's Figures 10 and 11): uint8 (N, C, H, W) both."""
    rows = -(-len(attacked) // columns)
    figure = new_figure(7.0, 0.6 * 2 * rows + 0.7)
    upper, lower = figure.subplots(2, 1)
    show_images(upper, attacked, columns, f"Attacked by {title_of(attack)}")
    show_images(lower, purified, columns, "Purified")
    return figure


def draw_example(images: Mapping[str, tuple[Tensor, Tensor]], labels: Mapping[str, tuple[str, str]]) -> Figure:
    """One image under every attack, as given and purified, with the predicted labels (the paper's Figures 1 and 4).

    images: by attack, two uint8 images (C, H, W). labels: by attack, what the classifier calls them.
    """
    figure = new_figure(1.25 * len(images), 3.4)
    panels = figure.subplots(2, len(images), squeeze=False)
    for column, (attack, pair) in enumerate(images.items()):
        for axes, image, label in zip(panels[:, column], pair, labels[attack], strict=True):
            picture = image.permute(1, 2, 0).numpy()
            axes.imshow(picture if len(image) == 3 else picture[:, :, 0], cmap="gray", vmin=0, vmax=255)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlabel(label)
        panels[0, column].set_title(title_of(attack), loc="center")
    for axes, name in zip(panels[:, 0], ("as given", "purified"), strict=True):
        axes.set_ylabel(name)
    return figure


def draw_errors(errors: Mapping[str, tuple[float, float]], images: int) -> Figure:
    """Test errors by attack, without and with purification, in [0, 1] (the paper's Figure 2b)."""
    figure = new_figure(6.4, 3.0)
    axes = figure.subplots()
    places = np.arange(len(errors))
    before, after = (np.array([100 * pair[i] for pair in errors.values()]) for i in (0, 1))
    axes.bar(places - 0.19, before, 0.36, facecolor="0.85", edgecolor="0.25", hatch="/////", label="as given")
    axes.bar(places + 0.19, after, 0.36, facecolor="0.35", edgecolor="0.0", label="purified")
    bars = zip(places.tolist(), before.tolist(), after.tolist(), strict=True)
    for place, value in ((p, v) for pair in bars for p, v in _sides(*pair)):
        axes.annotate(f"{value:.0f}", (place, value), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(places, [title_of(name) for name in errors])
    axes.set_ylim(0, 108)
    axes.set_ylabel(f"test error in %, {images} images")
    legend_above(figure, axes, 2)
    return figure


def draw_violins(bits: Mapping[str, np.ndarray]) -> Figure:
    """Distributions of bits/dim by attack, (N,) each, with their medians (the reproduction's Figure 2)."""
    names = list(bits)
    figure = new_figure(6.4, 0.42 * len(names) + 0.9)
    axes = figure.subplots()
    spread = [_spread(bits[name]) for name in names]
    parts: dict[str, Any] = axes.violinplot(
        spread, range(len(names)), orientation="horizontal", widths=0.85, showextrema=False, showmedians=True
    )
    for i, body in enumerate(parts["bodies"]):
        body.set(facecolor="0.95" if names[i] == "clean" else "0.75", edgecolor="0.2", alpha=1.0, linewidth=0.8)
    parts["cmedians"].set(color="0.0", linewidth=1.6)
    clean = bits.get("clean")
    if clean is not None:
        axes.axvline(float(np.median(clean)), color="0.4", linestyle=":", linewidth=1.0, label="median of clean images")
        legend_above(figure, axes, 1)
    axes.set_yticks(range(len(names)), [title_of(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("bits/dim")
    return figure


def _sides(place: float, before: float, after: float) -> Sequence[tuple[float, float]]:
    return (place - 0.19, before), (place + 0.19, after)


def _spread(values: np.ndarray) -> np.ndarray:
    """The values themselves; where all are one, which has no density, with a hair's breadth around it."""
    values = np.asarray(values, np.float64)
    return values if np.ptp(values) > 0 else np.concatenate((values - 1e-3, values + 1e-3))
