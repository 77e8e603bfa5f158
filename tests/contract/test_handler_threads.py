"""What a plain function may assume, and servers whose threads run short, or whose tasks fail.

On real sockets alone: in memory a plain function has no thread, and a server has fewer tasks.
Everything waits for events.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
from support.ended import Ended, Fault
from support.handlers import STUBBORN, Log, ThreadWorker, Worker
from support.nets import Net, open_net
from support.places import EACH_PLACE, open_asker
from support.serving import until

import trioreq
from trioreq._server import threads, watchdog
from trioreq._server.admission import Admission
from trioreq._server.guard import Guard
from trioreq._server.switch_interval import INTERVAL
from trioreq._server.watchdog import Watchdog
from trioreq._transport.allow_list import AllowList
from trioreq._transport.router import Router


@pytest.fixture(params=["tcp", "ipc"])
async def net(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Net]:
    ipc = f"ipc://{tmp_path_factory.mktemp('ipc')}/socket"
    async with open_net("tcp://127.0.0.1:0" if request.param == "tcp" else ipc) as opened:
        yield opened


# trio.from_thread.


@pytest.mark.parametrize("name", ["run", "run_sync"])
async def test_from_thread_is_refused_with_the_name_of_the_alternative(
    net: Net, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    called = []

    async def in_trio() -> None:
        called.append("in trio")

    def handler(request: trioreq.Request) -> bytes:
        call: Callable[..., Any] = getattr(trio.from_thread, name)
        call(in_trio if name == "run" else called.append, *([] if name == "run" else ["sync"]))
        return b"done"

    await net.serve(handler)
    client = await net.connect()
    await client.send(b"x")
    assert (await client.receive())[1] == b"handler-failed"
    assert "make the handler async" in caplog.text
    assert "trio.to_thread.run_sync" in caplog.text
    assert not called


@pytest.mark.parametrize("end", ["disconnected", "shutdown", "deadline"])
async def test_from_thread_check_cancelled_knows_the_request(net: Net, end: str) -> None:
    log = Log()

    def handler(request: trioreq.Request) -> bytes:
        if request.body == b"check":
            trio.from_thread.check_cancelled()
            return b"goes on"
        log.add("started")
        try:
            for _ in range(STUBBORN * 1000):
                trio.from_thread.check_cancelled()
                time.sleep(0.001)
        except trioreq.RequestCancelled as cancelled:
            log.add(str(cancelled.reason))
            raise
        raise AssertionError

    await net.serve(handler, timeout=net.brief if end == "deadline" else None)
    client, other = [await net.connect() for _ in range(2)]
    await other.send(b"check")
    assert await other.receive() == [b"goes on"]
    await client.send(b"wait")
    await log.wait("started")
    if end == "disconnected":
        await client.close()
    elif end == "shutdown":
        await net.stop()
    await log.wait(end)
    if end != "shutdown":
        await other.send(b"check")
        assert await other.receive() == [b"goes on"]


@EACH_PLACE
async def test_in_a_thread_of_an_async_handler_the_request_is_known_too(
    net: Net, place: str
) -> None:
    """There trio.from_thread is trio's own."""

    async def handler(request: trioreq.Request) -> bytes:
        def in_thread() -> bytes:
            trioreq.check_cancelled()
            trio.from_thread.check_cancelled()
            task = trio.from_thread.run_sync(trio.lowlevel.current_task)
            return f"{task.name} {request.cancel_reason}".encode()

        return await trio.to_thread.run_sync(in_thread)

    asker = await open_asker(net, handler, place, timeout=1000)
    assert await asker.ask(b"x") == b"client 1: Asker.handle None"


# Threads that cannot be started.


