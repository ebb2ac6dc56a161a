"""What is known of the models behind the tables: how long they were trained, and how good they are by themselves."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...training.provenance import training_parts
from ..results import Table
from .comparison import STRONGEST, attack_columns

# bits/dim of the paper's own density models, Song et al. 2018, section 3.1
PUBLISHED_BITS_PER_DIM = {"fashion-mnist": 2.7, "cifar10": 3.0}


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """A model and its notes. measure: what says how good it is; value: that, in bits/dim or in %; None if not noted.

    test_images: how many it was measured on. published: the paper's for the same measure, where it is known.
    """

    role: str
    name: str
    sha256: str
    datasets: list[str]
    notes: dict[str, Any]
    measure: str
    value: float | None
    test_images: int | None
    published: float | None

    @property
    def seconds(self) -> float | None:
        """Spent on training, over all parts."""
        return _sum(self.notes, "seconds")

    @property
    def images_seen(self) -> float | None:
        """In training, over all parts."""
        return _sum(self.notes, "images_seen")

    @property
    def steps(self) -> float | None:
        return _sum(self.notes, "steps")

    @property
    def machines(self) -> list[str]:
        """What it was trained on, where that is noted."""
        parts = training_parts(self.notes)
        return list(dict.fromkeys(part["machine"] for part in parts if isinstance(part.get("machine"), str)))


def model_facts(tables: list[Table]) -> list[ModelFacts]:
    """Every model of these tables once, density models first."""
    found: dict[tuple[str, str], ModelFacts] = {}
    for table in tables:
        for model in table.models:
            key = (model["role"], model["sha256"])
            if key in found:
                if table.dataset not in found[key].datasets:
                    found[key].datasets.append(table.dataset)
                continue
            notes = dict(model.get("notes") or {})
            density = "density" in model["role"]
            value = _number(notes.get("test_bits_per_dim" if density else "test_accuracy"))
            found[key] = ModelFacts(
                model["role"],
                model["name"],
                model["sha256"],
                [table.dataset],
                notes,
                "bits/dim" if density else "accuracy",
                value if density or value is None else 100.0 * value,
                None if (test_images := _number(notes.get("test_images"))) is None else int(test_images),
                PUBLISHED_BITS_PER_DIM.get(table.dataset) if density else published_accuracy(table, model),
            )
    return sorted(found.values(), key=lambda each: "density" not in each.role)


def published_accuracy(table: Table, classifier: dict[str, Any]) -> float | None:
    """The published accuracy of a classifier on clean images, in %: that of the row with nothing in front of it."""
    alone = set(classifier.get("rows", ())) - set(table.settings.get("defences", {}))
    clean = {column.name for column in table.columns} - {column.name for column in attack_columns(table)} - {STRONGEST}
    return next((cell.published for cell in table.cells if cell.row in alone and cell.column in clean), None)


def _sum(notes: dict[str, Any], key: str) -> float | None:
    values = [_number(part.get(key)) for part in training_parts(notes)]
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
