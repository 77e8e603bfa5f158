"""Slots and fair queues: a bounded number of slots, shared fairly between clients.

A request takes a slot while one is free. Then each client has its own bounded queue, and released
slots go to the waiting clients in turn, one request each.

- A slot is taken until it is released, also by work whose request has ended.
- While a request waits, no slot is free.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from itertools import islice
from threading import Lock
from typing import Generic, TypeVar

C = TypeVar("C", bound=Hashable)
T = TypeVar("T")


class FairQueue(Generic[C, T]):
    """Slots, and a queue for each client that waits for one.

    Args:
        slots: The number of slots.
        per_client: Maximum queued items of one client.
    """

    def __init__(self, slots: int, per_client: int) -> None:
        self.slots = slots
        self._free = slots
        self._per_client = per_client
        self._queues: OrderedDict[C, deque[T]] = OrderedDict()

    @property
    def free(self) -> int:
        """The number of free slots."""
        return self._free

    @property
    def waiting(self) -> int:
        """The number of queued items."""
        return sum(map(len, self._queues.values()))

    def take(self) -> bool:
        """Take a slot; returns False if none is free."""
        if self._free:
            self._free -= 1
            return True
        return False

    def push(self, client: C, item: T) -> bool:
        """Queue an item until a slot is free; returns False, and drops it, if the queue is full."""
        queue = self._queues.get(client)
        if queue is None:
            if not self._per_client:
                return False
            self._queues[client] = deque((item,))
        elif len(queue) < self._per_client:
            queue.append(item)
        else:
            return False
        return True

    def remove(self, client: C, item: T) -> None:
        """Remove an item, if it is still queued."""
        queue = self._queues.get(client)
        if queue is None or item not in queue:
            return
        queue.remove(item)
        if not queue:
            del self._queues[client]

    def release(self) -> T | None:
        """Release a slot; returns the next client's item, which gets it, or None: it is free."""
        queues = self._queues
        if not queues:
            self._free += 1
            return None
        client, queue = next(iter(queues.items()))
        item = queue.popleft()
        if queue:
            queues.move_to_end(client)  # round-robin
        else:
            del queues[client]
        return item


class SharedFairQueue(FairQueue[C, T]):
    """A fair queue whose slots are released by threads.

    `release_in_thread` and `grant` may be called in any thread, everything else in the event
    loop. Released slots are collected and granted in bulk: by a thread that finds nothing granted,
    by the event loop when it has queued items, and before it sleeps. So the lock is taken once for
    many items. No item is missed: a thread releases its slot and then checks for queued items, and
    the event loop queues an item and then checks for released slots.

    Attributes:
        granted: Items that have a slot. The threads that run them take them from the left.
    """

    def __init__(self, slots: int, per_client: int) -> None:
        super().__init__(slots, per_client)
        self.granted: deque[T] = deque()
        self._released: deque[None] = deque()
        self._lock = Lock()

    @property
    def free(self) -> int:
        """As in `FairQueue`."""
        return self._free + len(self._released)

    @property
    def waiting(self) -> int:
        """As in `FairQueue`."""
        if not self._queues:  # only the event loop adds to them
            return 0
        with self._lock:
            return super().waiting

    def push(self, client: C, item: T) -> bool:
        """As in `FairQueue`; if a slot was released meanwhile, the item is granted it."""
        with self._lock:
            self._grant()  # which may make room in the queue
            if self._released and not self._queues:
                self._free = self._take_released() - 1
                self.granted.append(item)
                return True
            return super().push(client, item)

    def remove(self, client: C, item: T) -> None:
        """As in `FairQueue`."""
        with self._lock:
            super().remove(client, item)

    def release_in_thread(self) -> None:
        """Release a slot, for the next call of `grant`."""
        self._released.append(None)

    def grant(self) -> bool:
        """Grant the released slots; returns whether any item has one now."""
        if self._queues and self._released:  # without the lock, which costs more than the check
            with self._lock:
                self._grant()
        return bool(self.granted)

    def _grant(self) -> None:
        while self._queues and self._released:
            left = self._give(self._take_released())
            self._released.extend([None] * left)

    def _give(self, slots: int) -> int:
        """Grant slots, one item of each client, round after round; returns how many are left."""
        queues = self._queues
        while slots and queues:
            whole = slots >= len(queues)  # each client has a turn: the order stays
            for client, queue in list(islice(queues.items(), slots)):
                self.granted.append(queue.popleft())
                slots -= 1
                if not queue:
                    del queues[client]
                elif not whole:
                    queues.move_to_end(client)  # it had its turn
        return slots

    def _take_released(self) -> int:
        slots = len(self._released)
        for _ in range(slots):  # not `clear`: threads may have added more
            self._released.popleft()
        return slots
