"""Batches of what waits: single items from coroutines to a function of lists, in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Gives ``work`` the items that wait, one list at a time; those that come meanwhile are the next list.

    ``ray.serve.batch`` closes a batch when its time is up, however many items lie there already; under load that makes
    batches of a few.

    work: a list of 1 to ``most`` items to as many results, called in one thread alone, which ``start`` prepares.
    wait: a list that is not full waits for more until so many seconds have passed in which none came. What ``work``
    raises is raised for all its items.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], list[Result]],
        most: int,
        wait: float = 0.0,
        start: Callable[[], None] = lambda: None,
    ) -> None:
        self.work: Callable[[list[Item]], list[Result]] = work
        self.most: int = most
        self.wait: float = wait
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._task: asyncio.Task[None] | None = None
        self._thread: concurrent.futures.ThreadPoolExecutor = concurrent.futures.ThreadPoolExecutor(
            1, "pxfast-batches", start
        )

    async def __call__(self, item: Item) -> Result:
        """The item's result."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            count = 0
            while self.wait and count < len(self._waiting) < self.most:
                count = len(self._waiting)
                await asyncio.sleep(self.wait)
            # whoever asked may have gone
            taken = [each for each in self._waiting if not each[1].done()][: self.most]
            self._waiting = [each for each in self._waiting if not each[1].done()][self.most :]
            if not taken:
                continue
            items = [item for item, _ in taken]
            try:
                results = await asyncio.get_running_loop().run_in_executor(self._thread, self.work, items)
            except Exception as error:
                for _, future in taken:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), result in zip(taken, results, strict=True):
                    if not future.done():
                        future.set_result(result)
