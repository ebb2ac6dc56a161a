"""``--grid``: the first images before and after, as one picture, with labels and bits/dim."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..pixelcnn.network import PixelCNN
    from .stage_picture import Row

SHOWN = 30  # images in the picture


class Judges(NamedTuple):
    """What says something of the images. classifier: on images as they are; density: of bits/dim; None: nobody does.

    classes: the names of the labels; None: their numbers.
    """

    classifier: nn.Module | None = None
    density: PixelCNN | None = None
    classes: Sequence[str] | None = None


def density_of(model: PixelCNN | None, shape: tuple[int, ...]) -> PixelCNN | None:
    """The density model for images (C, H, W): the one given, or the shipped one; None where none is."""
    from ..pixelcnn.shipped import SHIPPED, model_for

    if model is None:
        try:
            SHIPPED.name_for(shape)
        except ValueError:
            return None
    return model_for(model, shape)


def class_names(classifier: str | Path | None) -> Sequence[str] | None:
    """The names of the classes of a shipped classifier; None of others."""
    from ..classifiers.weights import SHIPPED, read_notes
    from ..evaluation.figures.attack_pictures import CLASSES

    return CLASSES[read_notes(str(classifier))["dataset"]] if str(classifier) in SHIPPED else None


def write_grid(
    path: Path,
    stages: Sequence[tuple[str, Sequence[str], Tensor]],
    judges: Judges,
    labels: Tensor | None = None,
) -> None:
    """Write the picture: a row for each stage and one for how the last differs from the first.

    stages: the name, what else there is to say, and images uint8 (N, C, H, W). labels: the true ones, (N,) int64.
    """
    from .stage_picture import difference_row, draw_rows, write_canvas

    rows = [stage_row(name, notes, images[:SHOWN], judges, labels) for name, notes, images in stages]
    first, last = rows[0], rows[-1]
    rows.append(difference_row(f"{last.name} - {first.name}", first.images, last.images))
    write_canvas(draw_rows(rows), path)


def stage_row(name: str, notes: Sequence[str], images: Tensor, judges: Judges, labels: Tensor | None) -> Row:
    """A row of the picture, with what the judges say of each image and of all of them."""
    from ..classifiers import predict
    from ..pixelcnn.likelihood import bits_per_dim
    from .stage_picture import Line, Row, bits_line, label_line

    words, captions = list(notes), [list[Line]() for _ in images]
    true = [None] * len(images) if labels is None else labels.tolist()
    if judges.classifier is not None:
        found = predict(judges.classifier, images).tolist()
        for lines, given, label in zip(captions, found, true, strict=False):
            lines.append(label_line(given, label, judges.classes))
        if labels is not None:
            right = sum(given == label for given, label in zip(found, true, strict=False))
            words.append(f"{right} of {len(images)} right")
    if judges.density is not None:
        bits = bits_per_dim(images.cpu(), model=judges.density)
        for lines, each in zip(captions, bits.tolist(), strict=True):
            lines.append(bits_line(each))
        words.append(f"{float(bits.mean()):.2f} bits/dim")
    return Row(name, words, images.cpu(), captions)
