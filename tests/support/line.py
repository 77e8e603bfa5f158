"""A client on a line without a kernel, that does what the test says."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

import trioreq
from trioreq._client.multiplexer import Exchange
from trioreq._protocol import envelope as wire
from trioreq._protocol.envelope import Frames, Header


class FakeLine:
    """What the client has sent, and a way to answer."""

    def __init__(self) -> None:
        self.up = False
        self.max_pack_size = 0
        self.sent: list[tuple[Header, Frames]] = []
        self.client: trioreq.Client
        self.exchange: Exchange

    def connect(self) -> None:
        self.up = True
        self.exchange.connecting()
        self.exchange.connected()

    def cut(self) -> None:
        self.up = False
        self.exchange.lost()

    async def run(self, asker: object) -> None:
        raise AssertionError("not used")

    def send(self, frames: Sequence[bytes]) -> bool:
        if not self.up:
            return False
        parts = wire.split_untrusted(frames)
        assert parts is not None
        header = wire.header_untrusted(parts[0])
        assert header is not None
        self.sent.append((header, parts[1]))
        return True

    async def aclose(self) -> None:
        raise AssertionError("not used")

    def answer(self, number: int, *body: bytes, status: int = 0, left: int = wire.SPEAKS) -> None:
        """Answer the request that was sent as the number-th."""
        header = Header(status, self.sent[number][0].correlation, left)
        self.exchange.arrived([header.pack(), b"", *body])

    def hello(self) -> None:
        self.exchange.arrived([Header(0, wire.WANTS_HELLO, wire.SPEAKS).pack(), b"", b""])

    def requests(self) -> list[bytes]:
        return [body[0] for header, body in self.sent if header.kind == wire.REQUEST]

    def cancels(self) -> int:
        return sum(header.kind == wire.CANCEL for header, _ in self.sent)


@asynccontextmanager
async def asking(line: FakeLine, **options: Any) -> AsyncIterator[trio.Nursery]:
    """A client on the line, and a nursery for callers."""
    line.exchange = Exchange(line, "memory", options.pop("connect_timeout", math.inf))
    defaults: dict[str, Any] = {"timeout": None, "retries": 0}
    line.client = trioreq.Client(line.exchange, **defaults | options)
    with trio.fail_after(1e6):
        async with trio.open_nursery() as nursery:
            yield nursery
