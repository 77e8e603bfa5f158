"""How the event loop hears of what worker threads have done.

There is no thread but the test's: what another thread does, the test does at a chosen point.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

import trioreq
from trioreq._protocol.fair_queue import SharedFairQueue
from trioreq._server import pending_request
from trioreq._server.finishing import Blocks
from trioreq._server.threads import RETRY, ThreadPool


class Reader:
    """Has something to do for the loop each time, until it runs out of it."""

    def __init__(self, *batches: Callable[[], object]) -> None:
        self.batches = list(batches)
        self.readable_after_sending = False
        self.emptied = trio.Event()

    def read(self, _: int) -> list[Any] | None:
        if not self.batches:
            return None
        self.batches.pop(0)()
        return []

    async def wait(self) -> None:
        self.emptied.set()
        await trio.sleep_forever()

    def readable(self) -> bool:
        return self.readable_after_sending


class Outbox:
    """Does what happens at the end of a flush."""

    def __init__(self) -> None:
        self.corked = False
        self.meanwhile: Callable[[], object] = lambda: None

    def cork(self) -> None:
        self.corked = True

    def flush(self) -> None:
        self.corked = False
        self.meanwhile()


class Parts:
    """A pool without threads, and what it is made of.

    Attributes:
        answers: Results of requests that were finished.
        woken: What was to be run in the loop.
        told: What happened to the server, in order.
    """

    def __init__(self, *batches: Callable[[], object], nursery: Any = None, slots: int = 1) -> None:
        self.answers: list[object] = []
        self.woken: list[Callable[[], object]] = []
        self.told: list[str] = []
        self.reader = Reader(*batches)
        self.outbox = Outbox()
        self.queue: SharedFairQueue[Any, Any] = SharedFairQueue(slots, 1)
        requests: Any = SimpleNamespace(
            finish=self._finish, begin_in_thread=lambda *_: None, blocks=Blocks()
        )
        threads = ThreadPool(
            lambda _: b"",
            self.reader,  # type: ignore[arg-type]
            requests,
            self.queue,
            self.outbox,  # type: ignore[arg-type]
            nursery,
            lambda: self.told.append("crashed"),
        )
        self.threads = cast("Any", threads)
        self.threads._token = SimpleNamespace(run_sync_soon=self.woken.append)
        self.pool: Any = self.threads._pool

    def _finish(self, _: object, result: object) -> None:
        assert self.outbox.corked, "replies go out together"
        self.answers.append(result)

    def one_is_done(self, error: BaseException | None = None) -> None:
        """As a thread does it that has nothing else to do."""
        self.pool.done.append((SimpleNamespace(), b"x", error))
        self.pool._notify()


async def test_requests_are_answered_while_there_is_always_more_to_read() -> None:
    seen: list[int] = []

    def one_is_done() -> None:
        seen.append(len(parts.answers))
        parts.pool.awake = True  # for the test there is no pause in which it could sleep
        parts.one_is_done()

    parts = Parts(one_is_done, one_is_done, one_is_done)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(parts.threads.lead)
        await parts.reader.emptied.wait()
        nursery.cancel_scope.cancel()
    assert seen == [0, 1, 2]
    assert len(parts.answers) == 3
    assert parts.pool.closed


async def test_other_tasks_run_while_there_is_always_more_to_read() -> None:
    parts = Parts()
    steps: list[str] = []
    parts.reader.batches = [lambda: steps.append("read")] * 5

    async def another() -> None:
        while True:
            steps.append("another")
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(parts.threads.lead)
        nursery.start_soon(another)
        await parts.reader.emptied.wait()
        nursery.cancel_scope.cancel()
    assert steps.count("read") == 5
    # One step each in a pass of the loop, in any order.
    assert ["read"] * 3 not in [steps[at : at + 3] for at in range(len(steps))]


async def test_a_request_done_just_before_the_event_loop_sleeps_wakes_it() -> None:
    parts = Parts()
    parts.outbox.meanwhile = parts.one_is_done
    parts.pool.awake = True
    parts.one_is_done()
    assert parts.threads._prepare_to_sleep()
    assert len(parts.answers) == len(parts.woken) == 1
    parts.outbox.meanwhile = lambda: None
    parts.woken[0]()
    assert len(parts.answers) == 2
    assert not parts.threads._prepare_to_sleep()


async def test_the_loop_may_sleep_on_it_that_it_has_sent_nothing() -> None:
    """What is done just after its look wakes it: a send of its own would eat the edge."""
    parts = Parts()
    looked: list[bool] = []

    class Done(deque[Any]):
        def __bool__(self) -> bool:
            some = len(self) > 0
            if not (parts.pool.awake or looked):  # here another thread has its way
                looked.append(some)
                parts.one_is_done()
            return some

    parts.pool.awake = True
    parts.pool.done = Done()
    assert not parts.threads._prepare_to_sleep()
    assert (len(parts.answers), len(parts.woken)) == (0, 1)
    parts.woken[0]()
    assert len(parts.answers) == 1


async def test_the_loop_looks_again_for_messages_if_it_has_sent_before_it_would_sleep() -> None:
    parts = Parts()
    reads: list[str] = []
    parts.outbox.meanwhile = lambda: reads.append("sent")

    def arrives() -> None:
        reads.append("read")
        parts.reader.readable_after_sending = False

    parts.pool.done.append((SimpleNamespace(), b"x", None))
    parts.reader.readable_after_sending = True

    read = parts.reader.read

    def read_again(room: int) -> list[Any] | None:
        if reads == ["sent"]:
            parts.reader.batches.append(arrives)
        return read(room)

    parts.threads._reader = SimpleNamespace(
        read=read_again, readable=parts.reader.readable, wait=parts.reader.wait
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(parts.threads.lead)
        await parts.reader.emptied.wait()
        nursery.cancel_scope.cancel()
    assert reads[:2] == ["sent", "read"]


async def test_before_the_event_loop_sleeps_a_thread_is_woken_for_granted_requests() -> None:
    parts = Parts()
    awake: list[bool] = []
    parts.pool.wake_thread = lambda: awake.append(parts.pool.awake)
    parts.pool.awake = True
    assert not parts.threads._prepare_to_sleep()
    assert awake == [False]  # what is left later wakes the loop


async def test_a_thread_is_woken_for_what_others_than_the_reader_have_read() -> None:
    parts = Parts()
    called: list[object] = []
    parts.threads._spawn = lambda: called.append(("spawn", list(parts.queue.granted)))
    parts.pool.wake_thread = lambda: called.append("wake a thread")
    request = SimpleNamespace()
    parts.threads.start([request])
    assert called == [("spawn", [request]), "wake a thread"]


async def test_a_loop_that_is_awake_is_not_woken() -> None:
    parts = Parts()
    parts.pool.awake = True
    parts.one_is_done()
    assert not parts.woken


async def test_an_exception_that_ends_the_program_is_raised_after_clients_are_answered() -> None:
    """Also if the loop was asleep: what runs in trio's own task must not raise."""
    told: list[str] = []

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            parts = Parts(nursery=nursery)
            parts.told = told
            parts.one_is_done(SystemExit(3))
            parts.woken[0]()
            assert not told

    with pytest.raises(BaseExceptionGroup) as caught:
        await run()
    assert caught.group_contains(SystemExit)
    assert told == ["crashed"]


