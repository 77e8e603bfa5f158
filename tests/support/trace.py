"""All that happens on a server in memory when clients contend for it, as lines with their times."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import trio
from trio.testing import MockClock

import trioreq
from trioreq.testing import MemoryNetwork, open_memory_server, sleep

CLIENTS = 4
REQUESTS = 3


class Trace(list[str]):
    """What has happened so far."""

    def note(self, *what: object) -> None:
        self.append(f"{trio.current_time():.6f} " + " ".join(map(str, what)))


def run_traced(kind: str, seed: int) -> list[str]:
    """Run it; `kind` is that of the handler, async or plain."""
    return trio.run(_main, kind, seed, clock=MockClock(autojump_threshold=0))


async def _main(kind: str, seed: int) -> list[str]:
    trace = Trace()

    async def handle(request: trioreq.Request) -> bytes:
        trace.note("started", request.client.id, request.body)
        try:
            await trio.sleep(random.uniform(0, 2))
            if request.body.endswith(b"3"):
                raise trioreq.ReplyError("third")
        finally:
            trace.note("ended", request.client.id, request.body, request.cancel_reason)
        return request.body

    def handle_plain(request: trioreq.Request) -> bytes:
        trace.note("started", request.client.id, request.body)
        try:
            for _ in range(4):
                sleep(random.uniform(0, 0.5))
                trioreq.check_cancelled()
        finally:
            trace.note("ended", request.client.id, request.body, request.cancel_reason)
        return request.body

    handler: Callable[[trioreq.Request], Any] = handle if kind == "async" else handle_plain
    async with open_memory_server(
        handler, seed=seed, max_in_flight=2, max_queued_per_client=1, timeout=5, heartbeat=4
    ) as net:
        _spy(net, trace)
        async with trio.open_nursery() as nursery:
            for number in range(CLIENTS):
                nursery.start_soon(_live, net, number)
            nursery.start_soon(_ask, net)
        for number in range(CLIENTS):  # connected when the server ends
            client = net.connect(socket_type="DEALER")
            client.send(b"last %d" % number)
            client.send(b"last %d" % number)
        await trio.sleep(0.1)
    trace.note(net.server.statistics())
    return list(trace)


async def _live(net: MemoryNetwork, number: int) -> None:
    """A plain client's life, one of several kinds."""
    client = net.connect(
        socket_type="REQ" if number == 0 else "DEALER",
        routing_id=b"id %d" % number if number % 2 else None,
    )
    for request in range(REQUESTS):
        client.send(b"%d.%d" % (number, request))
        await trio.sleep(0.1 * (number % 3))
    match number % 3:
        case 0:
            with suppress(trio.TooSlowError), trio.fail_after(8):
                while True:
                    await client.receive()
        case 1:
            client.crash()
        case _:
            net.cut(client)


async def _ask(net: MemoryNetwork) -> None:
    """Clients of `open_client`, some of which are cancelled."""
    async with trioreq.open_client(net, timeout=3, retries=2) as client:

        async def ask(number: int) -> None:
            with suppress(trioreq.TrioreqError), trio.move_on_after(number):
                await client.request(b"c.%d" % number)

        async with trio.open_nursery() as nursery:
            for number in range(1, REQUESTS):
                nursery.start_soon(ask, number)


def _spy(net: MemoryNetwork, trace: Trace) -> None:
    """Note each message that the server hands over."""
    router: Any = net.server._router._socket
    send_to = router.send_to

    def spy(routing_id: bytes, frames: Sequence[bytes]) -> object:
        trace.note("sent", routing_id, *frames)
        return send_to(routing_id, frames)

    router.send_to = spy
