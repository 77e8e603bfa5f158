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

    def acquire(self, *, timeout: float | None = None) -> bool:
        assert timeout is not None or not self.held, "it would sleep for ever"
        free, self.held = not self.held, True
        return free

    def release(self) -> None:
        assert self.held
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

    def loop_sleeps(self) -> None:
        self.pool.awake = False

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


class Unseen(deque[Any]):
    """What is done, which seems to have been taken already."""

    def __bool__(self) -> bool:
        return False


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


def test_the_loop_is_told_of_what_is_left_before_a_function_takes_its_time() -> None:
    woken = []
    threaded = Threaded(9, a=lambda: woken.append(threaded.woken))
    threaded.arrive("a", "b", "c")
    threaded.run()
    assert threaded.seen == ["a", "b", "c"]
    assert woken == [1]
    assert threaded.woken == 1  # it will see all that is done, before it sleeps


def test_the_loop_is_told_again_of_what_is_left_if_it_sleeps_meanwhile() -> None:
    woken = []
    threaded = Threaded(
        9,
        a=lambda: threaded.loop_sleeps(),
        b=lambda: woken.append(threaded.woken),
    )
    threaded.pool.done = Unseen()
    threaded.arrive("a", "b", "c")
    threaded.run()
    assert woken == [2]


def test_the_loop_is_told_once_of_a_request_that_is_alone() -> None:
    woken = []
    threaded = Threaded(9, a=lambda: woken.append(threaded.woken))
    threaded.arrive("a")
    threaded.run()
    assert woken == [0]
    assert threaded.woken == 1


def test_those_who_wait_are_granted_before_the_last_one_takes_its_time() -> None:
    granted = []
    threaded = Threaded(
        2,
        a=lambda: threaded.loop_sleeps(),
        b=lambda: granted.append((threaded.granted, threaded.woken)),
    )
    threaded.pool.done = Unseen()
    threaded.arrive("a", "b", "c")
    threaded.run()
    assert granted == [(["c"], 2)]
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
    threaded = Threaded(2, a=lambda: threaded.loop_sleeps(), b=lambda: woken.append(threaded.woken))
    threaded.arrive("a", "b")
    threaded.run()
    assert woken == [2]


def test_a_loop_that_is_awake_calls_one_up_for_what_is_left() -> None:
    threaded = Threaded(9)
    threaded.another_parks()
    threaded.another_parks()
    threaded.pool.call_up()
    assert threaded.parked == 2  # for nothing, nobody
    threaded.arrive("a", "b")
    threaded.pool.call_up()
    assert threaded.parked == 1
    threaded.pool.call_up()
    assert threaded.parked == 1  # that one will see what is left


def test_another_is_called_up_if_the_first_has_come() -> None:
    threaded = Threaded(9, a=lambda: threaded.pool.call_up())
    threaded.another_parks()
    threaded.pool._coming = True
    threaded.arrive("a", "b")
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
    wake = Quick()
    wake.acquire()
    threaded.pool._parked.others.append(wake)
    threaded.pool._release()
    assert not threaded.pool._coming


class Pause(Wake):
    """What the loop rests on. The test says what happens meanwhile."""

    def __init__(self, threaded: Threaded, meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self.held = True
        self.meanwhile = meanwhile
        self.rests = 0
        threaded.pool._pause = self

    def acquire(self, *, timeout: float | None = None) -> bool:
        if timeout is not None:
            self.rests += 1
            self.meanwhile()
        return super().acquire(timeout=timeout)


def test_a_loop_that_rests_goes_on_when_who_was_called_up_is_through() -> None:
    threaded = Threaded(9)
    threaded.another_parks()
    threaded.arrive("a", "b")
    threaded.pool.call_up()
    pause = Pause(threaded, threaded.run)
    for _ in range(3):
        threaded.pool.rest()
        assert threaded.seen == ["a", "b"]
    assert pause.rests == 1  # then there is something to do
    assert threaded.woken == 0  # it was not asleep


def test_the_loop_does_not_rest_if_nobody_was_called_up() -> None:
    threaded = Threaded(9)
    threaded.pool.rest()  # it would wait for ever


def test_a_rest_in_vain_is_tried_ever_more_rarely_until_one_was_not() -> None:
    threaded = Threaded(9)
    threaded.pool._coming = True
    pause = Pause(threaded, lambda: None)
    tried = []
    for number in range(1, 1025):
        before = pause.rests
        threaded.pool.rest()
        if pause.rests > before:
            tried.append(number)
    assert tried == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024]
    threaded.pool._skip = 0
    pause.meanwhile = threaded.pool._tell
    threaded.pool.rest()
    pause.meanwhile = lambda: None
    threaded.pool.rest()
    threaded.pool.rest()
    assert pause.rests == len(tried) + 3


def test_a_loop_whose_rest_is_over_is_not_kept_from_the_next_by_who_was_just_too_late() -> None:
    threaded = Threaded(9)
    threaded.pool._coming = True

    class Late(Pause):
        def acquire(self, *, timeout: float | None = None) -> bool:
            if timeout is None:
                self.release()  # it has taken it, and releases it now
                return Wake.acquire(self)
            return super().acquire(timeout=timeout)

    pause = Late(threaded, lambda: threaded.pool._resting.pop())
    threaded.pool.rest()
    assert pause.held
    pause.meanwhile = lambda: None
    threaded.pool.rest()
    assert not threaded.pool._resting
    threaded.pool._tell()
    assert pause.held  # nobody rests