async def test_results_are_answered_beside_an_exception_that_ends_the_program() -> None:
    parts = Parts()
    parts.pool.done.append((SimpleNamespace(), None, SystemExit(3)))
    parts.one_is_done()
    with pytest.raises(SystemExit):
        parts.threads._prepare_to_sleep()
    assert len(parts.answers) == 1


async def test_results_are_answered_as_the_server_stops() -> None:
    """The loop was awake, so threads have not woken it; from then on they do."""
    parts = Parts()

    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            await trio.lowlevel.checkpoint()
            parts.pool.awake = True
            parts.one_is_done()
            assert parts.woken == parts.answers == []
            nursery.cancel_scope.cancel()

        nursery.start_soon(parts.threads.lead)
        nursery.start_soon(stop)
    assert len(parts.answers) == 1
    assert parts.pool.closed
    parts.one_is_done()
    parts.woken[0]()
    assert len(parts.answers) == 2


@pytest.mark.parametrize("sent", [True, False])
async def test_a_yield_raises_only_if_its_reply_was_not_sent(sent: bool) -> None:
    """Also if the request has ended between the two: the client has that reply."""
    parts = Parts()

    class StreamRequest(pending_request.StreamRequest):
        def __init__(self) -> None:
            self.ended = False
            self._cancel_reason = None

    request = StreamRequest()

    def send_part(*_: object) -> bool:
        request._cancel_reason = trioreq.CancelReason.CANCELLED
        request.ended = True
        return sent

    parts.threads._requests.may_send = lambda _: True
    parts.threads._requests.send_part = send_part
    parts.pool.hand_over = lambda done: parts.threads._take_part(done[0], done[1])
    with nullcontext() if sent else pytest.raises(trioreq.RequestCancelled):
        parts.threads._send(request, (b"reply",))
    assert request.ended


async def test_a_function_that_fails_after_the_server_has_stopped_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parts = Parts()
    parts.pool.close()
    parts.one_is_done(SystemExit(3))
    parts.woken[0]()
    assert "failed after the server had stopped" in caplog.text
    assert "SystemExit: 3" in caplog.text
    assert not parts.told


async def test_a_thread_that_cannot_be_started_is_tried_again(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[float] = []

    async def run_sync(work: object, worker: Any, **_: object) -> None:
        tries.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if len(tries) < 4:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    async with trio.open_nursery() as nursery:
        parts = Parts(nursery=nursery)
        assert parts.queue.take()
        parts.threads.start([SimpleNamespace()])
    assert [at - tries[0] for at in tries] == [0, RETRY, 2 * RETRY, 3 * RETRY]
    assert caplog.text.count("cannot start a worker thread") == 1
    assert "can't start new thread" in caplog.text
    assert not parts.told


async def test_an_error_of_a_thread_that_runs_is_not_taken_for_one_that_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run_sync(work: object, worker: Any, **_: object) -> None:
        worker.has_thread = True
        await trio.lowlevel.checkpoint()
        raise RuntimeError("a fault of the pool's own")

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    told: list[str] = []

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            parts = Parts(nursery=nursery)
            parts.told = told
            parts.threads._start_worker(parts.pool.worker())

    with pytest.raises(BaseExceptionGroup) as caught:
        await run()
    assert caught.group_contains(RuntimeError, match="of the pool's own")
    assert told == ["crashed"]
