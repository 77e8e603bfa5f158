"""Sessions: tasks and state that live as long as a connection, in memory, over tcp and over ipc.

Everything waits for an event: for what a task or a handler says, or for what the server counts.
"""

from __future__ import annotations

from typing import Any

import pytest
import trio
from support.handlers import Log
from support.nets import Net
from support.serving import until

import trioreq


class Sessions:
    """A handler that starts a task of the session for each request that says so.

    ``start x``: a task that lives until it is cancelled. ``fail x``: one that raises when `go` is
    set. ``wait x``: the request itself waits. Anything else is answered with the number of requests
    of this client so far.
    """

    def __init__(self) -> None:
        self.log = Log()
        self.go = trio.Event()
        self.ids: dict[str, int] = {}

    async def __call__(self, request: trioreq.Request) -> bytes:
        state = request.client.state
        state.requests = getattr(state, "requests", 0) + 1
        what, _, name = request.body.decode().partition(" ")
        self.ids[name] = request.client.id
        if what == "start":
            request.client.start_soon(self.live, name)
        elif what == "fail":
            request.client.start_soon(self.fail, name)
        elif what == "wait":
            self.log.add(f"waiting {name}")
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                self.log.add(f"request cancelled {name}: {request.cancel_reason}")
                raise
        return b"%d" % state.requests

    async def live(self, name: str) -> None:
        self.log.add(f"alive {name}")
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.log.add(f"cancelled {name}")
            raise

    async def fail(self, name: str) -> None:
        self.log.add(f"alive {name}")
        await self.go.wait()
        raise LookupError(name)


async def ask(client: Any, body: bytes) -> bytes:
    await client.send(body)
    (reply,) = await client.receive()
    return bytes(reply)


@pytest.mark.slow
async def test_g4_a_disconnect_cancels_the_tasks_of_its_session_and_of_no_other(net: Net) -> None:
    handler = Sessions()
    server = await net.serve(handler)
    mortal, other = await net.connect_mortal(), await net.connect()
    await ask(mortal, b"start mortal")
    await ask(other, b"start other")
    await handler.log.wait("alive mortal")
    await handler.log.wait("alive other")
    await mortal.crash()
    await handler.log.wait("cancelled mortal")
    assert await ask(other, b"count") == b"2"
    assert handler.log.count("cancelled other") == 0
    assert server.statistics().connections == 1
    await other.close()
    await handler.log.wait("cancelled other")


async def test_g7_a_superseded_request_does_not_cancel_the_session(net: Net) -> None:
    handler = Sessions()
    await net.serve(handler)
    client = await net.connect()
    await ask(client, b"start task")
    await client.send(b"wait first")
    await handler.log.wait("waiting first")
    await client.send(b"wait second")  # in the client's nursery, if there is one
    await handler.log.wait("request cancelled first: superseded")
    await handler.log.wait("waiting second")
    await client.send(b"count")
    await handler.log.wait("request cancelled second: superseded")
    assert await client.receive() == [b"4"]
    assert handler.log.count("cancelled task") == 0
    await client.close()
    await handler.log.wait("cancelled task")


async def test_a_deadline_and_a_cancel_of_one_request_do_not_end_the_session(net: Net) -> None:
    handler = Sessions()
    await net.serve(handler, timeout=net.brief)
    async with net.open_client() as client:
        await client.request(b"start task")
        with pytest.raises(trioreq.RequestTimeout, match="answered"):
            await client.request(b"wait too-long")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.request, b"wait cancelled")
            await handler.log.wait("waiting cancelled")
            nursery.cancel_scope.cancel()
        await handler.log.wait("request cancelled cancelled: cancelled")
        assert await client.request(b"count") == b"4"
        assert handler.log.count("cancelled task") == 0
    await handler.log.wait("cancelled task")


