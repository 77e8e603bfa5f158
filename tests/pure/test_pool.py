"""What a thread does between two requests. Pure: the test is the thread, and it is alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trioreq._protocol import fair_queue
from trioreq._protocol.fair_queue import SharedTurns
from trioreq._server import pool
from trioreq._server.pool import Pool, Worker


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

    monkeypatch.setattr(pool, "Lock", Lock)
    monkeypatch.setattr(fair_queue, "Lock", Lock)


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


def test_another_is_called_up_if_the_first_has_come_and_gone() -> None:
    threaded = Threaded(9, a=lambda: threaded.another_comes_and_parks())
    threaded.pool.done = Unseen()  # so the loop is not told
    threaded.another_parks()
    threaded.arrive("a", "b", "c")
    threaded.run()
    assert threaded.parked == 0


def test_nobody_is_called_up_for_what_a_loop_that_is_awake_will_see() -> None:
    threaded = Threaded(9)
    threaded.pool.awake = True
    threaded.another_parks()
    threaded.arrive("a", "b", "c")
    threaded.run()
    assert threaded.parked == 1


def test_for_a_request_that_is_alone_nobody_is_called_up_and_the_loop_is_told_once() -> None:
    woken = []
    threaded = Threaded(9, a=lambda: woken.append(threaded.woken))
    threaded.another_parks()
    threaded.arrive("a")
    threaded.run()
    assert woken == [0]
    assert threaded.woken == 1
    assert threaded.parked == 1


def test_those_who_wait_are_granted_before_the_last_one_takes_its_time() -> None:
    granted = []
    threaded = Threaded(
        2,
        a=lambda: threaded.another_comes_and_parks(),
        b=lambda: granted.append((threaded.granted, threaded.parked)),
    )
    threaded.pool.done = Unseen()
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
    threaded = Threaded(
        2, a=lambda: woken.append(threaded.woken), b=lambda: woken.append(threaded.woken)
    )
    threaded.arrive("a", "b", "c")
    threaded.run()
    assert woken == [0, 1]
    assert threaded.woken == 1  # it will see all that is done, before it sleeps


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
    assert not threaded.pool.spawn()
    threaded.pool.call_up()
    assert threaded.granted == ["b"]
    assert threaded.parked == 0


@pytest.mark.parametrize("taken", [False, True])
def test_there_is_a_thread_for_one_who_waits_though_a_turn_was_just_given_back(
    *, taken: bool
) -> None:
    """Who gave it back goes on with "b", and grants it to "c": that needs another thread."""
    threaded = Threaded(2)
    threaded.add_worker()
    threaded.arrive("a")
    threaded.turns.granted.clear()  # it runs
    threaded.arrive("b", "c")
    threaded.turns.release()  # "a" is done
    if taken:
        threaded.turns.granted.popleft()
    assert len(threaded.pool.spawn()) == 1
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
    threaded.pool._unpark()
    assert not threaded.pool._coming


class Pause(Wake):
    """What the loop rests on. The test says what happens meanwhile."""

    def __init__(self, rests: list[Pause], meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self.rests = rests
        self.meanwhile = meanwhile

    def acquire(self, *, timeout: float | None = None) -> bool:
        if timeout is not None:
            self.rests.append(self)
            self.meanwhile()
        return super().acquire(timeout=timeout)


def rest(
    monkeypatch: pytest.MonkeyPatch, threaded: Threaded, meanwhile: Callable[[], object]
) -> int:
    """Let the loop rest if it likes to; returns whether it did, as a number."""
    rests: list[Pause] = []
    with monkeypatch.context() as patched:
        patched.setattr(pool, "Lock", lambda: Pause(rests, meanwhile))
        threaded.pool.rest()
    assert threaded.pool.awake
    assert not threaded.pool._resting
    return len(rests)


def test_a_loop_that_rests_goes_on_when_who_was_called_up_is_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threaded = Threaded(9)
    threaded.another_parks()
    threaded.arrive("a", "b")

    def runs() -> None:
        assert threaded.parked == 0
        monkeypatch.setattr(pool, "Lock", Wake)
        threaded.run()
        assert not threaded.pool._resting, "the loop was left at rest"

    assert rest(monkeypatch, threaded, runs) == 1
    assert threaded.seen == ["a", "b"]
    assert threaded.woken == 0  # it was not asleep
    assert rest(monkeypatch, threaded, lambda: None) == 0  # there is something to do


def test_who_is_called_up_can_wake_the_loop_from_its_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    class Quick(Wake):
        def release(self) -> None:
            super().release()
            resting.append(len(threaded.pool._resting))  # it is through before the caller goes on

    resting: list[int] = []
    threaded = Threaded(9)
    wake = Quick()
    wake.acquire()
    threaded.pool._parked.others.append(wake)
    threaded.arrive("a")
    assert rest(monkeypatch, threaded, lambda: None) == 1
    assert resting == [1]


def test_the_loop_does_not_rest_if_nobody_was_called_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rest(monkeypatch, Threaded(9), lambda: None) == 0


def test_the_loop_looks_what_is_done_after_it_can_be_woken_from_its_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threaded = Threaded(9)
    threaded.pool._coming = True
    looked = []

    class Done(deque[Any]):
        def __bool__(self) -> bool:
            looked.append(len(threaded.pool._resting))
            return True

    threaded.pool.done = Done()
    assert rest(monkeypatch, threaded, lambda: None) == 0
    assert looked == [1]


def test_a_rest_in_vain_is_tried_ever_more_rarely_until_one_was_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threaded = Threaded(9)
    threaded.pool._coming = True
    tried = [n for n in range(1, 1025) if rest(monkeypatch, threaded, lambda: None)]
    assert tried == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024]
    threaded.pool._skip = 0
    assert rest(monkeypatch, threaded, threaded.pool._tell)
    assert [rest(monkeypatch, threaded, lambda: None) for _ in range(4)] == [1, 1, 0, 1]


def test_a_rest_was_not_in_vain_if_something_was_done_while_the_loop_waited_for_its_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threaded = Threaded(9)
    threaded.pool._coming = True
    for _ in range(5):
        assert rest(monkeypatch, threaded, lambda: threaded.pool.done.append(object()))
        threaded.pool.done.clear()


def test_who_is_too_late_to_wake_the_loop_from_its_rest_does_no_harm() -> None:
    threaded = Threaded(9)
    threaded.pool.awake = True

    class Gone(deque[Any]):
        def __bool__(self) -> bool:
            return True  # it was there

    threaded.pool._resting = Gone()
    threaded.pool._tell()
    assert threaded.woken == 0
