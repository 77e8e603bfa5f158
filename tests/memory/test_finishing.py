"""Blocks of `finishing`, in memory: on an autojump clock, so times are exact."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio
from support.handlers import Log
from support.memory import serving
from trio.testing import MockClock, wait_all_tasks_blocked

import trioreq
from trioreq._server.finishing import Blocks
from trioreq.testing import make_request, sleep


async def test_a_block_does_not_begin_when_its_request_has_ended(
    autojump_clock: MockClock,
) -> None:
    log = Log()

    async def handler(request: trioreq.Request) -> bytes:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        try:
            async with trioreq.finishing(limit=5):
                log.add("began")
        finally:
            log.add("ended")
        return b""

    async with serving(handler) as net:
        client = net.connect()
        client.send(b"x")
        await wait_all_tasks_blocked()
        client.crash()
        await log.wait("ended")
        assert log.entries == ["ended"]
        assert net.server.statistics().finishing == 0


async def test_a_block_of_a_plain_function_does_not_begin_when_its_request_has_ended(
    autojump_clock: MockClock,
) -> None:
    log = Log()

    def handler(request: trioreq.Request) -> bytes:
        sleep(5)
        try:
            with trioreq.finishing(limit=5):
                log.add("began")
        except trioreq.RequestCancelled:
            log.add("not begun")
            raise
        return b""

    async with serving(handler) as net:
        client = net.connect()
        client.send(b"x")
        await wait_all_tasks_blocked()
        client.crash()
        await log.wait("not begun")
        assert log.entries == ["not begun"]


async def times(body: Any, *, leaves_at: float = 1) -> list[str]:
    """What a handler says, and when, whose client leaves."""
    log = Log()
    start = trio.current_time()

    async def handler(request: trioreq.Request) -> bytes:
        def add(what: str) -> None:
            log.add(f"{what} {trio.current_time() - start:g}")

        try:
            await body(add)
        except (trio.Cancelled, BaseExceptionGroup):
            add("cancelled")
            raise
        finally:
            add("ended")
        return b""

    async with serving(handler) as net:
        client = net.connect()
        client.send(b"x")
        await trio.sleep_until(start + leaves_at)
        client.crash()
        await log.wait_for(lambda: any(e.startswith("ended") for e in log.entries))
        assert net.server.statistics().finishing == 0
    return log.entries[:-1]


async def test_the_limit_counts_from_the_end_of_the_request(autojump_clock: MockClock) -> None:
    async def body(add: Any) -> None:
        async with trioreq.finishing(limit=5):
            await trio.sleep(1000)

    assert await times(body, leaves_at=100) == ["cancelled 105"]


async def test_leaving_a_block_is_not_a_checkpoint(autojump_clock: MockClock) -> None:
    async def body(add: Any) -> None:
        async with trioreq.finishing(limit=5):
            await trio.sleep(3)
        add("left")
        await trio.lowlevel.checkpoint()
        add("went on")

    assert await times(body) == ["left 3", "cancelled 3"]


async def test_leaving_is_not_a_checkpoint_in_the_step_of_the_cancel(
    autojump_clock: MockClock,
) -> None:
    async def body(add: Any) -> None:
        with trio.CancelScope() as scope:
            async with trioreq.finishing(limit=5):
                await trio.lowlevel.checkpoint()
                scope.cancel()  # the task beside the block has not seen it yet
            add("left")
            await trio.lowlevel.checkpoint()
        add("cancelled")

    assert await times(body) == ["left 0", "cancelled 0"]


async def test_a_scope_around_the_block_does_not_reach_it_either(
    autojump_clock: MockClock,
) -> None:
    async def body(add: Any) -> None:
        with trio.move_on_after(2):
            async with trioreq.finishing(limit=5):
                await trio.sleep(4)
            add("left")
            await trio.lowlevel.checkpoint()
        add("moved on")
        with trio.move_on_after(2):
            async with trioreq.finishing(limit=5):
                await trio.sleep(1000)
            add("left")
        add("moved on")

    assert await times(body, leaves_at=100) == ["left 4", "moved on 4", "moved on 11"]


async def test_a_scope_inside_the_block_is_not_hindered(autojump_clock: MockClock) -> None:
    async def body(add: Any) -> None:
        async with trioreq.finishing(limit=5):
            with trio.move_on_after(2):
                await trio.sleep(4)
            add("moved on")

    assert await times(body, leaves_at=1) == ["moved on 2"]


async def test_the_limit_of_the_outer_block_counts(autojump_clock: MockClock) -> None:
    async def longer(add: Any) -> None:
        async with trioreq.finishing(limit=5), trioreq.finishing(limit=50):
            await trio.sleep(1000)

    async def shorter(add: Any) -> None:
        async with trioreq.finishing(limit=5):
            async with trioreq.finishing(limit=1):
                await trio.sleep(3)
            add("inner left")
            await trio.sleep(1000)

    async def in_a_child(add: Any) -> None:
        async def child() -> None:
            async with trioreq.finishing(limit=50):
                await trio.sleep(1000)

        async with trioreq.finishing(limit=5), trio.open_nursery() as nursery:
            nursery.start_soon(child)

    assert await times(longer) == ["cancelled 6"]
    assert await times(shorter) == ["inner left 3", "cancelled 6"]
    assert await times(in_a_child) == ["cancelled 6"]


async def test_an_error_in_the_block_comes_out_bare(autojump_clock: MockClock) -> None:
    async def fail() -> None:
        await trio.sleep(3)
        raise LookupError

    async def body(add: Any) -> None:
        try:
            async with trioreq.finishing(limit=5):
                await fail()
        except LookupError:
            add("caught")

    assert await times(body, leaves_at=1) == ["caught 3"]
    assert await times(body, leaves_at=10) == ["caught 3"]


async def test_a_drain_lifts_inner_blocks_too(autojump_clock: MockClock) -> None:
    log = Log()

    async def handler(request: trioreq.Request) -> bytes:
        async with trioreq.finishing(limit=100), trioreq.finishing(limit=100):
            log.add("began")
            await trio.sleep_forever()

    async with serving(handler) as net:
        net.connect().send(b"x")
        await log.wait("began")
        start = trio.current_time()
        assert net.server.statistics().finishing == 2
        await net.server.drain(7)
        assert trio.current_time() - start == 7


async def test_a_session_can_finish_too(autojump_clock: MockClock) -> None:
    log = Log()

    async def session() -> None:
        async with trioreq.finishing(limit=5):
            log.add("began")
            await trio.sleep(3)
            log.add("done")
        await trio.lowlevel.checkpoint()
        log.add("went on")

    async def handler(request: trioreq.Request) -> bytes:
        request.client.start_soon(session)
        return b""

    async with serving(handler) as net:
        client = net.connect()
        await client.request(b"x")
        await log.wait("began")
        client.crash()
        await log.wait("done")
        await wait_all_tasks_blocked()
        assert log.entries == ["began", "done"]


async def test_a_session_that_does_not_finish_is_named(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    log = Log()

    async def session() -> None:
        try:
            async with trioreq.finishing(limit=5):
                log.add("began")
                await trio.sleep_forever()
        finally:
            log.add("ended")

    async def handler(request: trioreq.Request) -> bytes:
        request.client.start_soon(session)
        return b""

    async with serving(handler) as net:
        client = net.connect()
        await client.request(b"x")
        await log.wait("began")
        client.crash()
        await log.wait("ended")
    assert "a session: a finishing block has not ended within its limit of 5 s" in caplog.text


async def test_a_crash_of_the_server_does_not_reach_the_block(autojump_clock: MockClock) -> None:
    log = Log()

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"exit":
            raise SystemExit
        async with trioreq.finishing(limit=5):
            log.add("began")
            await trio.sleep(3)
            log.add("done")
        return b""

    async def main() -> None:
        async with serving(handler) as net:
            net.connect().send(b"x")
            await log.wait("began")
            net.connect().send(b"exit")
            await trio.sleep_forever()

    with pytest.RaisesGroup(SystemExit, flatten_subgroups=True, allow_unwrapped=True):
        await main()
    assert log.entries == ["began", "done"]


async def test_a_block_in_a_process_is_not_killed(autojump_clock: MockClock) -> None:
    async with serving(_finish, workers=trioreq.ProcessWorkers(1)) as net:
        for seconds, last in ((3, 3), (1000, 6)):  # when it runs last
            client = net.connect()
            start = trio.current_time()
            client.send(b"%d" % seconds)
            await trio.sleep(1)
            client.crash()
            await trio.sleep_until(start + last - 0.5)
            assert net.server.statistics().running == 1
            await trio.sleep_until(start + last + 0.5)
            assert net.server.statistics().running == 0


def _finish(request: trioreq.Request) -> bytes:
    with trioreq.finishing(limit=5):
        trioreq.check_cancelled()
        sleep(float(request.body))
    sleep(1000)
    return b""


# Blocks that no task of the server will end.


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
@pytest.mark.parametrize("end", ["cancel", "drain"])
@pytest.mark.parametrize("who", ["handler", "waiting handler", "cancelled handler", "session"])
async def test_a_block_in_an_abandoned_generator_has_ended(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, who: str, end: str
) -> None:
    kept = []
    left = trio.Event()

    async def numbers() -> AsyncIterator[int]:
        async with trioreq.finishing(limit=5):
            yield 1

    async def leave() -> None:
        kept.append(numbers())
        await anext(kept[-1])
        if who != "handler":
            await trio.sleep(3)
        left.set()

    async def handler(request: trioreq.Request) -> bytes:
        if who == "session":
            request.client.start_soon(leave)
        else:
            await leave()
        return b""

    async with serving(handler) as net:
        client = net.connect()
        client.send(b"x")
        await trio.sleep(1)
        if who == "cancelled handler":
            client.crash()
        await left.wait()
        await wait_all_tasks_blocked()
        assert net.server.statistics().finishing == 0
        start = trio.current_time()
        if end == "drain":
            client.close()
            await net.server.drain(math.inf)
    assert trio.current_time() == start
    assert caplog.text.count("left a nursery open") == 1
    assert "has not ended within its limit" not in caplog.text


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
async def test_a_block_that_a_child_of_a_handler_leaves_open_has_a_limit(
    autojump_clock: MockClock,
) -> None:
    kept = []

    async def child() -> None:
        kept.append(numbers())
        await anext(kept[-1])

    async def numbers() -> AsyncIterator[int]:
        async with trioreq.finishing(limit=5):
            yield 1

    async def handler(request: trioreq.Request) -> bytes:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
        raise AssertionError

    async with serving(handler) as net:
        client = net.connect()
        assert (await client.request(b"x"))[1] == b"handler-failed"
        start = trio.current_time()
        client.close()
        await net.server.drain(math.inf)
    assert trio.current_time() - start <= 5


async def test_a_block_that_a_plain_function_leaves_open_has_a_limit(
    autojump_clock: MockClock,
) -> None:
    kept = []

    def numbers() -> Iterator[int]:
        with trioreq.finishing(limit=5):
            yield 1

    def handler(request: trioreq.Request) -> bytes:
        kept.append(numbers())
        next(kept[-1])
        return b""

    async with serving(handler) as net:
        client = net.connect()
        await client.request(b"x")
        start = trio.current_time()
        client.close()
        await net.server.drain(math.inf)
        assert trio.current_time() - start == 5


@pytest.mark.parametrize("end", ["cancel", "drain"])
async def test_a_server_that_stops_does_not_wait_for_a_task_of_the_program(
    autojump_clock: MockClock, end: str
) -> None:
    log = Log()

    async def job() -> None:
        async with trioreq.finishing(limit=5):
            log.add("began")
            await trio.sleep(1000)
            log.add("done")

    async def handler(request: trioreq.Request) -> bytes:
        program.start_soon(job)
        return b""

    async with trio.open_nursery() as program:
        async with serving(handler) as net:
            client = net.connect()
            await client.request(b"x")
            await log.wait("began")
            assert net.server.statistics().finishing == 1
            client.close()
            start = trio.current_time()
            if end == "drain":
                await net.server.drain(7)
        assert trio.current_time() - start == (7 if end == "drain" else 0)
        await log.wait("done")  # nothing has cancelled it
        assert net.server.statistics().finishing == 0


async def test_the_program_may_cancel_its_task_after_the_limit(autojump_clock: MockClock) -> None:
    log = Log()

    async def job() -> None:
        async with trioreq.finishing(limit=5):
            log.add("began")
            await trio.sleep_forever()

    async def handler(request: trioreq.Request) -> bytes:
        program.start_soon(job)
        return b""

    async with trio.open_nursery() as program:
        async with serving(handler) as net:
            await net.connect().request(b"x")
            await log.wait("began")
        start = trio.current_time()
        program.cancel_scope.cancel()
    assert trio.current_time() - start == 5


class Protected:
    """A block that ends when it may."""

    def __init__(self, until: float) -> None:
        self._until = until

    def until(self) -> float:
        return self._until

    def lift(self) -> None: ...


async def test_a_drain_waits_for_a_block_that_begins_in_the_same_pass(
    autojump_clock: MockClock,
) -> None:
    """As that of a worker whose request is cancelled, and was the last. The order is by chance."""
    for _ in range(20):
        blocks, idle = Blocks(), trio.Event()

        async def begin(blocks: Blocks, idle: trio.Event) -> None:
            await idle.wait()
            with blocks.counted(Protected(math.inf)):
                await trio.sleep(3)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin, blocks, idle)
            await wait_all_tasks_blocked()
            start = trio.current_time()
            nursery.start_soon(wait_after, idle, blocks)
            await wait_all_tasks_blocked()
            idle.set()
        assert trio.current_time() - start == 3


async def wait_after(idle: trio.Event, blocks: Blocks) -> None:
    await idle.wait()
    await blocks.wait_none()
    assert len(blocks) == 0


async def test_a_drain_waits_for_a_block_that_begins_while_it_waits(
    autojump_clock: MockClock,
) -> None:
    blocks = Blocks()
    start = trio.current_time()

    async def begin(after: float, until: float, seconds: float) -> None:
        await trio.sleep(after)
        with blocks.counted(Protected(start + until)):
            await trio.sleep(seconds)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin, 0, 5, 100)
        nursery.start_soon(begin, 4, 50, 10)
        await trio.sleep(1)
        await blocks.wait_none()
        assert trio.current_time() - start == 14
        nursery.cancel_scope.cancel()


async def test_a_server_that_starts_in_a_block_is_not_in_it(autojump_clock: MockClock) -> None:
    log = Log()

    def inner_handler(request: trioreq.Request) -> bytes:
        try:
            while True:
                trioreq.check_cancelled()
                sleep(1)
        except trioreq.RequestCancelled:
            log.add("cancelled")
            raise

    async def handler(request: trioreq.Request) -> bytes:
        async with trioreq.finishing(limit=1000), serving(inner_handler) as inner:
            client = inner.connect()
            client.send(b"x")
            await trio.sleep(5)
            client.crash()
            with trio.fail_after(5):
                await log.wait("cancelled")
        return b"done"

    async with serving(handler) as net:
        assert await net.connect().request(b"x") == [b"done"]


# What cannot be.


async def test_a_block_on_ray_is_refused(autojump_clock: MockClock) -> None:
    async with serving(_refused, workers=trioreq.RayWorkers(1)) as net:
        assert await net.connect().request(b"x") == [b"refused"]


def _refused(request: trioreq.Request) -> bytes:
    with pytest.raises(RuntimeError, match="on Ray"), trioreq.finishing(limit=5):
        raise AssertionError
    return b"refused"


async def test_with_is_refused_in_an_async_function(autojump_clock: MockClock) -> None:
    async def handler(request: trioreq.Request) -> bytes:
        with pytest.raises(RuntimeError, match="use async with"), trioreq.finishing(limit=5):
            raise AssertionError
        return b"refused"

    async with serving(handler) as net:
        assert await net.connect().request(b"x") == [b"refused"]


async def test_a_block_is_entered_once(autojump_clock: MockClock) -> None:
    async def handler(request: trioreq.Request) -> bytes:
        block = trioreq.finishing(limit=5)
        async with block:
            pass
        with pytest.raises(RuntimeError, match="once"):
            async with block:
                raise AssertionError
        return b"refused"

    async with serving(handler) as net:
        assert await net.connect().request(b"x") == [b"refused"]


async def test_finishing_is_for_handlers(autojump_clock: MockClock) -> None:
    request = make_request()
    with pytest.raises(RuntimeError, match="open_memory_server"):
        async with trioreq.finishing(limit=5):
            raise AssertionError
    with pytest.raises(RuntimeError, match="open_memory_server"), trioreq.finishing(limit=5):
        raise AssertionError
    assert request.cancel_reason is None
