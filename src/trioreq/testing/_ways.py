"""The directions of a connection: items arrive in order, late, or not at all."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import trio

from .._server.deadlines import Deadlines, Timer
from .._transport.heartbeats import heartbeat_times

T = TypeVar("T")

Timers = Deadlines[Callable[[], None]]


def open_timers() -> Timers:
    """Timers that call functions."""
    return Deadlines(lambda call: call())


class Way(Generic[T]):
    """One direction of a connection.

    Args:
        timers: Time the delay.
        deliver: Called with each item when it arrives.
    """

    def __init__(self, timers: Timers, deliver: Callable[[T], None]) -> None:
        self.delay: float = 0.0  # seconds
        self._timers = timers
        self._deliver = deliver
        self._items: deque[tuple[float, T]] = deque()  # each with the time of its arrival
        self._obstacles: set[str] = set()

    @property
    def blocked(self) -> bool:
        """Whether items do not arrive now."""
        return bool(self._obstacles)

    @property
    def held(self) -> list[T]:
        """The items that have not arrived, the oldest first."""
        return [item for _, item in self._items]

    def put(self, item: T) -> None:
        """Send an item."""
        now = trio.current_time()
        last = self._items[-1][0] if self._items else -math.inf
        due = max(now + self.delay, last)  # never before the previous one
        self._items.append((due, item))
        if due > now:
            self._timers.add(due, self._move)
        else:
            self._move()

    def block(self, obstacle: str) -> None:
        """Stop the arrival of items, for a named reason."""
        self._obstacles.add(obstacle)

    def clear(self, obstacle: str) -> None:
        """End a reason: items arrive again, unless there is another one."""
        self._obstacles.discard(obstacle)
        self._move()

    def forget(self) -> None:
        """Drop the items that have not arrived."""
        self._items.clear()

    def _move(self) -> None:
        now = trio.current_time()
        while self._items and not self._obstacles and self._items[0][0] <= now:
            self._deliver(self._items.popleft()[1])


class Watch:
    """A heartbeat: it ends a connection that is silent for too long.

    A PING is sent at each interval, and must be answered within the timeout (`heartbeat_times`).
    There is no timer while PINGs are answered, so that time can jump.
    """

    def __init__(
        self, timers: Timers, heartbeat: float | None, give_up: Callable[[], None]
    ) -> None:
        self._timers = timers
        self._times = None if heartbeat is None else heartbeat_times(heartbeat)
        self._give_up = give_up
        self._begun = trio.current_time()
        self._timer: Timer[Callable[[], None]] | None = None

    def silent(self) -> None:
        """No PING is answered from now on."""
        if self._times is None or self._timer is not None:
            return
        interval, timeout = self._times
        pings = math.floor((trio.current_time() - self._begun) / interval) + 1
        self._timer = self._timers.add(self._begun + pings * interval + timeout, self._give_up)

    def heard(self) -> None:
        """PINGs are answered again, or the connection has ended."""
        if self._timer is not None:
            self._timers.forget(self._timer)
            self._timer = None