async def test_a_task_that_raises_closes_its_connection_alone(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Sessions()
    server = await net.serve(handler)
    one, other = await net.connect("DEALER"), await net.connect()
    await ask(one, b"start one")
    await ask(one, b"fail one")
    await one.send(b"wait one")
    await ask(other, b"start other")
    await handler.log.wait("waiting one")
    handler.go.set()
    await handler.log.wait("request cancelled one: disconnected")
    await handler.log.wait("cancelled one")
    assert await ask(other, b"count") == b"2"
    assert handler.log.count("cancelled other") == 0
    assert server.statistics().evicted == 1
    failure = f"client {handler.ids['one']}: a task of its session failed"
    (error,) = [r for r in caplog.records if r.getMessage() == failure]
    assert error.levelname == "ERROR"
    assert error.exc_info is not None
    assert error.exc_info[0] is LookupError
    assert "a task of its session has failed" in caplog.text  # why it was evicted


async def test_the_state_of_a_client_is_not_that_of_the_next(net: Net) -> None:
    handler = Sessions()
    server = await net.serve(handler)
    client = await net.connect(routing_id=b"the-same-id")
    assert await ask(client, b"x") == b"1"
    assert await ask(client, b"x") == b"2"
    await client.close()
    await until(lambda: server.statistics().connections == 0)
    heir = await net.connect(routing_id=b"the-same-id")
    assert await ask(heir, b"x") == b"1"


async def test_stopping_the_server_cancels_sessions(net: Net) -> None:
    handler = Sessions()
    await net.serve(handler)
    client = await net.connect()
    await ask(client, b"start task")
    await handler.log.wait("alive task")
    await net.stop()
    assert handler.log.count("cancelled task") == 1


async def test_a_drain_does_not_wait_for_sessions(net: Net) -> None:
    handler = Sessions()
    server = await net.serve(handler)
    client = await net.connect()
    await ask(client, b"start task")
    await handler.log.wait("alive task")
    await server.drain(1e4)
    assert handler.log.count("cancelled task") == 1


async def test_clients_lists_each_connection(net: Net) -> None:
    handler = Sessions()
    server = await net.serve(handler, max_in_flight=1)
    before = trio.current_time()
    one = await net.connect("DEALER")
    await ask(one, b"x one")
    two = await net.connect()
    await ask(two, b"x two")
    await one.send(b"wait one")
    await one.send(b"wait two")  # it has no slot
    await until(lambda: server.statistics().in_flight == 2)
    first, second = server.clients()
    assert (first.id, second.id) == (handler.ids["one"], handler.ids["two"])
    assert (first.socket_type, second.socket_type) == ("DEALER", "REQ")
    assert (first.in_flight, second.in_flight) == (2, 0)
    assert first.replies_waiting == second.replies_waiting == 0
    assert first.user_id == second.user_id == ""
    assert first.address
    now = trio.current_time()
    for client in (first, second):
        assert client.last_heard is not None
        assert before <= client.connected_since <= client.last_heard <= now
    await two.close()
    await until(lambda: len(server.clients()) == 1)


async def test_evict_closes_a_connection_and_cancels_all_of_it(net: Net) -> None:
    handler = Sessions()
    server = await net.serve(handler)
    one, other = await net.connect("DEALER"), await net.connect()
    await ask(one, b"start one")
    await one.send(b"wait one")
    await ask(other, b"start other")
    await handler.log.wait("waiting one")
    assert await server.evict(handler.ids["one"])
    assert not await server.evict(handler.ids["one"])
    await handler.log.wait("request cancelled one: disconnected")
    await handler.log.wait("cancelled one")
    heard = [c.id for c in server.clients() if c.last_heard is not None]  # `one` connects again
    assert heard == [handler.ids["other"]]
    assert await ask(other, b"count") == b"2"
    assert handler.log.count("cancelled other") == 0
    assert server.statistics().evicted == 1


async def test_a_plain_function_starts_a_task_too(net: Net) -> None:
    handler = Sessions()

    def plain(request: trioreq.Request) -> bytes:
        request.client.state.name = "task"
        request.client.start_soon(handler.live, request.client.state.name)
        return b"done"

    await net.serve(plain)
    client = await net.connect()
    assert await ask(client, b"x") == b"done"
    await handler.log.wait("alive task")
    await client.close()
    await handler.log.wait("cancelled task")
