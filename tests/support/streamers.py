"""Handlers that make streams, and tell what they do."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator

import trio

import trioreq
import trioreq.testing

from .handlers import Log


class Streamer:
    """An async generator that does what the request's body says.

    First it yields as many replies as the second word says: ``0``, ``1`` and so on, or replies of
    as many bytes as the third word says. Then it does what the first word says. ``end``: it
    returns. ``wait``: it waits until `release` is set, or it is cancelled. ``fail`` and ``refuse``:
    it raises.

    Attributes:
        log: What it has done: ``started``, ``cancelled: REASON`` and ``ended``.
        sent: How often its `yield` has returned.
    """

    def __init__(self) -> None:
        self.log = Log()
        self.sent = 0
        self.release = trio.Event()

    async def __call__(self, request: trioreq.Request) -> AsyncIterator[bytes]:
        self.log.add("started")
        try:
            for reply in replies_to(request.body):
                yield reply
                self.sent += 1
            if request.body.startswith(b"wait"):
                await self.release.wait()
            raise_for(request.body)
        except trio.Cancelled:
            self.log.add(f"cancelled: {request.cancel_reason}")
            raise
        finally:
            self.log.add("ended")


class ThreadStreamer:
    """The same as a plain generator: it runs in a worker thread, or in memory."""

    def __init__(self) -> None:
        self.log = Log()
        self.sent = 0
        self.release = threading.Event()

    def __call__(self, request: trioreq.Request) -> Iterator[bytes]:
        self.log.add("started")
        try:
            for reply in replies_to(request.body):
                yield reply
                self.sent += 1
            while request.body.startswith(b"wait") and not self.release.is_set():
                trioreq.check_cancelled()
                trioreq.testing.sleep(0.001)
            raise_for(request.body)
        except trioreq.RequestCancelled as cancelled:
            self.log.add(f"cancelled: {cancelled.reason}")
            raise
        finally:
            self.log.add("ended")


def replies_to(body: bytes) -> Iterator[bytes]:
    """What is yielded for a request."""
    _, number, *size = body.split()
    for i in range(int(number)):
        yield bytes(int(size[0])) if size else b"%d" % i


def raise_for(body: bytes) -> None:
    """Fail if the request says so."""
    if body.startswith(b"fail"):
        raise LookupError("secret")
    if body.startswith(b"refuse"):
        raise trioreq.ReplyError("not-found", "no more")
