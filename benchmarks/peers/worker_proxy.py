"""The guide's proxy: a ROUTER, a DEALER behind it, and threads with REP sockets."""

from __future__ import annotations

import threading
from collections.abc import Callable

import zmq

THREADS = 40  # as many as trioreq has by default


def work(function: Callable[[bytes], bytes], context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """Answer one request after the other."""
    worker = context.socket(zmq.REP)
    worker.connect("inproc://workers")
    while True:
        worker.send(function(worker.recv()))


def serve(function: Callable[[bytes], bytes], listening: Callable[[int], None]) -> None:
    """Serve until killed."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    back.bind("inproc://workers")
    for _ in range(THREADS):
        threading.Thread(target=work, args=(function, context), daemon=True).start()
    listening(front.bind_to_random_port("tcp://127.0.0.1"))
    zmq.proxy(front, back)
