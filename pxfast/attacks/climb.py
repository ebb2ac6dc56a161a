"""Attacks step by step over many images, a few at work at once: one that is finished makes room for another.

A purifier and a classifier cost the least for an image in full batches. Most images fall in a few steps and some take
all of them, so a fixed group of images would soon be a small batch.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..tensors.seeds import derived_seeds

State = dict[str, Tensor]  # by name, a row for each image at work


class Climb(abc.ABC):
    """How an attack moves images at work, each of which is at a step of its own.

    steps: the most that an image takes. queries, gradients: what a step costs it. A *query* is an image once through
    the purifier. A *gradient* is an image once backwards through the classifier, the whole pipeline or the density
    model.

    A state has ``x``, the images as they came, floating (n, C, H, W) in [0, 1]; ``moved``, as they are now, in grid
    levels; ``labels``, int64; ``seeds``, of their random numbers, int64; ``taken``, how many steps they have taken,
    int64; and whatever the attack puts there.
    """

    def __init__(self, steps: int, queries: int, gradients: int) -> None:
        self.steps: int = steps
        self.queries: int = queries
        self.gradients: int = gradients

    @abc.abstractmethod
    def begin(self, state: State) -> None:
        """Put into the state of new images ``moved``, and what else the steps need."""

    @abc.abstractmethod
    def step(self, state: State) -> Tensor | None:
        """Take a step with all images at work, in their state. Gives which of them are finished, bool; None: none."""


def seeds_of(state: State, *numbers: int | Sequence[int]) -> list[int]:
    """Seeds for draws of the images at work, counted by the numbers; see :func:`pxfast.tensors.seeds.derived_seeds`."""
    return derived_seeds(state["seeds"].tolist(), *numbers)


def rowwise(values: Tensor) -> Tensor:
    """A value of each image, (n,), against images (n, C, H, W)."""
    return values[:, None, None, None]


def better(found: Tensor, before: Tensor, wrong: Tensor | None) -> Tensor:
    """Which images are better than those before, by how far another class leads, (n,): those with a larger lead.

    wrong: which are misclassified, and so finished; they are better whatever the lead. A tie goes to the first class:
    two images of the same lead may be one that is right and one that is wrong. None: nobody knows.
    """
    return found > before if wrong is None else (found > before) | wrong


def rows_of(state: State, rows: Tensor | slice) -> State:
    """Some images' rows."""
    return {name: values[rows] for name, values in state.items()}


def together(states: Sequence[State]) -> State:
    """The images of all the states, which have the same names."""
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def climbed(
    climb: Climb, arrivals: Iterable[State], *, steps: int, at_once: int, released: int = 1
) -> Iterator[tuple[State, float]]:
    """Images as they are finished, and the seconds that the climb has taken since the last ones.

    arrivals: groups of images, taken when there is room: ``x``, ``labels`` and ``seeds``, and whatever else is to come
    back. steps: the most that an image takes, at most the climb's. at_once: how many are at work. released: they come
    in multiples of so many, but for the last ones. An image's own result depends on none of this.
    """
    queue = _Queue(arrivals)
    work: list[State] = []  # one group, and those that join it
    done: list[State] = []
    seconds = 0.0
    while True:
        while (room := at_once - _count(work)) and (joining := queue.take(room)) is not None:
            started = time.perf_counter()
            joining["taken"] = torch.zeros_like(joining["labels"])
            climb.begin(joining)
            seconds += time.perf_counter() - started
            work.append(joining)
        if not work:
            break
        state, finished = together(work), None
        if steps:
            started = time.perf_counter()
            finished = climb.step(state)
            seconds += time.perf_counter() - started
            state["taken"] += 1
        ended = state["taken"] >= steps
        if finished is not None:
            ended |= finished
        work, done = _split(state, ended, done)
        if whole := _count(done) // released * released:
            first = torch.arange(_count(done), device=ended.device) < whole
            done, given = _split(together(done), first, [])
            yield given[0], seconds
            seconds = 0.0
    if done:
        yield together(done), seconds


class _Queue:
    """Images that wait, in groups."""

    def __init__(self, groups: Iterable[State]) -> None:
        self._groups = iter(groups)
        self._rest: State | None = None

    def take(self, most: int) -> State | None:
        """At most so many of the next ones; None where there are none left."""
        if self._rest is None:
            self._rest = next(self._groups, None)
        if (group := self._rest) is None:
            return None
        self._rest = rows_of(group, slice(most, None)) if _count([group]) > most else None
        return rows_of(group, slice(most))


def _split(state: State, chosen: Tensor, others: list[State]) -> tuple[list[State], list[State]]:
    """The images that are not ``chosen``, bool, and the others with those that are: no state is empty."""
    rest = [] if bool(chosen.all()) else [rows_of(state, ~chosen)]
    return rest, [*others, rows_of(state, chosen)] if bool(chosen.any()) else others


def _count(states: Sequence[State]) -> int:
    return sum(len(state["labels"]) for state in states)


Direction = Callable[[Tensor, Tensor, Sequence[int]], tuple[Tensor, Tensor | None]]


class Ascent(Climb):
    """Steps of ``step`` levels along a direction, each back into the ball and into 0..255, all in integers.

    direction: of images (n, C, H, W) in [0, 1], their labels and a seed for each of them, gives values in [-1, 1] of
    the images' shape, and which of the images the defended classifier gets wrong, bool, or None if that did not come
    out: these are finished. A step is rounded to whole levels, halves to even. radius: of the ball, in levels. start:
    gives integers to add first, of the images and their seeds.
    """

    def __init__(
        self,
        direction: Direction,
        radius: int,
        *,
        steps: int,
        step: int,
        queries: int,
        gradients: int,
        start: Callable[[Sequence[int], Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(steps, queries, gradients)
        self.direction: Direction = direction
        self.radius: int = radius
        self.step_size: int = step
        self.start: Callable[[Sequence[int], Tensor], Tensor] | None = start

    def begin(self, state: State) -> None:
        given = (255.0 * state["x"]).round().int()
        state["lowest"], state["highest"] = (given - self.radius).clamp(min=0), (given + self.radius).clamp(max=255)
        if self.start is not None:
            given = given + self.start(state["seeds"].tolist(), state["x"]).to(given)
        state["moved"] = torch.minimum(torch.maximum(given, state["lowest"]), state["highest"])

    def step(self, state: State) -> Tensor | None:
        seeds = seeds_of(state, state["taken"].tolist())
        way, wrong = self.direction(state["moved"].float() / 255.0, state["labels"], seeds)
        moved = state["moved"] + (self.step_size * way).round().int()
        moved = torch.minimum(torch.maximum(moved, state["lowest"]), state["highest"])
        state["moved"] = moved if wrong is None else torch.where(rowwise(wrong), state["moved"], moved)
        return wrong
