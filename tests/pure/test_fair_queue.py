"""Slots and fair queues against a model. Pure: no clock, no sockets.

Where threads would be, the test does at a chosen point what another thread could do there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trioreq._protocol.fair_queue import FairQueue, SharedFairQueue

NOTHING = -1


def arrive(queue: FairQueue[str, Any], client: str, item: Any) -> str:
    """What the server does with a request: whether it may run, waits, or is refused."""
    if queue.take():
        return "runs"
    return "waits" if queue.push(client, item) else "refused"


class FairQueueMachine(RuleBasedStateMachine):
    def make(self, slots: int, per_client: int) -> FairQueue[str, int]:
        return FairQueue(slots, per_client)

    def release_one(self) -> int:
        """Release a slot; returns the item that has it now."""
        item = self.queue.release()
        return NOTHING if item is None else item

    @initialize(slots=st.integers(1, 3), per_client=st.integers(0, 3))
    def start(self, slots: int, per_client: int) -> None:
        self.queue = self.make(slots, per_client)
        self.per_client = per_client
        self.model: dict[str, list[int]] = {}
        self.round: list[str] = []
        self.held = 0
        self.number = 0

    def become(self, client: str) -> str:
        """What becomes of the newest item."""
        return arrive(self.queue, client, self.number)

    @rule(client=st.sampled_from("abc"))
    def arrive(self, client: str) -> None:
        self.number += 1
        became = self.become(client)
        if self.held < self.queue.slots:
            assert became == "runs"
            self.held += 1
            return
        waiting = self.model.get(client, [])
        assert became == ("waits" if len(waiting) < self.per_client else "refused")
        if became == "waits":
            if not waiting:
                self.round.append(client)
            self.model[client] = [*waiting, self.number]

    @precondition(lambda self: self.held)
    @rule()
    def release(self) -> None:
        assert self.release_one() == self.expected()

    def expected(self) -> int:
        """The item that the next slot goes to."""
        if not self.round:
            self.held -= 1
            return NOTHING
        client = self.round.pop(0)
        item = self.model[client].pop(0)
        if self.model[client]:
            self.round.append(client)
        return item

    @rule(client=st.sampled_from("abc"), data=st.data())
    def remove(self, client: str, data: st.DataObject) -> None:
        waiting = self.model.get(client, [])
        item = data.draw(st.sampled_from([*waiting, NOTHING]))
        self.queue.remove(client, item)
        if item in waiting:
            waiting.remove(item)
            if not waiting:
                self.round.remove(client)

    @invariant()
    def adds_up(self) -> None:
        if hasattr(self, "queue"):
            assert self.queue.waiting == sum(map(len, self.model.values()))
            assert self.queue.free == self.queue.slots - self.held
            assert not (self.queue.waiting and self.queue.free)


class SharedFairQueueMachine(FairQueueMachine):
    queue: SharedFairQueue[str, int]

    def make(self, slots: int, per_client: int) -> FairQueue[str, int]:
        return SharedFairQueue(slots, per_client)

    def release_one(self) -> int:
        self.queue.release_in_thread()
        return self.granted()

    def granted(self) -> int:
        assert self.queue.grant() is bool(self.queue.granted)
        return self.queue.granted.popleft() if self.queue.granted else NOTHING

    def become(self, client: str) -> str:
        became = super().become(client)
        if self.queue.granted:  # a slot that was put aside
            assert became == "waits"
            assert self.queue.granted.pop() == self.number
            assert not self.queue.granted
            return "runs"
        return became

    @precondition(lambda self: self.round)
    @rule(client=st.sampled_from("abc"))
    def release_just_before_another_arrives(self, client: str) -> None:
        """The loop grants what waits before it queues what has come."""
        self.queue.release_in_thread()
        self.number += 1
        became = arrive(self.queue, client, self.number)
        assert self.granted() == self.expected()
        assert not self.queue.granted
        waiting = self.model.get(client, [])
        assert became == ("waits" if len(waiting) < self.per_client else "refused")
        if became == "waits":
            if not waiting:
                self.round.append(client)
            self.model[client] = [*waiting, self.number]

    @precondition(lambda self: self.held > 1)
    @rule()
    def release_several(self) -> None:
        several = self.held
        for _ in range(several):
            self.queue.release_in_thread()
        assert self.queue.grant() is bool(self.round)
        for _ in range(several):
            assert self.granted() == self.expected()
        assert not self.queue.granted


TestFairQueue = FairQueueMachine.TestCase
TestFairQueue.settings = settings(max_examples=200, deadline=None)
TestSharedFairQueue = SharedFairQueueMachine.TestCase
TestSharedFairQueue.settings = settings(max_examples=200, deadline=None)


def test_slots_are_shared_fairly_however_much_one_client_sends() -> None:
    queue: FairQueue[str, str] = FairQueue(1, 10)
    assert arrive(queue, "a", "a1") == "runs"
    for item in ("a2", "a3", "b1", "c1"):
        assert arrive(queue, item[0], item) == "waits"
    served = []
    while (following := queue.release()) is not None:
        served.append(following)
    assert served == ["a2", "b1", "c1", "a3"]
    assert queue.free == 1


class Interrupted:
    """A lock that lets another thread do something before it is taken."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = [work]

    def __enter__(self) -> None:
        while self.work:
            self.work.pop()()

    def __exit__(self, *_: object) -> None:
        pass


