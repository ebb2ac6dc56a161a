"""Images at work: finished ones make room, batches stay full, and nothing depends on who works beside whom."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.helpers import bundled_images
from torch import Tensor

from pxfast.attacks import climb as climb_module
from pxfast.attacks.climb import Ascent, State, climbed

COUNT = 90
NEEDED = torch.arange(COUNT) * 37 % 12  # steps after which each image has fallen; some never do within 8


class Counted(Ascent):
    """Moves every value up by a level; image i has fallen once it was moved ``NEEDED[i]`` times."""

    def __init__(self) -> None:
        super().__init__(self.direct, 5, steps=8, step=1, queries=1, gradients=2)
        self.sizes: list[int] = []

    def direct(self, images: Tensor, labels: Tensor, seeds: list[int]) -> tuple[Tensor, Tensor]:
        self.sizes.append(len(images))
        assert len(set(seeds)) == len(seeds), "each image's draws are its own"
        return torch.ones_like(images), self.taken_by(labels) >= NEEDED[labels]

    def step(self, state: State) -> Tensor | None:
        self.now = state
        return super().step(state)

    def taken_by(self, labels: Tensor) -> Tensor:
        assert torch.equal(labels, self.now["labels"])
        return self.now["taken"]


def arrivals(images: Tensor, group: int) -> list[State]:
    """The images in groups, the label of each being its number."""
    numbers = torch.arange(len(images))
    whole = {"x": images.float() / 255.0, "labels": numbers, "seeds": numbers + 1000}
    return [
        {name: value[first : first + group] for name, value in whole.items()} for first in range(0, len(images), group)
    ]


def images_of(count: int) -> Tensor:
    return bundled_images(1)[:30].repeat(3, 1, 1, 1)[:count, :, :4, :4]


@settings(max_examples=40, deadline=None)
@given(at_once=st.integers(1, 100), released=st.integers(1, 40), group=st.integers(1, 100))
def test_an_images_result_is_its_own_and_the_batch_stays_full(at_once, released, group):
    given_images, climb = images_of(COUNT), Counted()
    pieces = [
        piece for piece, _ in climbed(climb, arrivals(given_images, group), steps=8, at_once=at_once, released=released)
    ]
    numbers = torch.cat([piece["labels"] for piece in pieces])
    assert sorted(numbers.tolist()) == list(range(COUNT)), "every image comes once"
    assert all(len(piece["labels"]) % released == 0 for piece in pieces[:-1])
    # an image is moved until it has fallen, which the next step finds out, and at most 8 times, at most 5 levels
    taken = torch.cat([piece["taken"] for piece in pieces])
    assert torch.equal(taken, (NEEDED[numbers] + 1).clamp(max=8))
    moves = NEEDED[numbers].clamp(max=8).clamp(max=5)[:, None, None, None]
    expected = (given_images[numbers].int() + moves).clamp(max=255)
    assert torch.equal(torch.cat([piece["moved"] for piece in pieces]), expected)
    assert sum(climb.sizes) == int(taken.sum()), "no image takes a step that it does not need"
    # every step is a full one, and from the first that is not, where no image waits any more, there are only fewer
    rest = list(itertools.dropwhile(lambda size: size == min(at_once, COUNT), climb.sizes))
    assert all(later <= sooner for sooner, later in itertools.pairwise(rest))


def test_no_steps_and_no_images():
    climb = Counted()
    (piece,) = [piece for piece, _ in climbed(climb, arrivals(images_of(3), 3), steps=0, at_once=2, released=3)]
    assert torch.equal(piece["moved"], images_of(3).int())
    assert climb.sizes == []
    assert list(climbed(climb, [], steps=4, at_once=2)) == []


def test_groups_are_fetched_when_there_is_room():
    """A data set that is prepared group by group is not held whole: no group is asked for before it can begin."""
    fetched = []

    def groups():
        for number, group in enumerate(arrivals(images_of(60), 10)):
            fetched.append(number)
            yield group

    pieces = climbed(Counted(), groups(), steps=8, at_once=10)
    next(pieces)
    assert len(fetched) <= 2
    list(pieces)
    assert fetched == list(range(6))


def test_seconds_are_those_of_beginning_and_stepping_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of what prepares the images, nor of what is done with them; each second is told of once."""
    clock, count = [0.0], {"begun": 0, "stepped": 0}

    def spend(seconds: float) -> None:
        clock[0] += seconds

    class Timed(Counted):
        def begin(self, state: State) -> None:
            spend(7.0)
            count["begun"] += 1
            super().begin(state)

        def step(self, state: State) -> Tensor | None:
            spend(1.0)
            count["stepped"] += 1
            return super().step(state)

    def prepared():
        for group in arrivals(images_of(20), 5):
            spend(1000.0)
            yield group

    monkeypatch.setattr(climb_module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    told = []
    for _, seconds in climbed(Timed(), prepared(), steps=8, at_once=8, released=3):
        told.append(seconds)
        spend(1000.0)
    assert sum(told) == 7.0 * count["begun"] + count["stepped"]
    assert len(told) > 3
    assert all(seconds >= 1.0 for seconds in told[:-1])


@pytest.mark.parametrize("size", [2, 5])
def test_an_end_by_steps_alone(size):
    """A direction that does not say who has fallen."""
    climb = Ascent(
        lambda images, labels, seeds: (-torch.ones_like(images), None), 255, steps=6, step=2, queries=1, gradients=1
    )
    pieces = [piece for piece, _ in climbed(climb, arrivals(images_of(5), 5), steps=3, at_once=size)]
    found = torch.cat([piece["moved"] for piece in pieces])[torch.cat([piece["labels"] for piece in pieces]).argsort()]
    assert torch.equal(found, (images_of(5).int() - 6).clamp(min=0))
