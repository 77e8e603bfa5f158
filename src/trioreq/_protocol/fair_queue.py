"""Whose turn it is, sans-IO: a bounded number of slots, shared fairly between clients.

While a slot is free, who comes gets it. After that each client has a queue of its own, bounded,
and slots that become free go round the clients that wait, one request each.

- A slot is held from the grant until `release`, also by work that nobody waits for any more.
- While anybody waits, no slot is free.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from itertools import islice
from threading import Lock
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
        self._free += self._give(1)

    def _give(self, slots: int) -> int:
        """Give slots to those who wait, a request of each client, round after round.

        Returns:
            How many are left.
        """
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

    def grant(self) -> bool:
        """See that no slot is kept from those who wait; returns whether any item has one now."""
        return bool(self.granted)


class SharedTurns(Turns[C, T]):
    """Turns that threads give back themselves, each when it is through with its request.

    `release` and `grant` may be called in any thread, and everything else in the loop's. What is
    given back is put aside, and granted in bulk: by a thread that finds nothing granted, and by
    the loop when it has queued some, and before it sleeps. A thread gives back first, and then
    looks for those who wait; the loop queues first, and then looks for what was given back: one
    of the two sees the other. So there is a lock for each lot of them, and not for each.
    """

    __slots__ = ("_lock", "_returned")

    def __init__(self, slots: int, per_client: int) -> None:
        super().__init__(slots, per_client)
        self._returned: deque[None] = deque()
        self._lock = Lock()

    @property
    def free(self) -> int:
        """As in `Turns`."""
        return self._free + len(self._returned)

    @property
    def waiting(self) -> int:
        """As in `Turns`."""
        if not self._queues:  # nobody but the loop adds to them
            return 0
        with self._lock:
            return super().waiting

    def release(self) -> None:
        """As in `Turns`, as soon as somebody calls `grant`."""
        self._returned.append(None)

    def grant(self) -> bool:
        """As in `Turns`."""
        if self._queues and self._returned:
            with self._lock:
                self._grant()
        return bool(self.granted)

    def _grant(self) -> None:
        while self._queues and self._returned:
            left = self._give(self._take_returned())
            self._returned.extend([None] * left)

    def _take_returned(self) -> int:
        """Take what was put aside; returns how many."""
        slots = len(self._returned)
        for _ in range(slots):  # not cleared: there may be more by now
            self._returned.popleft()
        return slots

    def withdraw(self, client: C, item: T) -> None:
        """As in `Turns`."""
        with self._lock:
            super().withdraw(client, item)

    def _queue(self, client: C, item: T) -> bool:
        with self._lock:
            self._grant()  # there may be room in the queue then
            if self._returned and not self._queues:
                self._free = self._take_returned()
                return self.enter(client, item)
            return super()._queue(client, item)