def test_a_thread_releases_while_the_loop_is_about_to_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue: Any = SharedFairQueue(1, 10)
    assert queue.take()
    monkeypatch.setattr(queue, "_lock", Interrupted(queue.release_in_thread))
    assert queue.push("b", "b1")
    assert list(queue.granted) == ["b1"]
    assert (queue.waiting, queue.free) == (0, 0)


def test_nothing_overtakes_an_item_that_waits_though_a_slot_was_just_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a thread, between two steps of the loop."""
    queue: Any = SharedFairQueue(1, 10)
    assert queue.take()
    assert queue.push("b", "b")
    grant = SharedFairQueue._grant

    def and_a_moment_later(self: Any) -> None:
        grant(self)
        queue.release_in_thread()

    monkeypatch.setattr(SharedFairQueue, "_grant", and_a_moment_later)
    assert not queue.take()
    assert queue.push("c", "c")
    monkeypatch.undo()
    assert queue.grant()
    assert list(queue.granted) == ["b"]
    assert (queue.waiting, queue.free) == (1, 0)


@pytest.mark.parametrize("releases_first", [False, True])
def test_whichever_of_thread_and_loop_is_second_grants_what_waits(
    monkeypatch: pytest.MonkeyPatch, *, releases_first: bool
) -> None:
    queue: Any = SharedFairQueue(1, 10)
    assert queue.take()
    if releases_first:
        push = FairQueue.push

        def push_late(self: Any, client: str, item: str) -> bool:
            queue.release_in_thread()
            assert not queue.grant()  # the thread has looked, and is about to park
            return push(self, client, item)

        monkeypatch.setattr(FairQueue, "push", push_late)
    assert queue.push("b", "b1")
    if not releases_first:
        queue.release_in_thread()
    assert queue.grant()
    assert list(queue.granted) == ["b1"]
    assert (queue.waiting, queue.free) == (0, 0)


def test_two_threads_grant_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    queue: Any = SharedFairQueue(1, 10)
    assert queue.take()
    assert queue.push("a", "a2")
    queue.release_in_thread()
    monkeypatch.setattr(queue, "_lock", Interrupted(queue.grant))
    assert queue.grant()
    assert list(queue.granted) == ["a2"]
    assert (queue.waiting, queue.free) == (0, 0)


def test_a_queue_has_room_again_as_soon_as_a_slot_was_released() -> None:
    queue: Any = SharedFairQueue(1, 1)
    assert queue.take()
    assert arrive(queue, "a", "a2") == "waits"
    assert arrive(queue, "a", "a3") == "refused"
    queue.release_in_thread()
    assert arrive(queue, "a", "a4") == "waits"
    assert list(queue.granted) == ["a2"]
    assert (queue.waiting, queue.free) == (1, 0)


@pytest.mark.parametrize("returned", [1, 2, 3, 4, 5, 6, 9])
def test_slots_that_are_released_together_are_granted_as_one_after_the_other(
    returned: int,
) -> None:
    plain: FairQueue[str, str] = FairQueue(9, 10)
    shared: SharedFairQueue[str, str] = SharedFairQueue(9, 10)
    for queue in (plain, shared):
        assert all(queue.take() for _ in range(9))
        for item in ("a1", "a2", "a3", "b1", "b2", "c1"):
            assert arrive(queue, item[0], item) == "waits"
    one_by_one = [plain.release() for _ in range(returned)]
    for _ in range(returned):
        shared.release_in_thread()
    shared.grant()
    assert list(shared.granted) == [item for item in one_by_one if item is not None]
    expected = (max(6 - returned, 0), max(returned - 6, 0))
    assert (plain.waiting, plain.free) == (shared.waiting, shared.free) == expected


def test_a_thread_releases_while_another_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    queue: Any = SharedFairQueue(2, 10)
    assert queue.take()
    assert queue.take()
    for item in ("a3", "a4"):
        assert queue.push("a", item)
    queue.release_in_thread()
    give = SharedFairQueue._give

    def meanwhile(self: Any, slots: int) -> int:
        if not queue.granted:
            queue.release_in_thread()
        return give(self, slots)

    monkeypatch.setattr(SharedFairQueue, "_give", meanwhile)
    assert queue.grant()
    assert list(queue.granted) == ["a3", "a4"]
    assert (queue.waiting, queue.free) == (0, 0)
