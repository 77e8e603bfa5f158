"""A loop of pyzmq calls in one thread, as one writes it for speed: three receives, three sends."""

from __future__ import annotations

from collections.abc import Callable

import zmq


def serve(listening: Callable[[int], None]) -> None:
    """Echo, one request after the other."""
    router = zmq.Context().socket(zmq.ROUTER)
    listening(router.bind_to_random_port("tcp://127.0.0.1"))
    recv, send, more = router.recv, router.send, zmq.SNDMORE
    while True:
        routing_id = recv()
        delimiter = recv()
        body = recv()
        send(routing_id, more)
        send(delimiter, more)
        send(body)
