"""libzmq as it is: a ROUTER with a monitor and a gate, and none of trioreq."""

from __future__ import annotations

import select
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import zmq

from harness.zmtp import LIMIT, metadata

ACCEPTED = int(zmq.EVENT_ACCEPTED)
DISCONNECTED = int(zmq.EVENT_DISCONNECTED)
SUCCEEDED = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
NO_DETAIL = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
PROTOCOL = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
AUTH = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
HANDSHAKES = SUCCEEDED | NO_DETAIL | PROTOCOL | AUTH
EVENT = struct.Struct("=Hi")
TESTED = "X-Tested"
"""The property in the gate's answers: how many it had answered before."""


class Stock:
    """Does nothing of itself: a test takes events, answers questions and reads messages.

    Attributes:
        events: The events of the monitor so far: (event, descriptor), or another value.
        messages: What was read so far, without the routing ids.
        routing_ids: The routing ids of those.
    """

    def __init__(self, endpoint: str, monitored: int = 0, **options: int) -> None:
        self.events: list[tuple[int, int]] = []
        self.messages: list[list[zmq.Frame]] = []
        self.routing_ids: list[bytes] = []
        self.answered = 0
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self.context.max_sockets = 8192
        self.router = self.context.socket(zmq.ROUTER)
        self.router.zap_domain = b"tested"
        self.router.router_mandatory = True
        self.router.linger = 0  # before it is bound: else the context may never end
        self.router.backlog = 4096
        for name, value in options.items():
            self.router.setsockopt(getattr(zmq, name), value)
        self.router.monitor("inproc://monitor", ACCEPTED | DISCONNECTED | monitored)
        self.monitor = self.context.socket(zmq.PAIR)
        self.monitor.rcvhwm = 0
        self.monitor.connect("inproc://monitor")
        self.gate = self.context.socket(zmq.ROUTER)
        self.gate.bind("inproc://zeromq.zap.01")
        self.router.bind(endpoint)
        self.endpoint = self.router.getsockopt_string(zmq.LAST_ENDPOINT)

    def close(self) -> None:
        self.router.disable_monitor()
        self.context.destroy(linger=0)

    def read_monitor(self) -> None:
        """Take all events that are there."""
        while readable(self.monitor):
            event, descriptor = EVENT.unpack(self.monitor.recv())
            self.monitor.recv()
            self.events.append((event, descriptor))

    def read_gate(self) -> list[list[bytes]]:
        """Take all questions that are there."""
        questions = []
        while readable(self.gate):
            questions.append(self.gate.recv_multipart())
        return questions

    def answer(self, question: list[bytes], code: bytes = b"200") -> None:
        sender, _, version, request_id, *_ = question
        told = metadata(TESTED.encode(), b"%d" % self.answered) if code == b"200" else b""
        self.answered += 1
        self.gate.send_multipart([sender, b"", version, request_id, code, b"", b"", told])

    def read_router(self) -> None:
        """Take all messages that are there."""
        while readable(self.router):
            routing_id, *frames = self.router.recv_multipart(copy=False)
            self.routing_ids.append(routing_id.bytes)
            self.messages.append(frames)

    def serve_until(
        self, condition: Callable[[], bool], *, gate: bool = True, router: bool = True
    ) -> None:
        """Let peers in and read what they say, until something is so."""
        poller = zmq.Poller()
        poller.register(self.monitor, zmq.POLLIN)
        if gate:
            poller.register(self.gate, zmq.POLLIN)
        if router:
            poller.register(self.router, zmq.POLLIN)
        end = time.monotonic() + LIMIT
        while True:
            if gate:
                for question in self.read_gate():
                    self.answer(question)
            if router:
                self.read_router()
            self.read_monitor()
            if condition():
                return
            assert time.monotonic() < end, f"it never came: {len(self.events)} events"
            poller.poll(50)  # a condition may also depend on other things than these sockets

    def count(self, event: int) -> int:
        return sum(event == told for told, _ in self.events)


def readable(zsocket: zmq.Socket[bytes]) -> bool:
    """What EVENTS says."""
    events: int = zsocket.getsockopt(zmq.EVENTS)  # type: ignore[assignment]
    return bool(events & zmq.POLLIN)


def signalled(zsocket: zmq.Socket[bytes], timeout: float = 0.0) -> bool:
    """Whether the descriptor is readable within `timeout` seconds."""
    descriptor: int = zsocket.getsockopt(zmq.FD)  # type: ignore[assignment]
    return bool(select.select([descriptor], [], [], timeout)[0])


@contextmanager
def open_stock(
    endpoint: str = "tcp://127.0.0.1:0", monitored: int = 0, **options: int
) -> Iterator[Stock]:
    stock = Stock(endpoint, monitored, **options)
    try:
        yield stock
    finally:
        stock.close()
