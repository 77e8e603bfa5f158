"""What an async handler may assume: docs/handlers.md.

A request runs in the task that has read it, or in a task in its client's nursery; each promise is
tried in both. Everything waits for events.
"""

from __future__ import annotations

import gc
import logging
import math
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import pytest
import trio
import trio.testing
from support.nets import Net
from support.places import EACH_PLACE, names_of_tasks, open_asker
from support.serving import until

import trioreq

EACH_WAIT = pytest.mark.parametrize("waits", [False, True], ids=["at once", "waits"])

# The generators that are abandoned here.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")


async def scoped(seconds: float) -> AsyncIterator[int]:
    with trio.move_on_after(seconds):
        yield 1
        yield 2


def errors(caplog: pytest.LogCaptureFixture, text: str) -> list[logging.LogRecord]:
    """What the server has logged as an error, and has this text."""
    found = [r for r in caplog.records if r.name == "trioreq" and r.levelno == logging.ERROR]
    return [record for record in found if text in record.getMessage()]


# What a handler leaves open.


@EACH_PLACE
@EACH_WAIT
@pytest.mark.parametrize("options", [{}, {"timeout": 1000}], ids=["no limit", "own scope"])
async def test_a_scope_that_is_left_open_cancels_no_other_request(
    net: Net, place: str, waits: bool, options: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"sleep":
            await trio.sleep(net.brief / 2)  # past the deadline of the scope
            return b"slept"
        if waits:
            await trio.lowlevel.checkpoint()
        async for _ in scoped(net.brief / 4):
            return b"left"
        raise AssertionError

    asker = await open_asker(net, handler, place, **options)
    for times in (1, 2):
        assert await asker.ask(b"leave") == b"left"
        assert await asker.ask(b"sleep") == b"slept"
        logged = errors(caplog, "left a cancel scope open")
        assert len(logged) == times
        assert "client 1 (DEALER at " in logged[-1].getMessage()


@EACH_PLACE
@EACH_WAIT
async def test_a_scope_that_is_left_open_is_not_kept(
    net: Net, place: str, waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "trio.async_generator_errors")  # tracebacks would keep it
    scopes: list[weakref.ref[trio.CancelScope]] = []

    async def own() -> AsyncIterator[int]:
        with trio.CancelScope() as scope:
            scopes.append(weakref.ref(scope))
            yield 1

    async def handler(request: trioreq.Request) -> bytes:
        if waits:
            await trio.lowlevel.checkpoint()
        async for _ in own():
            break
        return b"left"

    asker = await open_asker(net, handler, place)
    for _ in range(3):
        await asker.ask(b"leave")
    await trio.testing.wait_all_tasks_blocked()  # trio has closed the generators
    gc.collect()
    assert [scope() for scope in scopes] == [None] * 3


@EACH_PLACE
@EACH_WAIT
async def test_a_nursery_that_is_left_open_is_cancelled(
    net: Net, place: str, waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ended = trio.Event()

    async def child() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async def crowded() -> AsyncIterator[int]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            yield 1

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"echo":
            return b"echo"
        if waits:
            await trio.lowlevel.checkpoint()
        async for _ in crowded():
            return b"left"
        raise AssertionError

    asker = await open_asker(net, handler, place)
    assert await asker.ask(b"leave") == b"left"
    await ended.wait()
    assert await asker.ask(b"echo") == b"echo"
    (logged,) = errors(caplog, "left a nursery open")
    assert "client 1 (DEALER at " in logged.getMessage()


@EACH_PLACE
async def test_a_handler_that_its_own_open_scope_cancels_has_failed(
    net: Net, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The server is not what ends it."""
    kept = []

    async def handler(request: trioreq.Request) -> bytes:
        kept.append(scoped(net.brief))
        await anext(kept[-1])
        await trio.sleep_forever()
        raise AssertionError

    asker = await open_asker(net, handler, place)
    assert await asker.ask(b"leave") == b"handler-failed"
    assert len(errors(caplog, "left a cancel scope open")) == 1


async def test_a_generator_that_another_request_goes_on_with_fails_that_one_alone(
    net: Net,
) -> None:
    kept = []

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"leave":
            kept.append(scoped(1000))
            await anext(kept[-1])
        elif request.body == b"go on":
            async for _ in kept[-1]:
                pass
        return request.body

    asker = await open_asker(net, handler)
    assert await asker.ask(b"leave") == b"leave"
    assert await asker.ask(b"go on") == b"handler-failed"
    assert await asker.ask(b"echo") == b"echo"


# Context variables.


class Incomparable:
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise AssertionError("nobody compares this")


@EACH_PLACE
@EACH_WAIT
@pytest.mark.parametrize("value", [[], 1, Incomparable()], ids=["equal", "other", "incomparable"])
async def test_a_context_variable_of_one_request_is_not_seen_by_another(
    net: Net, place: str, waits: bool, value: object
) -> None:
    default: list[object] = []
    variable: ContextVar[object] = ContextVar("variable", default=default)
    seen = []

    async def handler(request: trioreq.Request) -> bytes:
        seen.append(variable.get())
        variable.set(value)
        if waits:
            await trio.lowlevel.checkpoint()
        assert variable.get() is value
        return b"set"

    asker = await open_asker(net, handler, place)
    for _ in range(3):
        assert await asker.ask(b"x") == b"set"
    assert [one is default for one in seen] == [True] * 3


@EACH_PLACE
async def test_the_context_variables_of_the_caller_of_serve_are_seen(net: Net, place: str) -> None:
    variable: ContextVar[bytes] = ContextVar("variable")
    variable.set(b"of who serves")

    async def handler(request: trioreq.Request) -> bytes:
        before = variable.get()
        await trio.lowlevel.checkpoint()
        assert variable.get() is before
        return before

    asker = await open_asker(net, handler, place)
    variable.set(b"too late")
    assert await asker.ask(b"x") == b"of who serves"


async def test_a_plain_function_sees_the_context_variables_of_the_caller_of_serve(net: Net) -> None:
    variable: ContextVar[bytes] = ContextVar("variable")
    variable.set(b"of who serves")
    await net.serve(lambda request: variable.get())
    variable.set(b"too late")
    client = await net.connect()
    await client.send(b"x")
    assert await client.receive() == [b"of who serves"]


@pytest.mark.parametrize("plain", [False, True])
async def test_a_request_that_gets_a_released_slot_does_not_get_its_context(
    net: Net, plain: bool
) -> None:
    variable: ContextVar[bytes] = ContextVar("variable", default=b"clean")
    release = trio.Event()

    def exchange(request: trioreq.Request) -> bytes:
        before = variable.get()
        variable.set(request.body)
        return before

    async def handler(request: trioreq.Request) -> bytes:
        before = exchange(request)
        await release.wait()
        return before

    server = await net.serve(exchange if plain else handler, max_in_flight=1)
    client = await net.connect("DEALER")
    for _ in range(4):
        await client.send(b"dirty")
    await until(lambda: server.statistics().requests == 4)
    release.set()
    assert [await client.receive() for _ in range(4)] == [[b"clean"]] * 4


async def test_a_request_that_sets_a_context_variable_costs_no_task(net: Net) -> None:
    class Spawned(trio.abc.Instrument):
        names: list[str] = []  # noqa: RUF012

        def task_spawned(self, task: trio.lowlevel.Task) -> None:
            self.names.append(task.name)

    variable: ContextVar[object] = ContextVar("variable")

    async def handler(request: trioreq.Request) -> bytes:
        variable.set(object())
        return b"set"

    asker = await open_asker(net, handler)
    assert await asker.ask(b"x") == b"set"
    spawned = Spawned()
    trio.lowlevel.add_instrument(spawned)
    for _ in range(100):
        assert await asker.ask(b"x") == b"set"
    trio.lowlevel.remove_instrument(spawned)
    assert [name for name in spawned.names if name.startswith(("reader", "client"))] == []


# Locks.


@EACH_PLACE
@EACH_WAIT
@pytest.mark.parametrize("kind", [trio.Lock, trio.StrictFIFOLock])
async def test_a_lock_that_one_request_holds_is_not_held_by_the_next(
    net: Net, place: str, waits: bool, kind: Any
) -> None:
    lock = kind()

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"take":
            lock.acquire_nowait()
            if waits:
                await trio.lowlevel.checkpoint()
        elif request.body == b"release":
            with pytest.raises(RuntimeError, match="can't release"):
                lock.release()
        elif request.body == b"take again":
            with pytest.raises(trio.WouldBlock):
                lock.acquire_nowait()
        else:
            with pytest.raises(trio.BrokenResourceError):
                await lock.acquire()
        return b"ok"

    asker = await open_asker(net, handler, place)
    for body in (b"take", b"release", b"take again", b"wait"):
        assert await asker.ask(body) == b"ok"


@EACH_PLACE
@EACH_WAIT
async def test_a_token_that_one_request_holds_is_not_held_by_the_next(
    net: Net, place: str, waits: bool
) -> None:
    limiter = trio.CapacityLimiter(2)

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"release":
            with pytest.raises(RuntimeError, match="isn't holding"):
                limiter.release()
        else:
            limiter.acquire_nowait()  # the same task could not twice
            if waits:
                await trio.lowlevel.checkpoint()
        return b"ok"

    asker = await open_asker(net, handler, place)
    for body in (b"take", b"release", b"take"):
        assert await asker.ask(body) == b"ok"
    assert limiter.borrowed_tokens == 2


@pytest.mark.parametrize("references", [1, 2, 3])
async def test_a_lock_is_noticed_though_the_request_lets_go_of_the_task_elsewhere(
    net: Net, references: int
) -> None:
    """The task has as many references after the request as before."""
    lock = trio.Lock()
    kept: list[Any] = []
    keep, release = trio.Event(), trio.Event()

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"keep":
            await keep.wait()
            root = trio.lowlevel.current_root_task()
            assert root is not None
            pending = [root]
            while pending:  # the reader is among them
                task = pending.pop()
                children = [c for n in task.child_nurseries for c in n.child_tasks]
                kept.extend([child] * references for child in children if child.name == "reader")
                pending += children
            del task, children
            release.set()
        elif request.body == b"take":
            kept.clear()
            lock.acquire_nowait()
        else:
            with pytest.raises(RuntimeError, match="can't release"):
                lock.release()
        return b"ok"

    await net.serve(handler)
    client = await net.connect("DEALER")
    await client.send(b"keep")
    await until(lambda: names_of_tasks().count("reader") == 1)
    keep.set()
    assert await client.receive() == [b"ok"]
    assert len(kept) == 1
    for body in (b"take", b"release"):
        await client.send(body)
    assert [await client.receive() for _ in range(2)] == [[b"ok"]] * 2


# Tasks.


@EACH_PLACE
async def test_a_waiting_handler_is_a_task_with_the_names_of_client_and_handler(
    net: Net, place: str
) -> None:
    seen: list[str] = []

    async def handler(request: trioreq.Request) -> bytes:
        await trio.lowlevel.checkpoint()
        seen.append(trio.lowlevel.current_task().name)
        assert seen[-1] in names_of_tasks()
        return b"done"

    asker = await open_asker(net, handler, place)
    assert await asker.ask(b"x") == b"done"
    assert seen == ["client 1: Asker.handle"]
    assert seen[0] not in names_of_tasks()  # it ends with the request


async def test_after_a_burst_one_task_for_each_client_stays_and_the_reader(net: Net) -> None:
    many = 1000
    release = trio.Event()
    waiting = 0

    async def handler(request: trioreq.Request) -> bytes:
        nonlocal waiting
        waiting += 1
        await release.wait()
        return b"done"

    class Seen(trio.abc.Instrument):
        def __init__(self) -> None:
            self.exited: Counter[str] = Counter()

        def task_exited(self, task: trio.lowlevel.Task) -> None:
            self.exited[task.name.removeprefix("client 1").removeprefix("client 2")] += 1

    await net.serve(handler, max_in_flight=many, max_queued_per_client=many)
    clients = [await net.connect("DEALER") for _ in range(2)]
    seen = Seen()
    trio.lowlevel.add_instrument(seen)
    for number in range(many):
        await clients[number % 2].send(b"x")
    await until(lambda: waiting == many)
    name = f": {handler.__qualname__}"
    assert sum(one.endswith(name) for one in names_of_tasks()) == many
    release.set()
    for number in range(many):
        assert await clients[number % 2].receive() == [b"done"]
    trio.lowlevel.remove_instrument(seen)
    assert seen.exited[name] == many
    left = names_of_tasks()
    assert left.count("reader") == 1
    assert {"client 1", "client 2"} >= {one for one in left if one.startswith("client")}
    assert max(left.count("client 1"), left.count("client 2")) <= 1


@EACH_PLACE
async def test_requests_that_wait_are_different_tasks(net: Net, place: str) -> None:
    tasks = []

    async def handler(request: trioreq.Request) -> bytes:
        await trio.lowlevel.checkpoint()
        tasks.append(trio.lowlevel.current_task())
        return b"done"

    asker = await open_asker(net, handler, place)
    for _ in range(3):
        await asker.ask(b"x")
    assert len(set(tasks)) == 3


# Deadlines.


@EACH_PLACE
@pytest.mark.parametrize("limit", ["none", "server", "client", "both"])
async def test_the_effective_deadline_is_the_requests(net: Net, place: str, limit: str) -> None:
    seen: list[float] = []
    held, release = trio.Event(), trio.Event()

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"hold":
            held.set()
            await release.wait()
            return b"held"
        seen.append(request.deadline)
        seen.append(trio.current_effective_deadline())
        await trio.lowlevel.checkpoint()
        seen.append(trio.current_effective_deadline())
        return b"done"

    options = {} if limit in ("none", "client") else {"timeout": 500}
    server = await net.serve(handler, max_in_flight=1, **options)
    before = trio.current_time()
    async with (
        net.open_client(timeout=50 if limit in ("client", "both") else None) as client,
        trio.open_nursery() as nursery,
    ):
        if place == "nursery":
            nursery.start_soon(client.request, b"hold")
            await held.wait()
        nursery.start_soon(client.request, b"x")
        if place == "nursery":
            await until(lambda: server.statistics().waiting == 1)
        release.set()
    assert len(set(seen)) == 1
    expected = {"none": math.inf, "server": 500, "client": 50, "both": 50}[limit]
    if limit == "none":
        assert seen[0] == math.inf
    else:
        assert before + expected - 1 <= seen[0] <= trio.current_time() + expected


def block(seconds: float) -> None:
    """Block the event loop."""
    clock = trio.lowlevel.current_clock()
    if isinstance(clock, trio.testing.MockClock):
        clock.jump(seconds)
    else:
        time.sleep(seconds)


@pytest.mark.slow
async def test_a_request_that_was_answered_is_not_cancelled_by_the_next_ones_deadline(
    net: Net,
) -> None:
    """Both run in the reader's task, in one scope."""
    requests = []

    async def handler(request: trioreq.Request) -> bytes:
        requests.append(request)
        if request.body == b"block":
            block(2 * net.brief)
        return b"done"

    asker = await open_asker(net, handler, timeout=net.brief)
    assert await asker.ask(b"x") == b"done"
    assert await asker.ask(b"block") == b"timed-out"
    assert [request.cancel_reason for request in requests] == [None, "deadline"]


# Cancels.


async def test_a_client_cancels_one_of_its_requests_and_no_other(net: Net) -> None:
    release = trio.Event()
    started, ended = [], []

    async def handler(request: trioreq.Request) -> bytes:
        started.append(request.body)
        try:
            await release.wait()
        finally:
            ended.append((request.body, request.cancel_reason))
        return request.body

    server = await net.serve(handler)
    scopes = [trio.CancelScope() for _ in range(4)]
    replies = []

    async def ask(number: int) -> None:
        with scopes[number]:
            replies.append(await client.request(b"%d" % number))

    async with net.open_client() as client, trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(ask, number)
        await until(lambda: len(started) == 4)
        for number in (0, 2):
            scopes[number].cancel()
        await until(lambda: len(ended) == 2)
        assert sorted(ended) == [(b"0", "cancelled"), (b"2", "cancelled")]
        release.set()
    assert sorted(replies) == [b"1", b"3"]
    assert server.statistics().cancelled_by_client == 2


async def test_a_disconnect_cancels_all_and_only_the_requests_of_its_client(net: Net) -> None:
    release = trio.Event()
    started, ended = [], []

    async def handler(request: trioreq.Request) -> bytes:
        started.append(request.body)
        try:
            await release.wait()
        except trio.Cancelled:
            ended.append((request.body, request.cancel_reason))
            raise
        return request.body

    await net.serve(handler)
    leaves, stays = [await net.connect("DEALER") for _ in range(2)]
    for _ in range(3):
        await leaves.send(b"leaves")
        await stays.send(b"stays")
    await until(lambda: len(started) == 6)
    await leaves.close()
    await until(lambda: len(ended) == 3)
    release.set()
    assert [await stays.receive() for _ in range(3)] == [[b"stays"]] * 3
    assert ended == [(b"leaves", "disconnected")] * 3
