"""Clients in Python, in a process of their own that loads a server.

    python -m benchmarks.shared.clients KIND --port=N [options of a Shape]

When all clients have asked once, a line is printed, and one awaited on standard input: so several
processes begin at the same time. Then each client keeps its requests in flight. Printed is one line
of JSON: the latencies in microseconds of the requests that were answered in time, the number of
wrong replies, and the seconds of processor time.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

from harness.processes import end_with_parent, pin

CALL = 10_000  # requests of a `request_many`

Request = Callable[[bytes], Awaitable[bytes]]


class Measure:
    """The times of requests, between the warm-up's end and the end."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._begin = self.end = 0.0
        self._filler = bytes(options.bytes - 8)
        self._numbers = itertools.count()
        self._latencies: list[float] = []
        self._errors = 0

    def begin(self) -> None:
        """Wait until the other processes are ready too."""
        print("ready", flush=True)
        sys.stdin.readline()
        self._begin = time.perf_counter() + self._options.warmup
        self.end = self._begin + self._options.seconds

    def body(self) -> bytes:
        """A body that no other request has."""
        return next(self._numbers).to_bytes(8, "big") + self._filler

    def record(self, begun: float, ended: float, *, right: bool) -> None:
        """A request has its reply."""
        self._errors += not right
        if self._begin <= ended < self.end:
            self._latencies.append(round((ended - begun) * 1e6, 1))

    async def ask_once(self, request: Request) -> None:
        """One request before the measurement, so that the client is connected."""
        body = self.body()
        self._errors += await request(body) != body

    async def keep_asking(self, request: Request) -> None:
        """One request after the other, until time is up."""
        ended = 0.0
        while ended < self.end:
            body = self.body()
            begun = time.perf_counter()
            reply = await request(body)
            ended = time.perf_counter()
            self.record(begun, ended, right=reply == body)

    def tell(self) -> None:
        """Print what was measured."""
        cpu = time.process_time()
        told = {"latencies": self._latencies, "errors": self._errors, "cpu": cpu}
        print(json.dumps(told), flush=True)


def ask_zmq(options: argparse.Namespace) -> None:
    """DEALER sockets of pyzmq in one poll loop: for where `load.c` cannot be compiled."""
    import zmq

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    poller = zmq.Poller()
    measure = Measure(options)
    pending: dict[bytes, float] = {}
    clients = []

    def ask(client: zmq.Socket[bytes]) -> None:
        body = measure.body()
        pending[body] = time.perf_counter()
        client.send_multipart([b"", body])

    for _ in range(options.clients):
        client = context.socket(zmq.DEALER)
        client.connect(f"tcp://127.0.0.1:{options.port}")
        client.send_multipart([b"", measure.body()])
        client.recv_multipart()
        poller.register(client, zmq.POLLIN)
        clients.append(client)
    measure.begin()
    for client in clients:
        for _ in range(options.in_flight):
            ask(client)
    while (ended := time.perf_counter()) < measure.end:
        for client, _ in poller.poll(round((measure.end - ended) * 1000)):
            reply = client.recv_multipart()[-1]
            begun = pending.pop(reply, None)
            right = begun is not None
            measure.record(begun or 0.0, time.perf_counter(), right=right)
            ask(client)
    measure.tell()
    context.destroy(linger=0)


def ask_grpc(options: argparse.Namespace) -> None:
    """Channels of grpc.aio, each with a connection of its own."""
    import grpc.aio

    from ..peers.grpc_aio import METHOD

    async def main() -> None:
        measure = Measure(options)
        own = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            grpc.aio.insecure_channel(f"127.0.0.1:{options.port}", options=own)
            for _ in range(options.clients)
        ]
        requests = [channel.unary_unary(METHOD) for channel in channels]
        for request in requests:
            await measure.ask_once(request)
        measure.begin()
        async with asyncio.TaskGroup() as group:
            for request in requests:
                for _ in range(options.in_flight):
                    group.create_task(measure.keep_asking(request))
        measure.tell()
        for channel in channels:
            await channel.close()

    asyncio.run(main())


async def run_clients(
    one_client: Callable[[Measure], Awaitable[None]], options: argparse.Namespace
) -> None:
    """As many clients as are wanted, each a task of trio's."""
    import trio

    measure = Measure(options)
    measure.begin()
    async with trio.open_nursery() as nursery:
        for _ in range(options.clients):
            nursery.start_soon(one_client, measure)
    measure.tell()


def ask_trioreq(options: argparse.Namespace) -> None:
    """`trioreq.open_client`, with all requests of a client over one connection."""
    import trio

    import trioreq

    async def one_client(measure: Measure) -> None:
        address = f"tcp://127.0.0.1:{options.port}"
        async with trioreq.open_client(address) as client, trio.open_nursery() as nursery:
            for _ in range(options.in_flight):
                nursery.start_soon(measure.keep_asking, client.request)

    trio.run(run_clients, one_client, options)


def ask_trioreq_many(options: argparse.Namespace) -> None:
    """`Client.request_many`; a request has the latency of the call that it is one of."""
    import trio

    import trioreq

    async def one_client(measure: Measure) -> None:
        address = f"tcp://127.0.0.1:{options.port}"
        async with trioreq.open_client(address) as client:
            ended = 0.0
            while ended < measure.end:
                bodies = [measure.body() for _ in range(CALL)]
                begun = time.perf_counter()
                replies = await client.request_many(bodies, in_flight=options.in_flight)
                ended = time.perf_counter()
                for body, reply in zip(bodies, replies, strict=True):
                    measure.record(begun, ended, right=reply == body)

    trio.run(run_clients, one_client, options)


def ask_pynng(options: argparse.Namespace) -> None:
    """A Req0 a client, with a context for each request in flight."""
    import pynng
    import trio

    async def keep_asking(measure: Measure, context: Any) -> None:
        async def request(body: bytes) -> bytes:
            await context.asend(body)
            reply: bytes = await context.arecv()
            return reply

        await measure.keep_asking(request)

    async def main() -> None:
        measure = Measure(options)
        measure.begin()
        with ExitStack() as stack:
            async with trio.open_nursery() as nursery:
                for _ in range(options.clients):
                    client = pynng.Req0(dial=f"tcp://127.0.0.1:{options.port}")
                    stack.enter_context(client)
                    for _ in range(options.in_flight):
                        nursery.start_soon(keep_asking, measure, client.new_context())
        measure.tell()

    trio.run(main)


KINDS = {
    "zmtp": ask_zmq,
    "grpc": ask_grpc,
    "trioreq": ask_trioreq,
    "trioreq-many": ask_trioreq_many,
    "sp": ask_pynng,
}


def main() -> None:
    """Be the clients."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    for name in ("port", "clients", "in-flight", "bytes", "cpu"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("warmup", "seconds"):
        parser.add_argument(f"--{name}", type=float)
    options, _ = parser.parse_known_args()
    end_with_parent()
    pin(options.cpu)
    KINDS[options.kind](options)


if __name__ == "__main__":
    main()
