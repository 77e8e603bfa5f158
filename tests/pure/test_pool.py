"""What a worker thread does between two requests. Pure: the test is the thread, and it is alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from types import SimpleNamespace
from typing import Any, cast

import pytest

from trioreq import CancelReason, RequestCancelled
from trioreq._protocol import fair_queue
from trioreq._protocol.fair_queue import SharedFairQueue
from trioreq._request import current_request
from trioreq._server import pool
from trioreq._server.pool import Pool, Worker


class Wake:
    """A lock that cannot be waited for, since no thread releases it."""

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
        self.queue: Any = SharedFairQueue(slots, 10)
        self.woken = 0  # how often the loop was
        self.begun: list[str] = []
        self.seen: list[str] = []
        self.pool = cast(
            "Any", Pool(self.handle, self.queue, self.begin, self.wake, copy_context())
        )
        self.pool._parked = Parked(self)

    def wake(self) -> None:
        self.woken += 1

    def begin(self, request: Any) -> None:
        self.begun.append(request.name)
        if request.ended:
            raise RequestCancelled(CancelReason.DISCONNECTED)

    def handle(self, request: Any) -> str:
        self.seen.append(request.name)
        self.meanwhile.get(request.name, lambda: None)()
        return str(request.name)

    def arrive(self, *names: str) -> None:
        for name in names:
            request = SimpleNamespace(name=name, ended=False)
            if self.queue.take():
                self.queue.granted.append(request)
            else:
                assert self.queue.push("client", request)

    def another_parks(self) -> None:
        wake = Wake()
        wake.acquire()
        self.pool._parked.others.append(wake)

    def another_comes_and_parks(self) -> None:
        self.pool._coming = False
        self.another_parks()

    def add_worker(self) -> Worker:
        worker: Worker = self.pool.worker()
        return worker

    def run(self) -> None:
        """Do all that there is to do, as one that was woken; park, and end."""
        self.pool.work(self.add_worker())

    @property
    def parked(self) -> int:
        return len(self.pool._parked.others)

    @property
    def granted(self) -> list[str]:
        return [request.name for request in self.queue.granted]


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
        self.threaded.pool.closed = True

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
    monkeypatch.setattr(pool, "adapt_thread", lambda: None)  # this thread is not the pool's
    monkeypatch.setattr(fair_queue, "Lock", Lock)


def test_one_other_thread_is_woken_for_the_remaining_requests() -> None:
    parked = []
    threaded = Threaded(9, a=lambda: parked.append(threaded.parked))
    for _ in range(3):
        threaded.another_parks()
    threaded.arrive("a", "b", "c")
    threaded.run()
    assert threaded.seen == ["a", "b", "c"]
    assert parked == [2]
    assert threaded.parked == 2  # the one that was woken will see what is left


def test_another_is_woken_if_the_first_has_parked_again() -> None:
    threaded = Threaded(9, a=lambda: threaded.another_comes_and_parks())
    threaded.pool.done = Unseen()  # so the loop is not woken
    threaded.another_parks()
    threaded.arrive("a", "b", "c")
    threaded.run()
    assert threaded.parked == 0


def test_no_thread_is_woken_while_the_event_loop_is_awake() -> None:
    threaded = Threaded(9)
    threaded.pool.awake = True
    threaded.another_parks()
    threaded.arrive("a", "b", "c")
    threaded.run()
    assert threaded.parked == 1


def test_for_a_single_request_no_other_thread_is_woken_and_the_loop_once() -> None:
    woken = []
    threaded = Threaded(9, a=lambda: woken.append(threaded.woken))
    threaded.another_parks()
    threaded.arrive("a")
    threaded.run()
    assert woken == [0]
    assert threaded.woken == 1
    assert threaded.parked == 1


def test_queued_requests_are_granted_before_a_slow_function_runs() -> None:
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


def test_a_thread_that_has_finished_looks_for_what_waits() -> None:
    threaded = Threaded(1)
    threaded.arrive("a", "b", "c")
    threaded.run()
    assert threaded.seen == ["a", "b", "c"]


def test_a_thread_that_parks_checks_again_for_granted_requests() -> None:
    threaded = Threaded(9, parked=lambda: threaded.arrive("a"))
    threaded.run()
    assert threaded.seen == ["a"]


def test_a_thread_that_parks_while_the_server_ends_ends() -> None:
    threaded = Threaded(9)
    threaded.run()
    assert not threaded.pool._parked.mine


def test_the_loop_is_woken_before_the_next_function_takes_its_time() -> None:
    woken = []
    threaded = Threaded(
        2, a=lambda: woken.append(threaded.woken), b=lambda: woken.append(threaded.woken)
    )
    threaded.arrive("a", "b", "c")
    threaded.run()
    assert woken == [0, 1]
    assert threaded.woken == 1  # it will see all that is done, before it sleeps


def test_an_event_loop_that_is_awake_wakes_one_thread_for_granted_requests() -> None:
    threaded = Threaded(9)
    threaded.another_parks()
    threaded.another_parks()
    threaded.pool.wake_thread()
    assert threaded.parked == 2  # for nothing, none
    threaded.arrive("a", "b")
    threaded.pool.wake_thread()
    assert threaded.parked == 1
    threaded.pool.wake_thread()
    assert threaded.parked == 1  # that one will see what is left


def test_another_is_woken_if_the_first_has_come() -> None:
    threaded = Threaded(9, a=lambda: threaded.pool.wake_thread())
    threaded.another_parks()
    threaded.pool._coming = True
    threaded.arrive("a", "b")
    threaded.run()
    assert threaded.parked == 0


def test_the_loop_grants_a_slot_that_was_released_while_it_queued() -> None:
    threaded = Threaded(1)
    threaded.add_worker()
    threaded.another_parks()
    threaded.arrive("a")
    threaded.queue.granted.clear()  # it runs
    threaded.arrive("b")
    threaded.queue.release_in_thread()  # its thread had looked just before b was queued
    assert not threaded.pool.spawn()
    threaded.pool.wake_thread()
    assert threaded.granted == ["b"]
    assert threaded.parked == 0


@pytest.mark.parametrize("taken", [False, True])
def test_there_is_a_thread_for_what_waits_though_a_slot_was_just_released(*, taken: bool) -> None:
    """Its thread goes on with "b", and grants the slot to "c": that needs another thread."""
    threaded = Threaded(2)
    threaded.add_worker()
    threaded.arrive("a")
    threaded.queue.granted.clear()  # it runs
    threaded.arrive("b", "c")
    threaded.queue.release_in_thread()  # "a" is done
    if taken:
        threaded.queue.granted.popleft()
    assert len(threaded.pool.spawn()) == 1
    assert len(threaded.pool.workers) == 2


def test_a_thread_that_comes_at_once_is_not_taken_for_one_that_is_on_its_way() -> None:
    """Else none would be woken for what is left, until one comes by chance."""

    class Quick(Wake):
        def release(self) -> None:
            super().release()
            threaded.pool._coming = False  # it checks the queue before the caller continues

    threaded = Threaded(9)
    wake = Quick()
    wake.acquire()
    threaded.pool._parked.others.append(wake)
    threaded.pool._unpark()
    assert not threaded.pool._coming


class Pause(Wake):
    """What the loop waits for in a spin. The test says what happens meanwhile."""

    def __init__(self, spins: list[Pause], meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self.spins = spins
        self.meanwhile = meanwhile

    def acquire(self, *, timeout: float | None = None) -> bool:
        if timeout is not None:
            self.spins.append(self)
            self.meanwhile()
        return super().acquire(timeout=timeout)


def spin(
    monkeypatch: pytest.MonkeyPatch, threaded: Threaded, meanwhile: Callable[[], object]
) -> int:
    """Let the loop spin if it is to; returns whether it did, as a number."""
    spins: list[Pause] = []
    with monkeypatch.context() as patched:
        patched.setattr(pool, "Lock", lambda: Pause(spins, meanwhile))
        threaded.pool.spin()
    assert threaded.pool.awake
    assert not threaded.pool._spinning
    return len(spins)


def test_a_loop_that_spins_goes_on_when_the_woken_thread_has_finished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threaded = Threaded(9)
    threaded.another_parks()
    threaded.arrive("a", "b")

    def runs() -> None:
        assert threaded.parked == 0
        monkeypatch.setattr(pool, "Lock", Wake)
        threaded.run()
        assert not threaded.pool._spinning, "the loop was left to spin"

    assert spin(monkeypatch, threaded, runs) == 1
    assert threaded.seen == ["a", "b"]
    assert threaded.woken == 0  # it was not asleep
    assert spin(monkeypatch, threaded, lambda: None) == 0  # there is something to do


def test_the_woken_thread_can_end_the_spin_before_it_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Quick(Wake):
        def release(self) -> None:
            super().release()
            spinning.append(
                len(threaded.pool._spinning)
            )  # it has finished before the caller goes on

    spinning: list[int] = []
    threaded = Threaded(9)
    wake = Quick()
    wake.acquire()
    threaded.pool._parked.others.append(wake)
    threaded.arrive("a")
    assert spin(monkeypatch, threaded, lambda: None) == 1
    assert spinning == [1]


def test_the_loop_does_not_spin_if_no_thread_was_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spin(monkeypatch, Threaded(9), lambda: None) == 0


def test_the_event_loop_checks_done_after_its_spin_can_be_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threaded = Threaded(9)
    threaded.pool._coming = True
    looked = []

    class Done(deque[Any]):
        def __bool__(self) -> bool:
            looked.append(len(threaded.pool._spinning))
            return True

    threaded.pool.done = Done()
    assert spin(monkeypatch, threaded, lambda: None) == 0
    assert looked == [1]


def test_after_failed_spins_more_are_skipped_until_one_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threaded = Threaded(9)
    threaded.pool._coming = True
    tried = [n for n in range(1, 1025) if spin(monkeypatch, threaded, lambda: None)]
    assert tried == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024]
    threaded.pool._skip = 0
    assert spin(monkeypatch, threaded, threaded.pool._notify)
    assert [spin(monkeypatch, threaded, lambda: None) for _ in range(4)] == [1, 1, 0, 1]


def test_a_spin_has_not_failed_if_a_request_was_done_while_it_waited_for_the_gil(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threaded = Threaded(9)
    threaded.pool._coming = True
    for _ in range(5):
        assert spin(monkeypatch, threaded, lambda: threaded.pool.done.append(object()))
        threaded.pool.done.clear()


def test_a_thread_that_is_too_late_to_end_the_spin_does_no_harm() -> None:
    threaded = Threaded(9)
    threaded.pool.awake = True

    class Gone(deque[Any]):
        def __bool__(self) -> bool:
            return True  # it was there

    threaded.pool._spinning = Gone()
    threaded.pool._notify()
    assert threaded.woken == 0


def test_a_request_is_begun_before_its_handler_is_called() -> None:
    begun = []
    threaded = Threaded(9, a=lambda: begun.append(list(threaded.begun)))
    threaded.arrive("a")
    threaded.run()
    assert begun == [["a"]]
    [(request, result, error)] = threaded.pool.done
    assert (request.name, result, error) == ("a", "a", None)
    assert threaded.queue.free == 9


def test_the_handler_of_a_request_that_has_ended_is_not_called() -> None:
    threaded = Threaded(9)
    threaded.arrive("a", "b")
    threaded.queue.granted[0].ended = True
    threaded.run()
    assert threaded.begun == ["a", "b"]
    assert threaded.seen == ["b"]
    (request, result, error), _ = threaded.pool.done
    assert (request.name, result) == ("a", None)
    assert isinstance(error, RequestCancelled)
    assert threaded.queue.free == 9


def test_an_exception_is_collected_too_and_the_slot_is_released() -> None:
    def fails() -> None:
        raise KeyboardInterrupt

    threaded = Threaded(9, a=fails)
    threaded.arrive("a", "b")
    threaded.run()
    assert threaded.seen == ["a", "b"]
    assert isinstance(threaded.pool.done[0][2], KeyboardInterrupt)
    assert threaded.queue.free == 9


def test_a_thread_is_abandoned_while_it_runs_for_a_request_that_has_ended() -> None:
    abandoned = []

    def ends() -> None:
        abandoned.append(threaded.pool.abandoned)
        [worker] = threaded.pool.workers
        worker.request.ended = True
        abandoned.append(threaded.pool.abandoned)

    threaded = Threaded(9, a=ends)
    threaded.arrive("a")
    threaded.run()
    abandoned.append(threaded.pool.abandoned)
    assert abandoned == [0, 1, 0]


def test_each_handler_has_a_context_and_a_request_of_its_own() -> None:
    seen: list[object] = []

    def looks() -> None:
        request: Any = current_request.get()
        seen.append((request.name, variable.get()))
        variable.set(request.name)

    variable: ContextVar[str] = ContextVar("variable", default="untouched")
    threaded = Threaded(9, a=looks, b=looks)
    threaded.arrive("a", "b")
    threaded.run()
    assert seen == [("a", "untouched"), ("b", "untouched")]
    assert current_request.get() is None


def test_a_thread_knows_requests_before_it_runs_any(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(pool, "adapt_thread", lambda: order.append("adapted"))
    threaded = Threaded(9, a=lambda: order.append("ran"), b=lambda: order.append("ran"))
    threaded.arrive("a", "b")
    worker = threaded.add_worker()
    assert not worker.has_thread
    threaded.pool.work(worker)
    assert worker.has_thread
    assert order == ["adapted", "ran", "ran"]


def test_abandoned_threads_are_counted_while_another_thread_starts_workers() -> None:
    threaded = Threaded(1)

    class Starts:
        """A worker; as it is looked at, the event loop starts another."""

        @property
        def request(self) -> object:
            threaded.pool.worker()
            return SimpleNamespace(ended=True)

    threaded.pool.workers = {Starts()}
    assert threaded.pool.abandoned == 1
