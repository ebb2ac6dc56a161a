"""The tables of attacked detectors, of what `pxfast figures detectors` wrote: for `result_tables.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pxfast.evaluation.figures.pictures import title_of
from pxfast.pixeldefend.statistics import STATISTICS

TAILS = {"lower": "The lower tail", "both": "Both tails"}
NAMES = {"log-likelihood": "log p"}  # of the statistics, where shorter


def numbers(detectors: list[dict[str, Any]], statistic: str, tail: str) -> str:
    """The area under the ROC curve and the share detected in % of one detector."""
    (found,) = (each for each in detectors if (each["statistic"], each["tail"]) == (statistic, tail))
    return f"{found['AUC']:.2f} / {100 * found['detected']:.0f}"


def markdown(path: Path) -> str:
    """A table for each tail: by attack, the area under the ROC curve and the share that is detected."""
    document = json.loads(path.read_text(encoding="utf-8"))
    parts = []
    for tail, title in TAILS.items():
        rows = [["", "wrong, %", *(NAMES.get(name, name) for name in STATISTICS)]]
        for series in document["series"]:
            found = [numbers(series["detectors"], name, tail) for name in STATISTICS]
            rows.append([title_of(series["name"]), f"{100 * series['misclassified']:.0f}", *found])
        head, *lines = (f"| {' | '.join(row)} |" for row in rows)
        parts += [f"{title}:", "", head.replace("|  |", "| |", 1), f"|---|{'---:|' * (len(rows[0]) - 1)}", *lines, ""]
    of = f"{document['images']:,} test and {document['training images']:,} training images of {document['data set']}"
    return "\n".join([*parts, f"Eps {document['eps']}, {of}; {document['machine']['cpu']}."])
