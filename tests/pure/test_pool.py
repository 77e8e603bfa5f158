"""What a thread does between two requests. Pure: the test is the thread, and it is alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trioreq import _pool, _turns
from trioreq._pool import Pool, Worker
from trioreq._turns import SharedTurns


class Wake:
    """A lock on which nobody can wait, since nobody is there to release it."""

    def __init__(self) -> None:
        self.held = False

    def acquire(self) -> None:
        assert not self.held, "it would sleep for ever"
        self.held = True

    def release(self) -> None:
        self.held = False


class Threaded:
    """Threads without any: the test is one, and others only seem to be parked."""

    def __init__(self, slots: int, **meanwhile: Callable[[], object]) -> None:
        self.meanwhile = meanwhile  # what happens while a request's handler runs
        self.turns: Any = SharedTurns(slots, 10)
        self.woken = 0  # how often the loop was
        self.seen: list[str] = []
        self.pool = cast("Any", Pool(self.handle, self.turns, self.wake))
        self.pool.context = copy_context()
        self.pool._parked = Parked(self)

    def wake(self) -> None:
        self.woken += 1

    def handle(self, call: Any) -> str:
        self.seen.append(call.name)
        self.meanwhile.get(call.name, lambda: None)()
        return str(call.name)

    def arrive(self, *names: str) -> None:
        for name in names:
            call = SimpleNamespace(name=name, scope=None, check_cancelled=lambda: None)
            assert self.turns.enter("client", call)

    def another_parks(self) -> None:
        wake = Wake()
        wake.acquire()
        self.pool._parked.others.append(wake)

    def another_comes_and_parks(self) -> None:
        self.pool._coming = False
        self.another_parks()

    def add_worker(self) -> Worker:
        worker = Worker(self.handle, self.turns)
        self.pool.working.add(worker)
        return worker

    def run(self) -> None:
        """Do all that there is to do, as one that is called up; park, and end."""
        self.pool.work(self.add_worker())

    @property
    def parked(self) -> int:
        return len(self.pool._parked.others)

    @property
    def granted(self) -> list[str]:
        return [call.name for call in self.turns.granted]


class Parked:
    """The other threads that are parked; and what happens when the test's parks."""

    def __init__(self, threaded: Threaded) -> None:
        self.threaded = threaded
        self.others: deque[Wake] = deque()
        self.mine: list[Wake] = []

    def append(self, wake: Wake) -> None:
        self.mine.append(wake)
        self.threaded.meanwhile.pop("parked", self.close)()

    def close(self) -> None:
        self.threaded.pool._closed = True

    def pop(self) -> Wake:
        return self.mine.pop() if self.mine else self.others.pop()


@pytest.fixture(autouse=True)
def _no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lock(Wake):
        def __enter__(self) -> None:
            self.acquire()

        def __exit__(self, *_: object) -> None:
            self.release()

    monkeypatch.setattr(_pool, "Lock", Lock)
    monkeypatch.setattr(_turns, "Lock", Lock)


def test_one_other_is_called_up_for_what_is_left() -> None:
    parked = []
    threaded = Threaded(9, a=lambda: parked.append(threaded.parked))
    for _ in range(3):
        threaded.another_parks()
    threaded.arrive("a", "b", "c")
    threaded.run()
    assert threaded.seen == ["a", "b", "c"]
    assert parked == [2]
    assert threaded.parked == 2  # the one that was called up will see what is left


def test_nobody_is_called_up_for_a_request_that_is_alone() -> None:
    threaded = Threaded(9)
    threaded.another_parks()
    threaded.arrive("a")
    threaded.run()
    assert threaded.parked == 1


def test_another_is_called_up_if_the_first_has_come_and_gone() -> None:
    threaded = Threaded(9, a=lambda: threaded.another_comes_and_parks())
    threaded.another_parks()
    threaded.arrive("a", "b", "c")
    threaded.run()
    assert threaded.parked == 0


