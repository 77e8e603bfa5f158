"""Sessions, in memory: on an autojump clock, and every run is the same."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import pytest
import trio
from support.handlers import Log
from support.memory import serving
from trio.testing import MockClock, wait_all_tasks_blocked

import trioreq
from trioreq.testing import make_request, open_memory_server

variable: ContextVar[str] = ContextVar("variable", default="the server's")


async def test_a_task_is_not_started_for_a_client_that_has_disconnected(
    autojump_clock: MockClock,
) -> None:
    log = Log()

    async def handler(request: trioreq.Request) -> bytes:
        try:
            await trio.sleep_forever()
        finally:
            request.client.start_soon(session)
            log.add("asked")

    async def session() -> None:
        log.add("started")

    async with serving(handler) as net:
        client = net.connect()
        client.send(b"x")
        await wait_all_tasks_blocked()
        client.crash()
        await log.wait("asked")
        await wait_all_tasks_blocked()
        assert log.entries == ["asked"]


async def test_the_state_is_there_while_a_handler_ends(autojump_clock: MockClock) -> None:
    log = Log()

    async def handler(request: trioreq.Request) -> bytes:
        request.client.state.name = "alice"
        try:
            await trio.sleep_forever()
        finally:
            log.add(request.client.state.name)

    async with serving(handler) as net:
        client = net.connect()
        client.send(b"x")
        await wait_all_tasks_blocked()
        client.crash()
        await log.wait("alice")


@pytest.mark.parametrize("plain", [False, True])
async def test_a_session_has_the_context_of_the_server(
    autojump_clock: MockClock, *, plain: bool
) -> None:
    found: list[str] = []

    async def session() -> None:
        found.append(variable.get())
        with pytest.raises(RuntimeError, match="no request is being processed"):
            trioreq.check_cancelled()

    def start(request: trioreq.Request) -> bytes:
        variable.set("the request's")
        request.client.start_soon(session)
        return b""

    async def async_start(request: trioreq.Request) -> bytes:
        return start(request)

    async with serving(start if plain else async_start) as net:
        await net.connect().request(b"x")
        await wait_all_tasks_blocked()
    assert found == ["the server's"]


async def test_a_session_keeps_nothing_of_the_request_that_started_it(
    autojump_clock: MockClock,
) -> None:
    requests: list[weakref.ref[Any]] = []

    class Marker: ...

    async def handler(request: trioreq.Request) -> bytes:
        marker = request.state.marker = Marker()
        requests.append(weakref.ref(marker))
        request.client.start_soon(trio.sleep_forever)
        return b""

    async with serving(handler) as net:
        await net.connect().request(b"x")
        await wait_all_tasks_blocked()
        gc.collect()
        assert requests[0]() is None


async def test_g5_nothing_is_kept_of_the_session_of_a_connection_that_has_ended(
    autojump_clock: MockClock,
) -> None:
    clients: list[weakref.ref[Any]] = []

    class Marker: ...

    async def handler(request: trioreq.Request) -> bytes:
        marker = request.client.state.marker = Marker()
        clients.append(weakref.ref(marker))
        request.client.start_soon(trio.sleep_forever)
        return b""

    async with serving(handler) as net:
        client = net.connect()
        await client.request(b"x")
        client.close()
        await wait_all_tasks_blocked()
        await net.connect().request(b"x")  # now no variable refers to what was read last
        gc.collect()
        assert clients[0]() is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_a_session_may_end_the_server(
    autojump_clock: MockClock, error: type[BaseException]
) -> None:
    async def session() -> None:
        raise BaseExceptionGroup("", [error()])

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"wait":
            await trio.sleep_forever()
        request.client.start_soon(session)
        return b""

    told: list[list[bytes]] = []

    async def main() -> None:
        async with serving(handler) as net:
            waiting = net.connect()
            waiting.send(b"wait")
            await wait_all_tasks_blocked()
            net.connect().send(b"x")
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    told.append(await waiting.receive())

    with pytest.RaisesGroup(error, flatten_subgroups=True, allow_unwrapped=True):
        await main()
    assert told[0][1] == b"shutting-down"


@pytest.mark.parametrize("cancelled", [False, True])
async def test_an_error_of_a_session_is_raised_in_a_test(
    autojump_clock: MockClock, *, cancelled: bool
) -> None:
    async def session() -> None:
        if cancelled:
            try:
                await trio.sleep_forever()
            finally:
                raise LookupError("in a session")
        raise LookupError("in a session")

    async def handler(request: trioreq.Request) -> bytes:
        request.client.start_soon(session)
        return b""

    with pytest.RaisesGroup(LookupError, flatten_subgroups=True, allow_unwrapped=True):
        async with open_memory_server(handler) as net:
            client = net.connect()
            await client.request(b"x")
            client.close()
            await trio.sleep_forever()


async def test_an_error_of_a_session_after_its_end_evicts_no_connection(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def session() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise LookupError("late")

    async def handler(request: trioreq.Request) -> bytes:
        request.client.start_soon(session)
        return b""

    async with serving(handler) as net:
        await net.connect().request(b"x")
        await wait_all_tasks_blocked()
        client = net.connect()
        await client.request(b"x")
        client.close()
        await wait_all_tasks_blocked()
        assert net.server.statistics().evicted == 0
    assert net.server.statistics().evicted == 0  # nor when the server stops
    assert caplog.text.count("a task of its session failed") == 2


async def test_a_session_that_leaves_a_scope_open_is_named(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def session() -> None:
        trio.CancelScope().__enter__()

    async def handler(request: trioreq.Request) -> bytes:
        request.client.start_soon(session)
        return b""

    async with serving(handler) as net:
        client = net.connect()
        await client.request(b"x")
        await wait_all_tasks_blocked()
        assert await client.request(b"y") == [b""]
    assert "a task of its session left a cancel scope open" in caplog.text


@pytest.mark.parametrize("workers", [trioreq.ProcessWorkers(1), trioreq.RayWorkers(1)], ids=type)
async def test_a_worker_process_has_no_session(autojump_clock: MockClock, workers: Any) -> None:
    async with serving(_use_session, workers=workers) as net:
        client = net.connect()
        for body in (b"state", b"set", b"start_soon"):
            assert await client.request(body) == [b"refused"]


def _use_session(request: trioreq.Request) -> bytes:
    """Try what cannot be used in a worker process."""
    tries: dict[bytes, Callable[[], object]] = {
        b"state": lambda: request.client.state.name,
        b"set": lambda: setattr(request.client.state, "name", "alice"),
        b"start_soon": lambda: request.client.start_soon(trio.sleep_forever),
    }
    with pytest.raises(RuntimeError, match="worker process"):
        tries[request.body]()
    request.state.name = "alice"
    return b"refused"


async def test_a_handler_can_evict_its_own_client(autojump_clock: MockClock) -> None:
    log = Log()

    async def handler(request: trioreq.Request) -> bytes:
        assert await net.server.evict(request.client.id)
        log.add(f"evicted: {request.cancel_reason}")
        await trio.lowlevel.checkpoint()
        raise AssertionError("it was not cancelled")

    async with serving(handler) as net:
        net.connect().send(b"x")
        await log.wait("evicted: disconnected")
        await wait_all_tasks_blocked()
        assert net.server.statistics().running == 0


async def test_clients_that_have_sent_nothing_are_listed(autojump_clock: MockClock) -> None:
    async with serving(_answer) as net:
        await trio.sleep(5)
        since = trio.current_time()
        net.connect()
        await trio.sleep(5)
        (client,) = net.server.clients()
        assert client.connected_since == since
        assert client.last_heard is None
        assert (client.socket_type, client.user_id, client.in_flight) == ("", "", 0)
        assert await net.server.evict(client.id)
        assert net.server.clients() == ()


async def _answer(request: trioreq.Request) -> bytes:
    return request.body


# Without a server.


async def test_a_made_request_has_a_session(autojump_clock: MockClock) -> None:
    log = Log()

    async def session(name: str) -> None:
        log.add(name)

    async with trio.open_nursery() as nursery:
        request = make_request(b"x", nursery=nursery)
        request.client.state.name = "alice"
        request.client.start_soon(session, request.client.state.name)
        await log.wait("alice")
    assert not hasattr(make_request().client.state, "name")  # each has a client of its own


def test_a_client_without_a_server_starts_nothing() -> None:
    with pytest.raises(RuntimeError, match=r"make_request\(\.\.\., nursery=nursery\)"):
        make_request().client.start_soon(trio.sleep_forever)


def test_a_session_is_not_part_of_the_identity_of_a_client() -> None:
    client = trioreq.Peer(1, "127.0.0.1", "REQ")
    client.state.name = "alice"
    same = trioreq.Peer(1, "127.0.0.1", "REQ")
    assert client == same
    assert hash(client) == hash(same)
    assert repr(client) == repr(same)
    for other in (copy.copy(client), replace(client), pickle.loads(pickle.dumps(client))):
        assert other == client
        assert not hasattr(other.state, "name")


def test_start_soon_says_what_to_pass() -> None:
    async def session() -> None: ...

    client = make_request().client
    coroutine = session()
    with pytest.raises(TypeError, match=r"write start_soon\(f, x\), not start_soon\(f\(x\)\)"):
        client.start_soon(coroutine)  # type: ignore[arg-type]
    coroutine.close()
    with pytest.raises(TypeError, match=r"of its arguments, .*missing a required argument"):
        client.start_soon(trio.sleep)
