"""Whose turn it is, sans-IO: a bounded number of slots, shared fairly between clients.

While a slot is free, who comes gets it. After that each client has a queue of its own, bounded,
and slots that become free go round the clients that wait, one request each.

- A slot is held from the grant until `release`, also by work that nobody waits for any more.
- While anybody waits, no slot is free.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

C = TypeVar("C", bound=Hashable)
T = TypeVar("T")


class Turns(Generic[C, T]):
    """Slots and queues.

    Attributes:
        slots: How many there are.
        granted: Items that have a slot, to be taken from the left and begun.
    """

    __slots__ = ("_free", "_per_client", "_queues", "granted", "slots")

    def __init__(self, slots: int, per_client: int) -> None:
        self.slots: int = slots
        self._free: int = slots
        self.granted: deque[T] = deque()
        self._per_client = per_client
        self._queues: OrderedDict[C, deque[T]] = OrderedDict()

    @property
    def free(self) -> int:
        """How many slots nobody holds."""
        return self._free

    @property
    def waiting(self) -> int:
        """How many items wait for one."""
        return sum(map(len, self._queues.values()))

    def enter(self, client: C, item: T) -> bool:
        """Grant a slot, or queue; returns False, and forgets the item, if the queue is full."""
        if self._free:
            self._free -= 1
            self.granted.append(item)
            return True
        return self._queue(client, item)

    def _queue(self, client: C, item: T) -> bool:
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

    def withdraw(self, client: C, item: T) -> None:
        """Take an item out of its queue, if it still waits there."""
        queue = self._queues.get(client)
        if queue is None or item not in queue:
            return
        queue.remove(item)
        if not queue:
            del self._queues[client]

    def release(self) -> None:
        """Give a slot back: it goes to the next client in turn."""
        if not self._queues:
            self._free += 1
            return
        client, queue = next(iter(self._queues.items()))
        self.granted.append(queue.popleft())
        if queue:
            self._queues.move_to_end(client)  # of the round
        else:
            del self._queues[client]

    def grant(self) -> bool:
        """See that no slot is kept from those who wait; returns whether any item has one now."""
        return bool(self.granted)
