"""Certified accuracy against the radius: as a picture, as lines of text, and as a page with both."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...certification import Certificates
from .pictures import LINES, STYLE, new_figure

UNITS = {"l1": "L1 radius, grey levels", "l2": "L2 radius, in units of [0, 1]"}
TABLE_RADII: dict[str, tuple[float, ...]] = {
    "l1": (0, 1, 2, 4, 8, 12, 15, 24, 31, 48, 63, 96, 127, 191, 255, 383, 511),
    "l2": (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3),
}


def table_radii(certificates: Certificates) -> list[float]:
    """Round radii from 0 up to the first one that no image reaches."""
    radii = [float(radius) for radius in TABLE_RADII[certificates.norm]]
    reached = [radius for radius in radii if not certificates.certified_accuracy(radius) <= 0.0]
    return radii[: max(1, len(reached)) + 1]


def table_rows(certificates: Certificates) -> list[dict[str, float]]:
    """By round radii: the radius, in units of [0, 1] as well, and the certified accuracy."""
    return [
        {
            "radius": radius,
            "radius_of_unit_range": radius / certificates.unit,
            "certified_accuracy": certificates.certified_accuracy(radius),
        }
        for radius in table_radii(certificates)
    ]


def table_lines(certificates: Certificates) -> list[str]:
    """``table_rows`` as lines of text, with a line of what the columns are; each radius once, if its units are one."""
    units = [UNITS[certificates.norm], *(["in units of [0, 1]"] if certificates.unit != 1.0 else [])]
    lines = ["\t".join([*units, "certified accuracy"])]
    for row in table_rows(certificates):
        radii = [f"{row['radius']:g}", f"{row['radius_of_unit_range']:.4g}"][: len(units)]
        lines.append("\t".join([*radii, f"{100 * row['certified_accuracy']:.1f} %"]))
    return lines


def draw_certified(series: Mapping[str, Certificates]) -> Figure:
    """Certified accuracy against the radius, a line for each of the named ones, all of one norm.

    ValueError for none, or for several norms.
    """
    return draw_panels({"": series})


def draw_panels(panels: Mapping[str, Mapping[str, Certificates]]) -> Figure:
    """As :func:`draw_certified` a panel with a title for each series, two in a row; a name is one line in all of them.

    Radii reach as far as those of each panel. ValueError for no certificates at all, or for several norms.
    """
    everything = [certificates for series in panels.values() for certificates in series.values()]
    norms = {certificates.norm for certificates in everything}
    if len(norms) != 1:
        raise ValueError(f"expected certificates of one norm, got {', '.join(sorted(norms)) or 'none'}")
    (norm,) = norms
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    rows, columns = -(-len(panels) // 2), min(2, len(panels))
    with rc_context(STYLE):
        figure = new_figure(6.0, 3.6 if rows == 1 else 0.8 + 2.4 * rows)
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        handles: dict[str, Line2D] = {}
        for axes, (title, series) in zip(grid.flat, panels.items(), strict=False):
            finite = [r for each in series.values() for r in each.radii.tolist() if r != float("inf")]
            furthest = 1.05 * max([1e-3, *finite])
            for name, certificates in series.items():
                radii, shares = certificates.curve()
                # the share of a radius holds down to the radius before it
                corners = [*radii, furthest]
                heights = [*(100 * share for share in shares), 0.0]
                number = names.index(name)
                style: dict[str, Any] = {"color": f"C{number}", "linestyle": LINES[number % len(LINES)]}
                (handles[name],) = axes.step(corners, heights, where="pre", label=name, **style)
            axes.set(title=title, xlim=(0, furthest), ylim=(0, 100))
            axes.grid(alpha=0.3)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes in grid[:, 0]:
            axes.set_ylabel("certified accuracy, %")
        for axes in grid[-1]:
            axes.set_xlabel(UNITS[norm])
        figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=2)
    return figure


def page_of(certificates: Certificates, name: str, facts: Sequence[tuple[str, Any]]) -> str:
    """An HTML page that needs no other file: what was certified, the table and the curve."""
    picture = io.BytesIO()
    with rc_context(STYLE):
        draw_certified({name: certificates}).savefig(picture, format="png")
    encoded = base64.b64encode(picture.getvalue()).decode()
    said = "".join(f"<dt>{html.escape(str(key))}</dt><dd>{html.escape(str(value))}</dd>" for key, value in facts)
    head, *lines = [line.split("\t") for line in table_lines(certificates)]
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    alt = "; ".join(f"{line[0]}: {line[-1]}" for line in lines)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Certified accuracy: {html.escape(name)}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem }}
img {{ max-width: 100%; background: white }}
table {{ border-collapse: collapse }}
th, td {{ text-align: right; padding: 0.2rem 1rem; border-bottom: 1px solid #8888 }}
dt {{ float: left; clear: left; min-width: 12rem }}
dd {{ margin-left: 12rem; overflow-wrap: anywhere }}
</style></head><body>
<h1>Certified accuracy: {html.escape(name)}</h1>
<p>{html.escape(claim(certificates))}</p>
<p><img alt="Certified accuracy by radius: {html.escape(alt)}" src="data:image/png;base64,{encoded}"></p>
<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>
<h2>How</h2>
<dl>{said}</dl>
</body></html>
"""


def claim(certificates: Certificates) -> str:
    """What the certificates say, in a sentence or two."""
    if certificates.norm == "l1":
        return (
            "Where a radius is certified, no change of an image on the grid of 0..255 whose absolute values add up to "
            "that many grey levels or fewer alters the smoothed classifier's label. Nothing was sampled."
        )
    alpha = certificates.settings["alpha"]
    return (
        "Where a radius is certified, no change of an image of at most that L2 norm alters the smoothed classifier's "
        f"label. Each certificate is wrong with a probability of at most {alpha:g}."
    )
