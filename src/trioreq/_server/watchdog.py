"""Notices that trio's loop stands still, and names who holds it up.

A handler that does not let go of the loop, by a blocking call or a long computation, holds up
everybody: nobody is let in, and nobody's end is seen. trio cannot tell, since it has no turn. So a
thread asks the loop for a sign of life, now and then, while requests are being worked on. When
nothing is, the thread sleeps until the next request comes, and neither it nor the loop is woken.

It costs a request nothing: the loop looks at one flag for each batch that it has read.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import FrameType

import trio

from .._request import Request
from .observer import Observer

log = logging.getLogger("trioreq")

GRACE = 0.1  # seconds for a loop that is well to get going again
Times = tuple[float, float]
"""The system's time, and what of it this process has computed, in seconds."""


class Watchdog(Observer):
    """Watches the loop of one server.

    Args:
        patience: Seconds that the loop may stand. It is noticed after one and a half times as
            long, at the latest.
        busy: Says whether anything is worked on. Called in the thread.

    Attributes:
        asleep: Whether it has to be woken when there is work.
    """

    def __init__(self, patience: float, busy: Callable[[], bool]) -> None:
        self._patience = patience
        self._busy = busy
        self.asleep: bool = True
        self._orders: SimpleQueue[Times | None] = SimpleQueue()  # when to watch from; None: to end
        self._ended = False

    def batch_read(self) -> None:
        """As in `Observer`: watch while requests are processed."""
        if self.asleep:
            self.asleep = False
            self._orders.put(_now())

    async def run(self) -> None:
        """Watch, until cancelled."""
        self._token = trio.lowlevel.current_trio_token()
        self._loop = threading.get_ident()
        threading.Thread(target=self._watch, name="trioreq-watchdog", daemon=True).start()
        try:
            await trio.sleep_forever()
        finally:
            self._ended = True
            self._orders.put(None)

    def _watch(self) -> None:
        get = self._orders.get
        while start := get():
            while True:
                # First of all, a pause: else each single request would wake this thread.
                with suppress(Empty):
                    if get(timeout=self._patience / 2) is None:
                        return
                sleeps = self._falls_asleep()
                if sleeps or not self._finds_it_standing():
                    self._look_back(start)
                if sleeps:
                    break
                start = _now()

    def _falls_asleep(self) -> bool:
        self.asleep = True
        if self._busy():  # asked last: who starts something from now on wakes us
            self.asleep = False
        return self.asleep

    def _finds_it_standing(self) -> bool:
        """Ask for a sign of life. If none comes, say so, and say when it does."""
        start = time.monotonic()
        turned = threading.Event()
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(turned.set)
            # If the whole process was stopped, the second wait finds the loop well again.
            if turned.wait(self._patience) or turned.wait(GRACE):
                return False
            log.warning("%s", self._finding(time.monotonic() - start))
            while not self._ended:
                if turned.wait(self._patience):
                    log.warning("trio's loop turns again, after %.1f s", time.monotonic() - start)
                    break
        return True

    def _look_back(self, start: Times) -> None:
        """A call that keeps Python's lock holds this thread up too, which then can only say so.

        If the process has used hardly any of the time, it was itself stopped.
        """
        took, used = (now - then for now, then in zip(_now(), start, strict=True))
        if took > 2 * self._patience and used > took / 10:
            log.warning(
                "trio's loop has stood for %.1f s, and all threads with it: something that a "
                "handler called, or a large reply, kept Python's lock",
                took,
            )

    def _finding(self, seconds: float) -> str:
        """Who holds the loop up, and where in the program: innermost last, as Python has it."""
        frames: list[FrameType] = []
        found, request = 0, None
        frame = sys._current_frames().get(self._loop)  # noqa: SLF001  # there is no other way
        while frame is not None:
            frames.append(frame)
            for value in tuple(frame.f_locals.values()):
                if issubclass(type(value), Request):
                    found, request = len(frames), value
            frame = frame.f_back
        who = "what is no handler, nor called by one,"
        if request is not None:
            client = request.client
            who = f"client {client.id} ({client.socket_type} at {client.address}): its handler"
            frames = frames[:found]
        stack = traceback.StackSummary.extract((one, one.f_lineno) for one in reversed(frames))
        return (
            f"{who} has held trio's loop up for {seconds:.1f} s, and with it all clients; "
            f"it is here:\n{''.join(stack.format())}"
        )


def _now() -> Times:
    return time.monotonic(), time.process_time()
