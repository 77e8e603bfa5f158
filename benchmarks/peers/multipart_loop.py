"""A loop of pyzmq's multipart calls in one thread: messages of any number of frames."""

from __future__ import annotations

from collections.abc import Callable

import zmq


def serve(listening: Callable[[int], None]) -> None:
    """Echo, one message after the other."""
    router = zmq.Context().socket(zmq.ROUTER)
    listening(router.bind_to_random_port("tcp://127.0.0.1"))
    while True:
        router.send_multipart(router.recv_multipart())
