"""The items of a step that a worker takes, and their data, fetched ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from rayd.distill.contract import Item, Objective

AHEAD = 2
"""Items whose data are fetched while one is used."""


def own_items(objective: Objective, share: tuple[int, int], step: int) -> list[Item]:
    """Of the items of a step those of this worker, `share` of the workers; one, where it shares that with others."""
    rank, size = share
    items = objective.plan(step)
    place = rank % len(items) if objective.split.of > 1 else rank
    return [item for item in items if item.number % size == place]


def fetched(items: Iterator[Item], fetch: Callable[[Item], Any]) -> Generator[Any]:
    """The data of each item in turn. A thread fetches so many while one is used, however many items a step has."""
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="fetch") as pool:
        for item in items:
            waiting.append(pool.submit(fetch, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
