"""What a request costs the server, counted and not timed, so that it is the same on any machine.

A server on real sockets, in this process, is asked over one connection, by a peer that speaks ZMTP
by hand: one request at a time, or many in one breath. Counted are, for a request:

- calls: of Python functions, and of functions in C that Python's profiler sees
- lines: of Python that run
- steps: of trio's tasks
- zmq: calls of libzmq that send, receive, or ask for an option or a property

Each is counted in a process of its own, since the counters would count each other. Of several tries
the least counts: what else the machine does can only add to it.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import trio

import trioreq

from ..compiler import NoCompiler, compiled
from ..processes import ROOT, end_with_parent, python_module
from ..zmtp import RawPeer, message

SHIM = Path(__file__).with_name("zmq_calls.c")
BODY = bytes(32)
BURST = 256
REQUESTS = 64  # of a try, where one is asked at a time
TRIES = 8

Count = Callable[[], int]


async def echo(request: trioreq.Request) -> bytes:
    """An async handler."""
    return request.body


def plain_echo(request: trioreq.Request) -> bytes:
    """A plain function."""
    return request.body


def one_at_a_time(peer: RawPeer) -> int:
    """Ask, and wait for the reply, many times; returns how many."""
    request = message(b"", BODY)
    for _ in range(REQUESTS):
        peer.send(request)
        peer.read_frame()
        peer.read_frame()
    return REQUESTS


def in_one_breath(peer: RawPeer) -> int:
    """Ask many times in one segment, and read all replies; returns how many."""
    peer.send(message(b"", BODY) * BURST)
    for _ in range(2 * BURST):
        peer.read_frame()
    return BURST


CASES = {
    "async, one at a time": (echo, one_at_a_time),
    f"async, {BURST} in one breath": (echo, in_one_breath),
    "plain, one at a time": (plain_echo, one_at_a_time),
    f"plain, {BURST} in one breath": (plain_echo, in_one_breath),
}


# Counters: each yields a function that returns the count so far.


@contextmanager
def calls() -> Iterator[Count]:
    """Of functions, in all threads that start from here on."""
    counter = itertools.count()  # counting on is one step, also with threads

    def profile(_frame: FrameType, event: str, _argument: object) -> None:
        if event in ("call", "c_call"):
            next(counter)

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield lambda: next(counter)
    finally:
        sys.setprofile(None)


@contextmanager
def lines() -> Iterator[Count]:
    """Of Python, in all threads that start from here on."""
    counter = itertools.count()

    def trace(_frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line":
            next(counter)
        return trace

    threading.settrace(trace)
    sys.settrace(trace)
    try:
        yield lambda: next(counter)
    finally:
        sys.settrace(None)


class Steps(trio.abc.Instrument):
    """Counts steps of tasks."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """One more."""
        self.count += 1


@contextmanager
def steps() -> Iterator[Count]:
    """Of trio's tasks."""
    instrument = Steps()
    trio.lowlevel.add_instrument(instrument)
    yield lambda: instrument.count


@contextmanager
def zmq_calls() -> Iterator[Count]:
    """Of libzmq, in a process that has `zmq_calls.c` preloaded."""
    count = ctypes.c_long.in_dll(ctypes.CDLL(os.environ["LD_PRELOAD"]), "zmq_calls")
    yield lambda: count.value


COUNTERS = {"calls": calls, "lines": lines, "steps": steps, "zmq": zmq_calls}


def ask(endpoint: str, pattern: Callable[[RawPeer], int], count: Count) -> float:
    """In a thread that is not counted: the least cost of a request in several tries."""
    sys.setprofile(None)
    sys.settrace(None)
    with RawPeer(endpoint) as peer:
        peer.shake_hands()
        pattern(peer)  # threads start, caches fill
        costs = []
        for _ in range(TRIES):
            before = count()
            requests = pattern(peer)
            costs.append((count() - before) / requests)
    return min(costs)


async def count_case(name: str, counter: str) -> float:
    """Serve, ask and count."""
    handler, pattern = CASES[name]
    async with trio.open_nursery() as nursery:
        server = await nursery.start(trioreq.serve, handler, "tcp://127.0.0.1:0")
        with COUNTERS[counter]() as count:
            cost = await trio.to_thread.run_sync(ask, server.endpoints[0], pattern, count)
        nursery.cancel_scope.cancel()
    return cost


def preloaded() -> dict[str, str]:
    """The variables with which a process counts its calls of libzmq.

    Raises:
        NoCompiler: `zmq_calls.c` cannot be compiled, or libzmq is not a library of its own.
    """
    import zmq.backend.cython._zmq  # noqa: F401 - so that libzmq is loaded

    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    libraries = [path for path in loaded if Path(path).name.startswith("libzmq")]
    if len(libraries) != 1:
        raise NoCompiler("libzmq is a part of pyzmq here, and its calls cannot be counted")
    shim = compiled(SHIM, "-shared", "-fPIC", "-ldl")
    return {"LD_PRELOAD": shim, "LIBZMQ": libraries[0]}


def measure() -> dict[str, dict[str, float | None]]:
    """The costs of a request in each case; None is what cannot be counted here.

    Raises:
        subprocess.CalledProcessError: A counting process failed.
    """
    costs: dict[str, dict[str, float | None]] = {name: {} for name in CASES}
    for counter in COUNTERS:
        try:
            variables = preloaded() if counter == "zmq" else {}
        except NoCompiler as error:
            print(f"zmq: not counted: {error}", file=sys.stderr)
            for case in costs.values():
                case[counter] = None
            continue
        done = subprocess.run(
            python_module("harness.measurements.costs", counter),
            cwd=ROOT,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            check=True,
        )
        for name, cost in json.loads(done.stdout).items():
            costs[name][counter] = cost
    return costs


def main() -> None:
    """Be the process that counts one thing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("counter", choices=COUNTERS)
    counter = parser.parse_args().counter
    end_with_parent()
    print(json.dumps({name: trio.run(count_case, name, counter) for name in CASES}))


if __name__ == "__main__":
    main()
