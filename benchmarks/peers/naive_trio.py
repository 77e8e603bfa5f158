"""A ROUTER that trio waits for: a task and a cancel scope for each request.

It does not detect disconnects: no scope is ever cancelled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
import zmq

MOST = 128  # requests to read before what they started runs


async def run(handler: Callable[[bytes], Awaitable[bytes]], router: zmq.Socket[bytes]) -> None:
    """Read requests, and start a task for each."""
    asleep = False
    descriptor = router.fileno()

    def readable() -> bool:
        return bool(int(router.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    async def answer(routing_id: bytes, delimiter: bytes, body: bytes) -> None:
        with trio.CancelScope():
            body = await handler(body)
        router.send(routing_id, zmq.SNDMORE)
        router.send(delimiter, zmq.SNDMORE)
        router.send(body)
        if asleep and readable():  # the send took the event that `wait_readable` waits for
            read()

    def read() -> bool:
        for count in range(MOST):
            try:
                routing_id = router.recv(zmq.NOBLOCK)
            except zmq.Again:
                return count > 0
            nursery.start_soon(answer, routing_id, router.recv(), router.recv())
        return True

    async with trio.open_nursery() as nursery:
        while True:
            if read():
                await trio.lowlevel.checkpoint()
            elif not readable():
                asleep = True
                await trio.lowlevel.wait_readable(descriptor)
                asleep = False


def serve(handler: Callable[[bytes], Awaitable[bytes]], listening: Callable[[int], None]) -> None:
    """Serve until killed."""
    router = zmq.Context().socket(zmq.ROUTER)
    listening(router.bind_to_random_port("tcp://127.0.0.1"))
    trio.run(run, handler, router)
