"""Certified accuracy and its curve, by hand; that a classifier is tried once, and by whom its batch is judged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pxfast.certification import Certificates, certify
from pxfast.certification.votes import each_tried_once
from pxfast.evaluation.figures import certified


def certificates(radii: list[float], norm: str = "l1") -> Certificates:
    """Of five images, of which the first three are right, the fourth wrong and the last undecided."""
    labels, predictions = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 0, -1])
    return Certificates(
        labels, predictions, torch.tensor(radii, dtype=torch.float64), torch.zeros(5, 3).long(), norm, {}
    )


def test_the_curve_by_hand() -> None:
    """A radius holds for itself; a wrong label's counts for nothing."""
    found = certificates([3.0, 7.0, 3.0, 9.0, 0.0])
    assert found.accuracy == 0.6
    assert [found.certified_accuracy(radius) for radius in (0, 3, 3.5, 7, 7.5)] == [0.6, 0.6, 0.2, 0.2, 0.0]
    assert found.curve() == ([0.0, 3.0, 7.0], [0.6, 0.6, 0.2])
    assert certificates([0.0, 7.0, 0.0, 9.0, 0.0]).curve() == ([0.0, 7.0], [0.6, 0.2])


@pytest.mark.parametrize(("norm", "unit"), [("l1", 255.0), ("l2", 1.0)])
def test_units_of_radii(norm: str, unit: float) -> None:
    assert certificates([0.0] * 5, norm).unit == unit


# --- classifiers that look at their batch ---

IMAGE = torch.tensor([[[[200, 240]]]], dtype=torch.uint8)


class Batchwise(nn.Module):
    """Logits to which a number of the whole batch is added; ``tried`` counts its calls."""

    def __init__(self, number) -> None:
        super().__init__()
        self.number = number
        self.tried = 0

    def forward(self, images: Tensor) -> Tensor:
        self.tried += 1
        return images.flatten(1) + self.number(images)


@pytest.mark.parametrize(
    "number",
    [
        lambda images: images.amin().clamp(min=40 / 255),
        lambda images: images.amax(),
        lambda images: (images[..., 1] - images[..., 0]).amin().clamp(max=-0.1),
    ],
    ids=["black", "white", "inverted"],
)
def test_each_companion_finds_what_the_others_miss(number) -> None:
    """Beside (200, 240) only black falls below 40, only white has more, and only its inverse falls to the right."""
    with pytest.raises(ValueError, match="and those of the first image do"):
        certify(Batchwise(number).eval(), IMAGE, [0], width=2, purifier="midpoints")


def test_a_classifier_is_tried_once_within_and_anew_outside() -> None:
    def calls(classifier: Batchwise) -> int:
        before = classifier.tried
        certify(classifier, IMAGE, [0], width=2, purifier="midpoints")
        return classifier.tried - before

    first, second = (Batchwise(lambda images: 0.0).eval() for _ in range(2))
    with each_tried_once():
        assert [calls(first), calls(first), calls(second), calls(first)] == [5, 1, 5, 1]
        with pytest.raises(ValueError, match=r"labels in 0\.\.1, the classifier's 2 classes, got 2"):
            certify(first, IMAGE, [2], width=2, purifier="midpoints")
    assert [calls(first), calls(first)] == [5, 5]


def test_a_name_is_one_line_in_all_panels() -> None:
    """Each panel reaches as far as its own radii, and the legend has every name once."""
    panels = {
        "near": {"a": certificates([3.0, 7.0, 3.0, 9.0, 0.0]), "b": certificates([1.0] * 5)},
        "far": {"c": certificates([90.0] * 5), "b": certificates([60.0] * 5)},
        "third": {"a": certificates([5.0] * 5)},
    }
    figure = certified.draw_panels(panels)
    near, far, third, rest = figure.axes
    assert [axes.get_title(loc="left") or axes.get_title() for axes in (near, far, third)] == list(panels)
    assert not rest.axison
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
    colours: dict[str, set[str]] = {name: set() for name in "abc"}
    for axes in (near, far, third):
        for line in axes.lines:
            colours[line.get_label()].add(line.get_color())
    assert all(len(each) == 1 for each in colours.values())
    assert len(set.union(*colours.values())) == 3
    assert near.get_xlim()[1] < 10 < far.get_xlim()[1]
    assert near.get_ylim() == far.get_ylim() == (0, 100)
