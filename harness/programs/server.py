"""A server in a process of its own, whose handlers do what requests say, and which tells of it.

    python server.py ADDRESS OPTIONS [plain]

What it tells are JSON lines on its standard output: ``["serving", endpoint]``, then for each
request that asks for it ``["started", name, time]`` and how that ended, what is logged, and how it
is whenever it is asked on its standard input. Times are those of the system's monotonic clock, the
same for all processes.
"""

from __future__ import annotations

import ctypes
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

PAGE = os.sysconf("SC_PAGE_SIZE")
SHIELD = 0.05  # seconds for which a handler shields itself
SLEEP = 0.02  # seconds for which a plain function does not ask
STUBBORN = 60.0  # seconds after which what nobody ends ends: a test that failed must end too

_telling = threading.Lock()


def tell(*words: object) -> None:
    """Write a line, from any thread."""
    line = json.dumps(words).encode() + b"\n"
    with _telling:
        while line:
            line = line[os.write(1, line) :]


def memory() -> int:
    """Bytes that this process has in memory, without those that malloc only keeps."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:  # noqa: PTH123  # Path is kept out of what is measured
        return int(file.read().split()[1]) * PAGE


class Telling(logging.Handler):
    """Tells what is logged, in the place of a name."""

    def emit(self, record: logging.LogRecord) -> None:
        tell("log", record.getMessage(), time.monotonic())


class Cancelled:
    """How many that hold were cancelled, and when the last was."""

    number = 0
    last = 0.0


async def handler(request: trioreq.Request) -> bytes:
    """Do what the request says: the first word of its body, with the rest as its argument."""
    verb, _, rest = request.body.decode().partition(" ")
    match verb:
        case "wait":
            tell("started", rest, time.monotonic())
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                tell(str(request.cancel_reason), rest, time.monotonic())
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
    """The same as a plain function: ``check`` asks whether anybody waits, ``deaf`` does not."""
    verb, _, rest = request.body.decode().partition(" ")
    match verb:
        case "check":
            end = time.monotonic() + STUBBORN
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


def compute(seconds: float) -> None:
    """Never let go of Python's lock, but when it is taken away."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


async def obey(server: trioreq.Server, threads: trioreq.Server | None) -> None:
    """Answer each byte with how the server is, until the input ends."""
    stdin = trio.lowlevel.FdStream(os.dup(0))
    while await stdin.receive_some(1):
        servers = [server] if threads is None else [server, threads]
        tell(
            "is",
            {
                "memory": memory(),
                "descriptors": len(os.listdir("/proc/self/fd")) - 1,  # noqa: PTH208
                "tasks": trio.lowlevel.current_statistics().tasks_living,
                "threads": threading.active_count(),
                "processor": sum(os.times()[:2]),
                "cancelled": Cancelled.number,
                "last_cancelled": Cancelled.last,
                "statistics": [asdict(one.statistics()) for one in servers],
            },
        )


async def main(addr: str, options: dict[str, Any], kind: str) -> None:
    """Serve until the input ends; `kind` ``both`` has a second server for plain functions."""
    logging.getLogger("trioreq").addHandler(Telling(logging.WARNING))
    async with trio.open_nursery() as nursery:
        first = plain_handler if kind == "plain" else handler
        server = await nursery.start(partial(trioreq.serve, first, addr, **options))
        threads = None
        if kind == "both":
            threads = await nursery.start(partial(trioreq.serve, plain_handler, addr, **options))
        tell("serving", *(one.endpoints[0] for one in (server, threads) if one is not None))
        await obey(server, threads)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])
