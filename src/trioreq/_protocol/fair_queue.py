"""Slots and fair queues: a bounded number of slots, shared fairly between clients.

While a slot is free, a request takes it. After that each client has a queue of its own, bounded,
and slots that become free go round the clients that wait, one request each.

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
        slots: How many there are.
        per_client: Items that one client may have waiting.
    """

    def __init__(self, slots: int, per_client: int) -> None:
        self.slots = slots
        self._free = slots
        self._per_client = per_client
        self._queues: OrderedDict[C, deque[T]] = OrderedDict()

    @property
    def free(self) -> int:
        """Slots that are free."""
        return self._free

    @property
    def waiting(self) -> int:
        """Items that wait for a slot."""
        return sum(map(len, self._queues.values()))

    def take(self) -> bool:
        """Take a slot; returns False if none is free."""
        if self._free:
            self._free -= 1
            return True
        return False

    def push(self, client: C, item: T) -> bool:
        """Let an item wait for a slot; returns False, and forgets it, if the queue is full."""
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
        """Remove an item, if it still waits."""
        queue = self._queues.get(client)
        if queue is None or item not in queue:
            return
        queue.remove(item)
        if not queue:
            del self._queues[client]

    def release(self) -> T | None:
        """Release a slot: it goes to the next client's item, which is returned, or is free."""
        queues = self._queues
        if not queues:
            self._free += 1
            return None
        client, queue = next(iter(queues.items()))
        item = queue.popleft()
        if queue:
            queues.move_to_end(client)
        else:
            del queues[client]
        return item


class SharedFairQueue(FairQueue[C, T]):
    """A fair queue whose slots are released by threads.

    `release_in_thread` and `grant` may be called in any thread, everything else in the event
    loop's. Released slots are put aside and granted in bulk: by a thread that finds nothing
    granted, by the event loop when it has queued items, and before it sleeps. A thread releases
    first, and then looks for items that wait; the event loop queues first, and then looks for slots
    that were released: one of the two sees the other. So the lock is taken once for many items.

    Attributes:
        granted: Items that have a slot, to be taken from the left by the thread that runs them.
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
        """As in `FairQueue`; an item for which a slot was released meanwhile is granted it."""
        with self._lock:
            self._grant()  # there may be room in the queue then
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
        """Put a slot aside for the next call of `grant`."""
        self._released.append(None)

    def grant(self) -> bool:
        """Grant the slots that were put aside; returns whether any item has one now."""
        if self._queues and self._released:
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
            whole = slots >= len(queues)  # then all move, and none has to
            for client, queue in list(islice(queues.items(), slots)):
                self.granted.append(queue.popleft())
                slots -= 1
                if not queue:
                    del queues[client]
                elif not whole:
                    queues.move_to_end(client)  # of the round
        return slots

    def _take_released(self) -> int:
        slots = len(self._released)
        for _ in range(slots):  # not cleared: there may be more by now
            self._released.popleft()
        return slots
