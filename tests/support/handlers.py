"""Handlers that report what they do, so that a test can wait for it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import trio

import trioreq
import trioreq.testing

STUBBORN = 20  # seconds after which what ignores its end does end: a failed test must


class Log:
    """What has happened, and a way to wait until something has: ``await log.wait("started x")``.

    Entries may come from any thread.
    """

    def __init__(self) -> None:
        self.entries: list[str] = []
        self.times: dict[str, float] = {}
        self._changed = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    def add(self, entry: str) -> None:
        self.entries.append(entry)
        self.times[entry] = time.monotonic()
        try:
            trio.lowlevel.current_task()
        except RuntimeError:
            self._token.run_sync_soon(self._wake)
        else:
            self._wake()

    def count(self, entry: str) -> int:
        return Counter(self.entries)[entry]

    async def wait(self, entry: str, times: int = 1) -> None:
        await self.wait_for(lambda: self.count(entry) >= times)

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class Worker:
    """A handler that does what the request's body says.

    ``echo...``: answers at once. ``wait...``: until `release` is set, or cancelled.
    ``shield...``: until `release` is set, whatever happens. ``fail...``: raises.
    """

    def __init__(self, stubborn: float = STUBBORN) -> None:
        self.log = Log()
        self.release = trio.Event()
        self._stubborn = stubborn

    async def __call__(self, request: trioreq.Request) -> bytes:
        name = request.body.decode()
        self.log.add(f"started {name}")
        try:
            if name.startswith("wait"):
                await self.release.wait()
            elif name.startswith("shield"):
                with trio.move_on_after(self._stubborn, shield=True):
                    await self.release.wait()
            elif name.startswith("fail"):
                raise LookupError(name)
        except trio.Cancelled:
            self.log.add(f"cancelled {name}: {request.cancel_reason}")
            raise
        finally:
            self.log.add(f"ended {name}")
        return b"re:" + request.body


class ThreadWorker:
    """The same as a plain function: it runs in a worker thread, or in memory.

    ``wait...``: until `release` is set, or cancelled. ``deaf...``: whatever happens.
    """

    def __init__(self) -> None:
        self.log = Log()
        self.release = threading.Event()

    def __call__(self, request: trioreq.Request) -> bytes:
        name = request.body.decode()
        self.log.add(f"started {name}")
        try:
            if name.startswith("wait"):  # checks whether its client still waits
                while not self.release.is_set():
                    trioreq.check_cancelled()
                    trioreq.testing.sleep(0.001)
            elif name.startswith("deaf"):  # does not
                for _ in range(STUBBORN * 1000):
                    if self.release.is_set():
                        break
                    trioreq.testing.sleep(0.001)
            elif name.startswith("fail"):
                raise LookupError(name)
        except trioreq.RequestCancelled as cancelled:
            self.log.add(f"cancelled {name}: {cancelled.reason}")
            raise
        finally:
            self.log.add(f"ended {name}")
        return b"re:" + request.body
