"""A server whose handlers do what requests say, and which reports what happens.

    python -m harness.programs.server ADDRESS OPTIONS async|plain|both|echo

It writes JSON lines to its standard output: ``["serving", endpoint]``, then for each request that
asks for it ``["started", name, time]`` and how that ended, ``["log", text, time]`` for what it logs
as a warning or worse, and ``["is", state]`` for each byte that it reads from its standard input.
Times are those of the system's monotonic clock, which is the same for all processes.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from dataclasses import asdict
from functools import partial
from typing import Any

import trio

import trioreq

from ..memory import resident_memory

SHIELD = 0.05  # seconds for which a handler shields itself
SLEEP = 0.02  # seconds for which a plain function does not look whether it is cancelled
LONGEST = 60.0  # seconds after which a plain function ends in any case, so that the process can

_reporting = threading.Lock()


def report(*words: object) -> None:
    """Write a line, from any thread."""
    line = json.dumps(words).encode() + b"\n"
    with _reporting:
        while line:
            line = line[os.write(1, line) :]


class LogReporter(logging.Handler):
    """Reports what is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        """Report it, with its traceback if it has one."""
        report("log", self.format(record), time.monotonic())


class Cancelled:
    """How many requests to ``hold`` were cancelled, and when the last was."""

    number = 0
    last = 0.0


async def handler(request: trioreq.Request) -> bytes:
    """Do what the request says: the first word of its body, with the rest as its argument."""
    verb, _, rest = request.body.decode().partition(" ")
    match verb:
        case "wait":
            report("started", rest, time.monotonic())
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                report(str(request.cancel_reason), rest, time.monotonic())
                raise
        case "hold":
            try:
                await trio.sleep_forever()
            finally:
                Cancelled.number += 1
                Cancelled.last = time.monotonic()
        case "work":
            await trio.sleep(float(rest))
        case "shield":
            with trio.CancelScope(shield=True):
                await trio.sleep(SHIELD)
        case "reply":
            return bytes(int(rest))
        case "raise":
            raise LookupError(rest)
        case "stubborn":
            with trio.CancelScope(shield=True):
                await trio.sleep(float(rest))
        case "thread":
            threading.Thread(target=compute, args=(float(rest),)).start()
        case "lock":  # in C, and Python's lock is kept
            end = time.monotonic() + float(rest)
            all(map(end.__gt__, iter(time.monotonic, None)))
        case "block":
            time.sleep(float(rest))  # noqa: ASYNC251  # this is the fault
    return request.body


def plain_handler(request: trioreq.Request) -> bytes:
    """The same as a plain function: ``check`` looks whether it is cancelled, ``deaf`` does not."""
    verb, _, rest = request.body.decode().partition(" ")
    match verb:
        case "check":
            end = time.monotonic() + LONGEST
            while time.monotonic() < end:
                trioreq.check_cancelled()
                time.sleep(0.001)
        case "deaf":
            time.sleep(SLEEP)
        case "sleep":
            time.sleep(float(rest))
        case "spin":
            compute(float(rest))
    return request.body


async def echo(request: trioreq.Request) -> bytes:
    """Take any body."""
    return request.body


def compute(seconds: float) -> None:
    """Hold Python's lock, except when the interpreter takes it away."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


async def report_states(server: trioreq.Server, threads: trioreq.Server | None) -> None:
    """Answer each byte with the state, until the input ends."""
    stdin = trio.lowlevel.FdStream(os.dup(0))
    while await stdin.receive_some(1):
        servers = [server] if threads is None else [server, threads]
        report(
            "is",
            {
                "memory": resident_memory(),
                "descriptors": len(os.listdir("/proc/self/fd")) - 1,  # noqa: PTH208
                "tasks": trio.lowlevel.current_statistics().tasks_living,
                "threads": threading.active_count(),
                "processor": sum(os.times()[:2]),
                "cancelled": Cancelled.number,
                "last_cancelled": Cancelled.last,
                "statistics": [asdict(one.statistics()) for one in servers],
            },
        )


HANDLERS: dict[str, Any] = {
    "async": handler,
    "plain": plain_handler,
    "both": handler,
    "echo": echo,
}


async def main(addr: str, options: dict[str, Any], kind: str) -> None:
    """Serve until the input ends; `kind` ``both`` has a second server for plain functions."""
    logging.getLogger("trioreq").addHandler(LogReporter(logging.WARNING))
    async with trio.open_nursery() as nursery:
        first = HANDLERS[kind]
        server = await nursery.start(partial(trioreq.serve, first, addr, **options))
        threads = None
        if kind == "both":
            threads = await nursery.start(partial(trioreq.serve, plain_handler, addr, **options))
        report("serving", *(one.endpoints[0] for one in (server, threads) if one is not None))
        await report_states(server, threads)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])
