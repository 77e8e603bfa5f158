"""Slots and fair queues against a model. Pure: no clock, no sockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trioreq._protocol.fair_queue import SharedTurns, Turns


class TurnsMachine(RuleBasedStateMachine):
    kind: type[Turns[Any, Any]] = Turns

    @initialize(slots=st.integers(1, 3), per_client=st.integers(0, 3))
    def start(self, slots: int, per_client: int) -> None:
        self.turns: Turns[str, int] = self.kind(slots, per_client)
        self.per_client = per_client
        self.model: dict[str, list[int]] = {}
        self.round: list[str] = []
        self.held = 0
        self.number = 0

    @rule(client=st.sampled_from("abc"))
    def enter(self, client: str) -> None:
        self.number += 1
        accepted = self.turns.enter(client, self.number)
        if self.held < self.turns.slots:
            assert accepted
            assert self.turns.granted.pop() == self.number
            self.held += 1
            return
        queue = self.model.get(client, [])
        assert accepted is (len(queue) < self.per_client)
        if accepted:
            if not queue:
                self.round.append(client)
            self.model[client] = [*queue, self.number]

    @precondition(lambda self: self.held)
    @rule()
    def release(self) -> None:
        self.turns.release()
        assert self.turns.grant() is bool(self.round)
        self.expect_granted()

    def expect_granted(self) -> None:
        if not self.round:
            self.held -= 1
            assert not self.turns.granted
            return
        client = self.round.pop(0)
        assert self.turns.granted.popleft() == self.model[client].pop(0)
        if self.model[client]:
            self.round.append(client)

    @rule(client=st.sampled_from("abc"), data=st.data())
    def withdraw(self, client: str, data: st.DataObject) -> None:
        queue = self.model.get(client, [])
        item = data.draw(st.sampled_from([*queue, -1]))
        self.turns.withdraw(client, item)
        if item in queue:
            queue.remove(item)
            if not queue:
                self.round.remove(client)

    @invariant()
    def adds_up(self) -> None:
        if hasattr(self, "turns"):
            assert self.turns.waiting == sum(map(len, self.model.values()))
            assert self.turns.free == self.turns.slots - self.held
            assert not (self.turns.waiting and self.turns.free)


class SharedTurnsMachine(TurnsMachine):
    kind = SharedTurns

    @precondition(lambda self: self.held > 1)
    @rule()
    def release_several(self) -> None:
        several = self.held
        for _ in range(several):
            self.turns.release()
        assert self.turns.grant() is bool(self.round)
        for _ in range(several):
            self.expect_granted()
        assert not self.turns.granted


TestTurns = TurnsMachine.TestCase
TestTurns.settings = settings(max_examples=200, deadline=None)
TestSharedTurns = SharedTurnsMachine.TestCase
TestSharedTurns.settings = settings(max_examples=200, deadline=None)


def test_clients_take_turns_however_much_one_of_them_sends() -> None:
    turns: Turns[str, str] = Turns(1, 10)
    for item in ("a1", "a2", "a3", "b1", "c1"):
        assert turns.enter(item[0], item)
    served = []
    while turns.granted:
        served.append(turns.granted.popleft())
        turns.release()
    assert served == ["a1", "a2", "b1", "c1", "a3"]


class Interrupted:
    """A lock that lets another thread do something before it is taken."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = [work]

    def __enter__(self) -> None:
        while self.work:
            self.work.pop()()

    def __exit__(self, *_: object) -> None:
        pass


def test_a_thread_gives_back_while_the_loop_is_about_to_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns: Any = SharedTurns(1, 10)
    assert turns.enter("a", "a1")
    monkeypatch.setattr(turns, "_lock", Interrupted(turns.release))
    assert turns.enter("b", "b1")
    assert list(turns.granted) == ["a1", "b1"]
    assert (turns.waiting, turns.free) == (0, 0)


def test_nobody_overtakes_who_waits_though_a_turn_was_just_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a thread, between two steps of the loop."""
    turns: Any = SharedTurns(1, 10)
    for client in "ab":
        assert turns.enter(client, client)
    grant = SharedTurns._grant

    def and_a_moment_later(self: Any) -> None:
        grant(self)
        turns.release()

    monkeypatch.setattr(SharedTurns, "_grant", and_a_moment_later)
    assert turns.enter("c", "c")
    monkeypatch.undo()
    assert turns.grant()
    assert list(turns.granted) == ["a", "b"]
    assert (turns.waiting, turns.free) == (1, 0)


@pytest.mark.parametrize("gives_back_first", [False, True])
def test_whoever_of_thread_and_loop_is_second_grants_to_the_one_who_waits(
    monkeypatch: pytest.MonkeyPatch, *, gives_back_first: bool
) -> None:
    turns: Any = SharedTurns(1, 10)
    assert turns.enter("a", "a1")
    if gives_back_first:
        queue = Turns._queue

        def queue_late(self: Any, client: str, item: str) -> bool:
            turns.release()
            turns.granted.clear()
            assert not turns.grant()  # the thread has looked, and ends its round
            return queue(self, client, item)

        monkeypatch.setattr(Turns, "_queue", queue_late)
    assert turns.enter("b", "b1")
    if not gives_back_first:
        turns.release()
    assert turns.grant()
    assert turns.granted[-1] == "b1"
    assert (turns.waiting, turns.free) == (0, 0)


def test_two_threads_grant_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: Any = SharedTurns(1, 10)
    for item in ("a1", "a2"):
        assert turns.enter("a", item)
    turns.release()
    monkeypatch.setattr(turns, "_lock", Interrupted(turns.grant))
    assert turns.grant()
    assert list(turns.granted) == ["a1", "a2"]
    assert (turns.waiting, turns.free) == (0, 0)


def test_a_queue_has_room_again_as_soon_as_a_turn_was_given_back() -> None:
    turns: Any = SharedTurns(1, 1)
    assert turns.enter("a", "a1")
    assert turns.enter("a", "a2")
    assert not turns.enter("a", "a3")
    turns.release()
    assert turns.enter("a", "a4")
    assert list(turns.granted) == ["a1", "a2"]
    assert (turns.waiting, turns.free) == (1, 0)


@pytest.mark.parametrize("returned", [1, 2, 3, 4, 5, 6, 9])
def test_what_is_given_back_together_is_granted_as_one_after_the_other(returned: int) -> None:
    granted = []
    for turns in (Turns[str, str](9, 10), SharedTurns[str, str](9, 10)):
        for number in range(9):
            assert turns.enter("z", f"z{number}")
        turns.granted.clear()  # they run
        for item in ("a1", "a2", "a3", "b1", "b2", "c1"):
            assert turns.enter(item[0], item)
        for _ in range(returned):
            turns.release()
        turns.grant()
        granted.append((list(turns.granted), turns.waiting, turns.free))
    assert granted[0] == granted[1]
    assert granted[1][1:] == (max(6 - returned, 0), max(returned - 6, 0))


def test_a_thread_gives_back_while_another_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: Any = SharedTurns(2, 10)
    for item in ("a1", "a2", "a3", "a4"):
        assert turns.enter("a", item)
    turns.release()
    give = SharedTurns._give

    def meanwhile(self: Any, slots: int) -> int:
        if len(turns.granted) == 2:
            turns.release()
        return give(self, slots)

    monkeypatch.setattr(SharedTurns, "_give", meanwhile)
    assert turns.grant()
    assert list(turns.granted) == ["a1", "a2", "a3", "a4"]
