"""Computes passes of a model at the same time, each in a thread of its own.

The threads of torch share every operation. They wait for each other at its end, and operations that use one thread
only, such as drawing random numbers, leave the others idle. Passes in threads of their own wait only at the end of a
step.
"""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

ITEMS_PER_THREAD = 4  # with fewer, threads are idle at the end for too long, unless all have equally many

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: list[Item], threads: int) -> Generator[Result, None, None]:
    """Yields function(item) of every item, in order. Each of `threads` threads computes whole items.

    The threads of torch are divided among them. One more result than there are threads is computed before it is asked
    for. A few items that cannot be divided evenly are computed one after the other, by all threads of torch.
    """
    if threads == 1 or (len(items) % threads and len(items) < ITEMS_PER_THREAD * threads):
        yield from map(function, items)
        return
    before = torch.get_num_threads()

    def run(item: Item) -> Result:
        torch.set_num_threads(max(1, before // threads))  # of this thread, and of those that are started later
        return function(item)

    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(run, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
