"""One timer for any number of requests, each with a deadline of its own or with none."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count
from typing import Generic, TypeVar

import trio

T = TypeVar("T")

AT_ONCE = 256  # items that expire in one pass of the event loop
SPARE = 64  # forgotten entries that may stay in the heap, beyond the number of live ones


class Timer(Generic[T]):
    """An entry of the heap. A forgotten one has no item, and is removed later."""

    __slots__ = ("item",)

    def __init__(self, item: T) -> None:
        self.item: T | None = item


class Deadlines(Generic[T]):
    """Items, ordered by deadline."""

    def __init__(self, expire: Callable[[T], None]) -> None:
        self._expire = expire
        self._heap: list[tuple[float, int, Timer[T]]] = []
        self._live = 0
        self._number = count()  # equal deadlines keep their order, and timers are never compared
        self._sleep = trio.CancelScope()

    def add(self, deadline: float, item: T) -> Timer[T]:
        """Expire the item at the deadline, unless it is forgotten first."""
        if len(self._heap) >= SPARE + 2 * self._live:
            self._heap = [entry for entry in self._heap if entry[2].item is not None]
            heapq.heapify(self._heap)
        timer = Timer(item)
        heapq.heappush(self._heap, (deadline, next(self._number), timer))
        self._live += 1
        if deadline < self._sleep.deadline:
            self._sleep.deadline = deadline  # wakes `run` earlier
        return timer

    def forget(self, timer: Timer[T]) -> None:
        """Remove an item before its deadline, and free its memory."""
        # The entry stays: to search the heap for it would take time linear in its length.
        if timer.item is not None:
            timer.item = None
            self._live -= 1

    async def run(self) -> None:
        """Expire what is due, until cancelled."""
        while True:
            with trio.CancelScope(deadline=self._expire_due()) as self._sleep:
                await trio.sleep_forever()

    def _expire_due(self) -> float:
        """Expire what is due, but not too many in one pass; returns when the next one will be."""
        now = trio.current_time()
        expired = 0
        while self._heap:
            if expired == AT_ONCE:
                return now
            deadline, _, timer = self._heap[0]
            item = timer.item
            if item is not None and deadline > now:
                return deadline
            heapq.heappop(self._heap)
            if item is not None:
                self.forget(timer)
                self._expire(item)
                expired += 1
        return math.inf
