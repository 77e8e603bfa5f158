"""Detects that the event loop is blocked or delayed, and logs by which handlers.

A handler that runs without a checkpoint, because of a blocking call or a long computation, blocks
the event loop: no client is accepted, and no disconnect is detected. trio cannot report it, since
it does not run. So a thread checks at intervals whether the event loop responds, while requests are
processed. When none are, the thread sleeps until the next batch is read, and wakes neither itself
nor the event loop.

Plain functions that compute do not block the event loop, but they delay it: all of them wait for
the GIL as it does. The same thread counts them.

The cost is one flag that the event loop checks for each batch.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import FrameType

import trio

from .._log import log
from .._request import Request
from .observer import Observer
from .pending_request import PendingRequest

MANY = (os.cpu_count() or 1) + 4  # functions that may compute at once without a warning
RARELY = 60.0  # seconds between two warnings that many functions compute
GRACE = 0.1  # seconds in which an event loop that is not blocked responds
OWN = __name__.rpartition(".")[0]  # modules of the server
Times = tuple[float, float]
"""The system's clock, and the processor time of this process, in seconds."""
Look = tuple[float, dict[PendingRequest, float]]
"""The system's clock, and the processor times of functions, in seconds."""


class Watchdog(Observer):
    """Watches the event loop of one server.

    Args:
        patience: Seconds that the event loop may be blocked. That is detected after one and a half
            times as long, at the latest.
        busy: Returns whether any request is processed. Called in the thread.
        processor_times: As `Pool.processor_times`. Called in the thread.

    Attributes:
        asleep: Whether its thread must be woken when there is work.
    """

    def __init__(
        self,
        patience: float,
        busy: Callable[[], bool],
        processor_times: Callable[[], dict[PendingRequest, float]],
    ) -> None:
        self._patience = patience
        self._busy = busy
        self._processor_times = processor_times
        self._last_look: Look = (time.monotonic(), {})
        self._last_warning = -math.inf
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
                # A pause first: otherwise each single request would wake this thread twice.
                with suppress(Empty):
                    if get(timeout=self._patience / 2) is None:
                        return
                self._warn_of_computing()
                sleeps = self._may_sleep()
                if sleeps or not self._is_blocked():
                    self._report_blocked_threads(start)
                if sleeps:
                    break
                start = _now()

    def _warn_of_computing(self) -> None:
        computing, now = self._count_computing(), time.monotonic()
        if computing > MANY and now > self._last_warning + RARELY:
            self._last_warning = now
            log.warning(
                "%d plain functions compute at once: all of them share the GIL with the event "
                "loop, which is delayed; set workers to about %d, or use ProcessWorkers",
                computing,
                MANY,
            )

    def _count_computing(self) -> int:
        """How many plain functions have run since the last look, and used the processor.

        Functions that compute have equal shares of the time, because they share the GIL. Functions
        that wait use less than half a share.
        """
        (then, before), now = self._last_look, time.monotonic()
        times = self._processor_times()
        self._last_look = now, times
        least = (now - then) / max(2 * len(times), 1)
        return sum(times[one] - before[one] >= least for one in times.keys() & before.keys())

    def _may_sleep(self) -> bool:
        self.asleep = True
        if self._busy():  # checked last: requests that start from now on wake this thread
            self.asleep = False
        return self.asleep

    def _is_blocked(self) -> bool:
        """Check that the event loop responds. If not, log that, and log when it does."""
        start = time.monotonic()
        responded = threading.Event()
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(responded.set)
            # If the whole process was stopped, the second wait finds the event loop responsive.
            if responded.wait(self._patience) or responded.wait(GRACE):
                return False
            log.warning("%s", self._finding(time.monotonic() - start))
            while not self._ended:
                if responded.wait(self._patience):
                    log.warning(
                        "event loop responsive again after %.1f s", time.monotonic() - start
                    )
                    break
        return True

    def _report_blocked_threads(self, start: Times) -> None:
        """Report a call that kept the GIL and blocked this thread too, after the fact.

        If the process used hardly any processor time meanwhile, it was stopped itself.
        """
        took, used = (now - then for now, then in zip(_now(), start, strict=True))
        if took > 2 * self._patience and used > took / 10:
            log.warning(
                "event loop and all threads blocked for %.1f s: a call in a handler, or a large "
                "reply, kept the GIL",
                took,
            )

    def _finding(self, seconds: float) -> str:
        """Which handler blocks the event loop, and its stack: innermost last, as in a traceback."""
        frames: list[FrameType] = []  # innermost first
        computing = self._count_computing()
        if computing > MANY:
            by = f"{computing} plain functions that compute at once, or by code outside any handler"
        else:
            by = "code outside any handler"
        frame = sys._current_frames().get(self._loop)  # noqa: SLF001  # there is no other way
        while frame is not None:
            if str(frame.f_globals.get("__name__")).startswith(OWN):
                found = (v for v in tuple(frame.f_locals.values()) if issubclass(type(v), Request))
                request = next(found, None)
                if request is not None:  # what it has called is the handler
                    by = f"the handler of {request.client}"
                    break
            else:
                frames.append(frame)
            frame = frame.f_back
        stack = traceback.StackSummary.extract((one, one.f_lineno) for one in reversed(frames))
        return (
            f"event loop blocked for {seconds:.1f} s by {by}; current stack:\n"
            f"{''.join(stack.format())}"
        )


def _now() -> Times:
    return time.monotonic(), time.process_time()
