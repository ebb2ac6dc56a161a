"""Tasks in threads whose questions are answered together: in order, as many at once as there may be, errors and all."""

import threading
from collections.abc import Callable
from functools import partial

import pytest

from pxfast.base.together import answered_together

Ask = Callable[[int], int]


def asking(ask: Ask, number: int) -> list[int]:
    """A task that asks ``number`` times."""
    return [ask(100 * number + i) for i in range(number)]


def tasks(count: int) -> list[Callable[[Ask], list[int]]]:
    return [partial(asking, number=number) for number in range(count)]


@pytest.mark.parametrize("size", [1, 3, 50])
def test_each_task_gets_its_own_answers_and_many_are_answered_at_once(size: int) -> None:
    rounds = []

    def answer(questions: list[int]) -> list[int]:
        rounds.append(questions)
        return [-question for question in questions]

    found = answered_together(tasks(9), answer, size)
    assert found == [[-(100 * number + i) for i in range(number)] for number in range(9)]
    assert all(questions == sorted(questions) for questions in rounds)
    assert max(len(questions) for questions in rounds) == min(size, 8)
    assert answered_together([], answer, size) == []
    # a place that becomes free is taken at once
    assert len(rounds) == {1: 36, 3: 15, 50: 8}[size]


def test_an_error_ends_every_task() -> None:
    class Failure(Exception):
        pass

    def failing(ask: Ask) -> list[int]:
        ask(1)
        raise Failure("of a task")

    before = threading.active_count()
    with pytest.raises(Failure, match="of a task"):
        answered_together([*tasks(5), failing, *tasks(5)], list, 4)
    assert threading.active_count() == before

    def refuse(questions: list[int]) -> list[int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answered_together(tasks(9), refuse, 4)
    assert threading.active_count() == before
