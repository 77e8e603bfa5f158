"""A client on a line without a kernel, that does what the test says."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import trio

import trioreq
from trioreq._client.multiplexer import Multiplexer
from trioreq._protocol import envelope as wire
from trioreq._protocol.envelope import Frames, Header
from trioreq._transport.line import Accepted, HandshakeSucceeded, Lost


class FakeLine:
    """What the client has sent, and a way to answer.

    The client gets everything at once, without the tasks that wait for it.
    """

    max_pack_size = 0

    def __init__(self) -> None:
        self.sent: list[tuple[Header, Frames]] = []
        self.client: trioreq.Client
        self.multiplexer: Multiplexer

    def connect(self) -> None:
        self.multiplexer.take_event(Accepted())
        self.multiplexer.take_event(HandshakeSucceeded())

    def cut(self, *unread: list[bytes]) -> None:
        self.multiplexer.take_event(Lost(list(unread)))

    async def events(self) -> NoReturn:
        raise AssertionError("not used")

    async def receive(self) -> NoReturn:
        raise AssertionError("not used")

    def send(self, messages: Sequence[Sequence[bytes]]) -> None:
        for frames in messages:
            parts = wire.split_untrusted(frames)
            assert parts is not None
            header = wire.header_untrusted(parts[0])
            assert header is not None
            self.sent.append((header, parts[1]))

    async def aclose(self) -> None:
        raise AssertionError("not used")

    def answer(self, number: int, *body: bytes, status: int = 0, left: int = wire.SPEAKS) -> None:
        """Answer the request that was sent as the number-th."""
        self.multiplexer.take_message(self.reply(number, *body, status=status, left=left))

    def reply(
        self, number: int, *body: bytes, status: int = 0, left: int = wire.SPEAKS
    ) -> list[bytes]:
        """The answer to that request."""
        header = Header(status, self.sent[number][0].correlation, left)
        return [header.pack(), b"", *body]

    def hello(self) -> None:
        self.multiplexer.take_message([Header(0, wire.WANTS_HELLO, wire.SPEAKS).pack(), b"", b""])

    def requests(self) -> list[bytes]:
        return [body[0] for header, body in self.sent if header.kind == wire.REQUEST]

    def cancels(self) -> int:
        return sum(header.kind == wire.CANCEL for header, _ in self.sent)


@asynccontextmanager
async def asking(line: FakeLine, **options: Any) -> AsyncIterator[trio.Nursery]:
    """A client on the line, and a nursery for callers."""
    line.multiplexer = Multiplexer(line, "memory", options.pop("connect_timeout", math.inf))
    defaults: dict[str, Any] = {"timeout": None, "retries": 0}
    line.client = trioreq.Client(line.multiplexer, **defaults | options)
    with trio.fail_after(1e6):
        async with trio.open_nursery() as nursery:
            yield nursery
