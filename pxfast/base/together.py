"""Answers to many threads at once: each thread asks one question at a time, as if it were alone."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


class Abandoned(Exception):
    """Nobody answers any more: the thread that did has failed."""


class _Task(threading.Thread, Generic[Question, Answer, Result]):
    """A task in a thread of its own. It puts itself into ``events`` when it asks, and when it has ended."""

    question: Question
    result: Result

    def __init__(
        self,
        number: int,
        function: Callable[[Callable[[Question], Answer]], Result],
        events: queue.SimpleQueue[_Task[Question, Answer, Result]],
    ) -> None:
        super().__init__(daemon=True)
        self.number = number
        self.function = function
        self.events = events
        self.answers: queue.SimpleQueue[Answer | Abandoned] = queue.SimpleQueue()
        self.ended = False
        self.error: BaseException | None = None

    def ask(self, question: Question) -> Answer:
        """The answer to a question, once it has come."""
        self.question = question
        self.events.put(self)
        answer = self.answers.get()
        if isinstance(answer, Abandoned):
            raise answer
        return answer

    def run(self) -> None:
        try:
            self.result = self.function(self.ask)
        except BaseException as error:  # it is raised where the tasks are waited for
            self.error = error
        self.ended = True
        self.events.put(self)


def answered_together(
    tasks: Sequence[Callable[[Callable[[Question], Answer]], Result]],
    answer: Callable[[list[Question]], Sequence[Answer]],
    size: int,
) -> list[Result]:
    """The results of tasks that ask questions, in the tasks' order, where many questions are answered at once.

    A task is a function that gets a function, which answers one question. size: how many tasks there are at a time,
    each in a thread of its own, at least 1; one that has ended makes room for the next. answer: is called in this
    thread, once each of them waits for an answer, with their questions in the tasks' order. An error of a task or of
    ``answer`` is raised here, and ends all tasks.
    """
    events: queue.SimpleQueue[_Task[Question, Answer, Result]] = queue.SimpleQueue()
    every = [_Task(number, task, events) for number, task in enumerate(tasks)]
    started = busy = 0  # threads, and those that neither have ended nor wait
    asking: list[_Task[Question, Answer, Result]] = []
    try:
        while True:
            while started < len(every) and busy + len(asking) < size:
                every[started].start()
                started, busy = started + 1, busy + 1
            if busy:
                task = events.get()
                busy -= 1
                if task.error is not None:
                    raise task.error
                if not task.ended:
                    asking.append(task)
            elif asking:
                asking.sort(key=lambda task: task.number)
                answers = answer([task.question for task in asking])
                for task, found in zip(asking, answers, strict=True):
                    task.answers.put(found)
                busy = len(asking)
                asking.clear()
            else:
                return [task.result for task in every]
    finally:
        for task in every[:started]:
            task.answers.put(Abandoned("the answers have ended"))
        for task in every[:started]:
            task.join()