class NoThreads:
    """While it is set, no thread can be started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        start = trio.lowlevel.start_thread_soon
        self.set = False
        self.refused = 0

        def start_thread_soon(*args: Any, **options: Any) -> None:
            if self.set:
                self.refused += 1
                raise RuntimeError("can't start new thread")
            start(*args, **options)

        monkeypatch.setattr("trio._threads.start_thread_soon", start_thread_soon)
        monkeypatch.setattr(threads, "RETRY", 0.01)


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> NoThreads:
    return NoThreads(monkeypatch)


async def test_without_new_threads_those_that_run_answer(
    net: Net, no_threads: NoThreads, caplog: pytest.LogCaptureFixture
) -> None:
    worker = ThreadWorker()
    server = await net.serve(worker, workers=2)
    first, second = [await net.connect() for _ in range(2)]
    await first.send(b"wait")
    await worker.log.wait("started wait")
    no_threads.set = True
    await second.send(b"echo")
    await until(lambda: no_threads.refused >= 3)  # it is tried again
    assert server.statistics().running == 2
    worker.release.set()
    assert await first.receive() == [b"re:wait"]
    assert await second.receive() == [b"re:echo"]
    assert sum("cannot start a worker thread" in r.message for r in caplog.records) == 1
    await net.stop()  # which wants a thread too


async def test_requests_that_no_thread_was_there_for_are_answered_later(
    net: Net, no_threads: NoThreads
) -> None:
    worker = ThreadWorker()
    await net.serve(worker, workers=3)
    clients = [await net.connect() for _ in range(3)]
    no_threads.set = True
    for client in clients:
        await client.send(b"wait")
    await until(lambda: no_threads.refused >= 6)
    no_threads.set = False
    await worker.log.wait("started wait", 3)  # all three at once, each in a thread
    worker.release.set()
    for client in clients:
        assert await client.receive() == [b"re:wait"]


async def test_a_server_that_has_no_threads_can_be_stopped(net: Net, no_threads: NoThreads) -> None:
    server = await net.serve(ThreadWorker())
    no_threads.set = True
    client = await net.connect()
    await client.send(b"echo")
    await until(lambda: no_threads.refused >= 1)
    await net.stop()
    assert (await client.receive())[1] == b"shutting-down"
    assert server.statistics().shut_down == 1


# Threads of others.


async def test_the_server_ends_though_all_of_trios_own_threads_are_abandoned(net: Net) -> None:
    many = 40
    assert trio.to_thread.current_default_thread_limiter().total_tokens == many
    release, started = threading.Event(), Log()

    def hang() -> None:
        started.add("hangs")
        release.wait(STUBBORN)

    async def handler(request: trioreq.Request) -> bytes:
        await trio.to_thread.run_sync(hang, abandon_on_cancel=True)
        return b""

    await net.serve(handler, max_in_flight=many, max_queued_per_client=many)
    client = await net.connect("DEALER")
    for _ in range(many):
        await client.send(b"x")
    await started.wait("hangs", many)
    try:
        with trio.fail_after(5):
            await net.stop()
        assert trio.to_thread.current_default_thread_limiter().available_tokens == 0
        assert (await client.receive())[1] == b"shutting-down"
    finally:
        release.set()


@pytest.mark.parametrize("plain", [False, True])
async def test_as_many_threads_as_trio_has_may_use_clients(net: Net, plain: bool) -> None:
    many = 40

    def handler(request: trioreq.Request) -> bytes:
        return request.body

    async def async_handler(request: trioreq.Request) -> bytes:
        await trio.lowlevel.checkpoint()
        return request.body

    await net.serve(handler if plain else async_handler, max_queued_per_client=many)
    together = threading.Barrier(many)
    replies = []

    async def ask(body: bytes) -> bytes:
        async with net.open_client() as client:
            reply: bytes = await client.request(body)
            return reply

    def in_thread(body: bytes) -> None:
        together.wait(STUBBORN)  # all threads are there
        replies.append(trio.from_thread.run(ask, body))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for number in range(many):
                nursery.start_soon(trio.to_thread.run_sync, in_thread, b"%d" % number)
    assert sorted(map(int, replies)) == list(range(many))


# Tasks of the server that fail.


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Watchdog, "run"),
        (Guard, "run"),
        (AllowList, "watch"),
        (Admission, "run"),
        (Router, "watch"),
    ],
)
async def test_a_task_of_the_server_that_fails_ends_serve_and_clients_are_answered(
    net: Net, owner: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_server, of_client = [trioreq.KeyPair.generate() for _ in range(2)]
    worker = Worker()
    ended, fault = Ended(), Fault(monkeypatch)
    now = fault.plant_task(owner, name)
    server_keys = trioreq.CurveServer(of_server, {of_client.public: "somebody"})
    await ended.serve(net, worker, curve=server_keys)
    keys = trioreq.CurveClient(of_server.public, of_client)
    async with net.open_client(curve=keys) as client, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(trioreq.ReplyError, match="shutting-down"):
                await client.request(b"wait")

        nursery.start_soon(ask)
        await worker.log.wait("started wait")
        now.set()
        with trio.fail_after(10):
            await ended.over.wait()
    assert ended.error is fault.error


# Functions that compute.


async def test_the_switch_interval_is_short_while_a_function_runs_for_long(net: Net) -> None:
    before = sys.getswitchinterval()
    assert before > INTERVAL

    def handler(request: trioreq.Request) -> bytes:
        while request.body == b"long" and sys.getswitchinterval() == before:
            trioreq.check_cancelled()
        return str(sys.getswitchinterval()).encode()

    async def ask(body: bytes) -> float:
        await client.send(body)
        (reply,) = await client.receive()
        return float(reply)

    await net.serve(handler)
    client = await net.connect()
    for _ in range(2):
        assert await ask(b"quick") == before
        assert await ask(b"long") == INTERVAL
        while await ask(b"quick") != before:  # the server detects that it has returned
            pass
    await net.stop()
    assert sys.getswitchinterval() == before


async def test_the_switch_interval_is_restored_when_the_server_stops(net: Net) -> None:
    before = sys.getswitchinterval()
    log = Log()

    def handler(_: trioreq.Request) -> bytes:
        while sys.getswitchinterval() == before:
            pass
        log.add("shortened")
        while True:
            trioreq.check_cancelled()

    await net.serve(handler)
    client = await net.connect()
    await client.send(b"")
    await log.wait("shortened")
    await net.stop()
    assert sys.getswitchinterval() == before


async def test_the_log_shows_how_many_functions_compute(
    net: Net, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that wait are not counted."""
    monkeypatch.setattr(watchdog, "MANY", 2)
    log = Log()

    def handler(request: trioreq.Request) -> bytes:
        log.add("started")
        while True:
            trioreq.check_cancelled()
            if request.body == b"wait":
                time.sleep(0.2)

    await net.serve(handler, watchdog=1)
    clients = [await net.connect() for _ in range(7)]
    for client, body in zip(clients, [b"wait"] * 4 + [b"compute"] * 3, strict=True):
        await client.send(body)
    await log.wait("started", 7)
    told: list[str] = []

    def find() -> bool:
        told[:] = [message for message in caplog.messages if "compute at once" in message]
        return bool(told)

    await until(find)
    assert told[0].startswith("3 plain functions compute at once:")
    assert "set workers to about 2" in told[0]


async def test_a_few_functions_that_compute_are_not_warned_of(
    net: Net, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    count = Watchdog._count_computing

    def counted(self: Watchdog) -> int:
        looks.append(count(self))
        return looks[-1]

    monkeypatch.setattr(watchdog, "MANY", 2)
    monkeypatch.setattr(Watchdog, "_count_computing", counted)

    def handler(_: trioreq.Request) -> bytes:
        while True:
            trioreq.check_cancelled()

    await net.serve(handler, watchdog=0.1)
    for _ in range(2):
        await (await net.connect()).send(b"")
    await until(lambda: looks.count(2) >= 3)
    assert not any("compute" in message for message in caplog.messages)
