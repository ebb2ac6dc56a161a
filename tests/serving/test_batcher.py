"""Batches of what waits."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pxfast.serving.batcher import Batcher


def test_what_comes_meanwhile_is_the_next_batch_whole() -> None:
    """However many there are: they do not have to come within a time."""
    batches: list[list[int]] = []
    threads = set()
    free = threading.Event()

    def work(items: list[int]) -> list[int]:
        batches.append(items)
        threads.add(threading.get_ident())
        assert free.wait(30)
        return [-item for item in items]

    async def ask() -> list[int]:
        batcher = Batcher(work, most=64)
        asked = [asyncio.create_task(batcher(0))]
        while not batches:
            await asyncio.sleep(0.001)
        asked += [asyncio.create_task(batcher(item)) for item in range(1, 101)]
        await asyncio.sleep(0)
        free.set()
        return await asyncio.gather(*asked)

    assert asyncio.run(ask()) == [-item for item in range(101)]
    assert batches == [[0], list(range(1, 65)), list(range(65, 101))]
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_a_batch_waits_as_long_as_others_come() -> None:
    batches: list[list[int]] = []

    def work(items: list[int]) -> list[int]:
        batches.append(items)
        return items

    async def ask() -> None:
        batcher = Batcher(work, most=4, wait=0.25)
        asked = []
        for item in range(4):
            asked.append(asyncio.create_task(batcher(item)))
            await asyncio.sleep(0.01)
        await asyncio.gather(*asked)
        await batcher(4)

    asyncio.run(ask())
    assert batches == [[0, 1, 2, 3], [4]]


def test_a_failing_batch_fails_for_its_items_alone_and_the_next_one_is_done() -> None:
    def work(items: list[int]) -> list[int]:
        if -1 in items:
            raise MemoryError("no room")
        return items

    async def ask() -> None:
        batcher = Batcher(work, most=4)
        with pytest.raises(MemoryError, match="no room"):
            await batcher(-1)
        assert await batcher(7) == 7

    asyncio.run(ask())


def test_whoever_has_gone_costs_no_work() -> None:
    batches: list[list[int]] = []
    free = threading.Event()

    def work(items: list[int]) -> list[int]:
        batches.append(items)
        assert free.wait(30)
        return items

    async def ask() -> None:
        batcher = Batcher(work, most=4)
        first = asyncio.create_task(batcher(0))
        while not batches:
            await asyncio.sleep(0.001)
        gone, stays = asyncio.create_task(batcher(1)), asyncio.create_task(batcher(2))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        free.set()
        assert await asyncio.gather(first, stays) == [0, 2]

    asyncio.run(ask())
    assert batches == [[0], [2]]
