"""Servers and proxies that are nothing but libzmq: whatever they do, trioreq has no hand in it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import zmq

from harness.clients import ClientSocket

LOOPBACK = "tcp://127.0.0.1"


@contextmanager
def plain_server(kind: int) -> Iterator[tuple[str, ClientSocket]]:
    """A bound socket, which a test reads and answers by hand; and its endpoint."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        raw = context.socket(kind)
        raw.linger = 0
        port = raw.bind_to_random_port(LOOPBACK)
        yield f"{LOOPBACK}:{port}", ClientSocket(raw)
    finally:
        context.destroy(linger=0)


@contextmanager
def proxied(backend: str) -> Iterator[str]:
    """A ROUTER/DEALER proxy in front of a server, in a thread; yields where clients find it."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    port = front.bind_to_random_port(LOOPBACK)
    back.connect(backend)

    def forward() -> None:
        with suppress(zmq.ContextTerminated):
            zmq.proxy(front, back)
        front.close(linger=0)
        back.close(linger=0)

    thread = threading.Thread(target=forward)
    thread.start()
    try:
        yield f"{LOOPBACK}:{port}"
    finally:
        context.term()
        thread.join()
