"""Servers that do the same work: the classic pump of ZeroMQ's guide, trioreq, and its gateway.

    python -m harness.programs.pump classic|gateway|trioreq STEPS

A request whose body is ``work`` takes so many steps; any other is echoed. The endpoint is written
as a line of JSON, and then a line about the work for each line that is read.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import trio
import zmq

import trioreq

from ..memory import resident_memory

THREADS = 40
STEP = 0.01  # seconds


class Work:
    """What the handlers of a server have done for requests whose body is ``work``."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._lock = threading.Lock()
        self.done = 0
        self.seconds = 0.0
        self.begun = 0
        self.ended = 0

    def do(self, check: Callable[[], None]) -> None:
        """Work, and call `check` before each step."""
        with self._lock:
            self.begun += 1
        start = time.monotonic()
        try:
            for _ in range(self._steps):
                check()
                time.sleep(STEP)
            with self._lock:
                self.done += 1
        finally:
            with self._lock:
                self.ended += 1
                self.seconds += time.monotonic() - start

    def report(self, **more: object) -> None:
        """Write it as a line."""
        state = {"done": self.done, "seconds": self.seconds, "busy": self.begun - self.ended}
        state |= {"begun": self.begun, "memory": resident_memory()}
        print(json.dumps({**state, **more}), flush=True)


def rep_worker(socket: zmq.Socket[bytes], work: Work) -> None:
    """A REP worker, which knows nothing of its clients; in a thread."""
    while True:
        body = socket.recv()
        if body == b"work":
            work.do(lambda: None)
        socket.send(body)


def serve_classic(steps: int) -> None:
    """A ROUTER, a DEALER, a proxy between them, and REP workers in threads."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    port = front.bind_to_random_port("tcp://127.0.0.1")
    back.bind("inproc://workers")
    work = Work(steps)

    for _ in range(THREADS):
        socket = context.socket(zmq.REP)
        socket.connect("inproc://workers")
        threading.Thread(target=rep_worker, args=(socket, work), daemon=True).start()
    threading.Thread(target=zmq.proxy, args=(front, back), daemon=True).start()
    print(json.dumps(f"tcp://127.0.0.1:{port}"), flush=True)
    for _ in sys.stdin:
        work.report(handed_over=work.done)  # a REP worker answers each request


async def serve_gateway(steps: int) -> None:
    """The gateway, and the same REP workers, which bind."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    work = Work(steps)
    endpoints = []
    for _ in range(THREADS):
        socket = context.socket(zmq.REP)
        endpoints.append(f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}")
        threading.Thread(target=rep_worker, args=(socket, work), daemon=True).start()
    async with (
        trioreq.open_gateway(endpoints) as gateway,
        trioreq.open_server(gateway, "tcp://127.0.0.1:0") as server,
    ):
        print(json.dumps(server.endpoints[0]), flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline):
            statistics = server.statistics()
            work.report(handed_over=0, never_started=statistics.never_started)


async def serve_trioreq(steps: int) -> None:
    """trioreq, as its users run it."""
    work = Work(steps)
    echoes = 0

    def handler(request: trioreq.Request) -> bytes:
        nonlocal echoes
        if request.body == b"work":
            work.do(trioreq.check_cancelled)
        else:
            echoes += 1
        return request.body

    async with trio.open_nursery() as nursery:
        server: trioreq.Server = await nursery.start(
            partial(trioreq.serve, handler, "tcp://127.0.0.1:0", workers=THREADS)
        )
        print(json.dumps(server.endpoints[0]), flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline):
            statistics = server.statistics()
            work.report(
                handed_over=statistics.replies_sent - echoes,
                waiting=statistics.waiting,
                never_started=statistics.never_started,
            )


def main() -> None:
    """Be one of the servers."""
    kind, steps = sys.argv[1], int(sys.argv[2])
    if kind == "classic":
        serve_classic(steps)
    elif kind == "gateway":
        trio.run(serve_gateway, steps)
    else:
        trio.run(serve_trioreq, steps)


if __name__ == "__main__":
    main()