def test_those_who_wait_are_granted_before_the_last_one_takes_its_time() -> None:
    granted = []
    threaded = Threaded(
        2,
        a=lambda: threaded.another_comes_and_parks(),
        b=lambda: granted.append((threaded.granted, threaded.parked)),
    )
    threaded.another_parks()
    threaded.arrive("a", "b", "c")
    threaded.run()
    assert granted == [(["c"], 0)]
    assert threaded.seen == ["a", "b", "c"]


def test_who_is_through_looks_for_those_who_wait() -> None:
    threaded = Threaded(1)
    threaded.arrive("a", "b", "c")
    threaded.run()
    assert threaded.seen == ["a", "b", "c"]


def test_who_parks_looks_again_for_what_has_come_meanwhile() -> None:
    threaded = Threaded(9, parked=lambda: threaded.arrive("a"))
    threaded.run()
    assert threaded.seen == ["a"]


def test_who_parks_while_the_server_ends_ends() -> None:
    threaded = Threaded(9)
    threaded.run()
    assert not threaded.pool._parked.mine


def test_the_loop_is_told_before_the_next_function_takes_its_time() -> None:
    woken = []
    threaded = Threaded(2, b=lambda: woken.append(threaded.woken))
    threaded.arrive("a", "b")
    threaded.run()
    assert woken == [1]


def test_the_loop_is_told_at_the_end_if_another_comes_and_would_do_it_otherwise() -> None:
    woken = []
    threaded = Threaded(3, c=lambda: woken.append(threaded.woken))
    threaded.another_parks()
    threaded.arrive("a", "b", "c")
    threaded.run()
    assert woken == [0]
    assert threaded.woken == 1


def test_who_comes_tells_what_others_have_done() -> None:
    woken = []
    threaded = Threaded(9, a=lambda: woken.append(threaded.woken))
    threaded.another_parks()
    threaded.pool.done.append(object())
    threaded.arrive("a", "b")
    threaded.run()
    assert woken == [1]


def test_who_has_come_is_not_on_its_way_any_more() -> None:
    threaded = Threaded(9)
    threaded.another_parks()
    threaded.arrive("a", "b")
    threaded.pool._coming = True
    threaded.run()
    assert threaded.parked == 0


def test_the_loop_grants_what_was_given_back_while_it_queued() -> None:
    threaded = Threaded(1)
    threaded.add_worker()
    threaded.another_parks()
    threaded.arrive("a")
    threaded.turns.granted.clear()  # it runs
    threaded.arrive("b")
    threaded.turns.release()  # its thread had looked just before b was queued
    threaded.pool.start()
    assert threaded.granted == ["b"]
    assert threaded.parked == 0


@pytest.mark.parametrize("pops", [False, True])
def test_there_is_a_thread_for_one_who_waits_though_a_turn_is_given_back_just_now(
    monkeypatch: pytest.MonkeyPatch, *, pops: bool
) -> None:
    """Who gives it back goes on with "b", and grants it to "c": that needs another thread."""
    threaded = Threaded(2)
    threaded.add_worker()
    threaded.arrive("a")
    threaded.turns.granted.clear()  # it runs
    threaded.arrive("b", "c")
    grant = threaded.turns.grant

    def grant_just_before() -> bool:
        granted = bool(grant())
        threaded.turns.release()  # "a" is done
        if pops:
            threaded.turns.granted.popleft()
            granted = False
        return granted

    monkeypatch.setattr(SharedTurns, "grant", lambda _: grant_just_before())
    threaded.pool.start()
    assert len(threaded.pool.working) == 2


def test_who_comes_at_once_is_not_taken_for_one_who_is_on_its_way() -> None:
    """Else nobody would be called up for what is left, until somebody comes by chance."""

    class Quick(Wake):
        def release(self) -> None:
            super().release()
            threaded.pool._coming = False  # it looks around before the caller goes on

    threaded = Threaded(9)
    threaded.pool._parked.others.append(Quick())
    threaded.pool._call_up()
    assert not threaded.pool._coming
