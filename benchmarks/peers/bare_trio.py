"""The raw loop in one trio task, which sleeps in `wait_readable`: what trio's waiting costs."""

from __future__ import annotations

from collections.abc import Callable

import trio
import zmq


async def echo(router: zmq.Socket[bytes]) -> None:
    """Answer what has come; sleep when there is nothing."""
    recv, send, more = router.recv, router.send, zmq.SNDMORE
    descriptor = router.fileno()
    while True:
        try:
            routing_id = recv(zmq.NOBLOCK)
        except zmq.Again:
            await trio.lowlevel.wait_readable(descriptor)
            continue
        delimiter = recv()
        body = recv()
        send(routing_id, more)
        send(delimiter, more)
        send(body)


def serve(listening: Callable[[int], None]) -> None:
    """Echo, one request after the other."""
    router = zmq.Context().socket(zmq.ROUTER)
    listening(router.bind_to_random_port("tcp://127.0.0.1"))
    trio.run(echo, router)
