"""`open_server`: a server for as long as a block."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import trio
from support.handlers import Worker
from support.nets import Net
from support.outcomes import outcomes

import trioreq

SHUTTING_DOWN = [b"trioreq-error", b"shutting-down", b"the server is shutting down"]


async def test_leaving_the_block_stops_the_server_and_answers_clients(net: Net) -> None:
    worker = Worker()
    async with trioreq.open_server(worker, net._address()) as net.server:
        client = await net.connect()
        await client.send(b"wait")
        await worker.log.wait("started wait")
    assert await client.receive() == SHUTTING_DOWN
    assert worker.log.entries == ["started wait", "cancelled wait: shutdown", "ended wait"]
    assert outcomes(net.server) == {"shut_down": 1}


async def test_options_are_those_of_serve(net: Net) -> None:
    worker = Worker()
    async with trioreq.open_server(
        worker, net._address(), max_in_flight=1, max_queued_per_client=0
    ) as net.server:
        client = await net.connect("DEALER")
        await client.send(b"wait")
        await worker.log.wait("started wait")
        await client.send(b"echo")
        assert (await client.receive())[1] == b"overloaded"


async def test_an_exception_of_the_block_is_raised_without_a_group(net: Net) -> None:
    worker = Worker()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with trioreq.open_server(worker, net._address()) as net.server:
            client = await net.connect()
            await client.send(b"wait")
            await worker.log.wait("started wait")
            raise ZeroDivisionError
    assert await client.receive() == SHUTTING_DOWN


async def test_a_cancel_from_outside_stops_the_server(net: Net) -> None:
    worker = Worker()
    with trio.CancelScope() as scope:
        async with trioreq.open_server(worker, net._address()) as net.server:
            client = await net.connect()
            await client.send(b"wait")
            await worker.log.wait("started wait")
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert await client.receive() == SHUTTING_DOWN


async def test_a_server_that_crashes_ends_the_block_with_its_exception(net: Net) -> None:
    async def handler(request: trioreq.Request) -> bytes:
        raise SystemExit(3)

    cancelled = False
    with pytest.raises(SystemExit) as caught:  # noqa: PT012
        async with trioreq.open_server(handler, net._address()) as net.server:
            client = await net.connect()
            await client.send(b"x")
            try:
                await trio.sleep_forever()
            finally:
                cancelled = True
    assert caught.value.code == 3
    assert cancelled


async def test_a_server_that_was_drained_does_not_end_the_block(net: Net) -> None:
    worker = Worker()
    went_on = False
    async with trioreq.open_server(worker, net._address()) as net.server:
        client = await net.connect()
        await client.send(b"wait")
        await worker.log.wait("started wait")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(net.server.drain, net.brief + net.tolerance)
            worker.release.set()
            assert await client.receive() == [b"re:wait"]
        await trio.lowlevel.checkpoint()
        went_on = True
    assert went_on
    assert outcomes(net.server) == {"replied": 1}


async def test_an_address_that_cannot_be_served_is_a_bare_error(net: Net) -> None:
    async with trioreq.open_server(Worker(), net._address()) as net.server:
        with pytest.raises(trioreq.EndpointError):
            async with trioreq.open_server(Worker(), net._address()):
                pytest.fail("the address is taken")


def test_the_options_are_those_of_serve_and_have_the_same_defaults() -> None:
    of_serve = inspect.signature(trioreq.serve, eval_str=True).parameters
    of_block = inspect.signature(trioreq.open_server).parameters
    wanted = [one for name, one in of_serve.items() if name != "task_status"]
    assert list(of_block.values()) == wanted


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task_status": trio.TASK_STATUS_IGNORED}, "keyword argument 'task_status'"),
        ({"time_out": 3}, "keyword argument 'time_out'"),
    ],
)
def test_a_call_that_does_not_fit_is_refused_at_once(options: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=rf"^open_server\(\) .*{said}"):
        trioreq.open_server(lambda _: b"", "tcp://127.0.0.1:0", **options)
