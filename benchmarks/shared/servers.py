"""The servers that are compared, by name: each runs in a process of its own.

    python -m benchmarks.shared.servers NAME [--handler NAME] [--cpu N] [--files N] [--trace]

prints the port that it listens on (tcp, on 127.0.0.1), and serves until it is killed. When it is
sent SIGUSR1 it prints one line of JSON about its memory (see `tell_memory`).
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import json
import os
import resource
import signal
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from harness.memory import resident_memory
from harness.processes import end_with_parent, pin, python_module, read_line, running

from .handlers import ASYNCIO, PLAIN, TRIO


def listening(port: int) -> None:
    """Report to the parent where."""
    print(port, flush=True)


Arguments = Mapping[str, tuple[object, ...]]  # of a server's `serve`, by the name of the handler

ECHO: Arguments = {"echo": ()}
ON_TRIO: Arguments = {name: (handler,) for name, handler in TRIO.items()}
WITHOUT_THREADS: Arguments = {name: ON_TRIO[name] for name in ASYNCIO}
ON_ASYNCIO: Arguments = {name: (handler,) for name, handler in ASYNCIO.items()}
IN_THREADS: Arguments = {name: (function,) for name, function in PLAIN.items()}
BY_NAME: Arguments = {name: (name,) for name in TRIO}


@dataclass(frozen=True)
class Contestant:
    """A server that can be started by its name."""

    name: str
    module: str  # of `benchmarks.peers`
    handlers: Arguments
    needs: str = "zmq"  # a module
    protocol: str = "zmtp"  # what its clients speak

    @property
    def installed(self) -> bool:
        """Whether it can be started here."""
        return importlib.util.find_spec(self.needs) is not None

    def serve(self, handler: str) -> None:
        """Serve until killed."""
        peer = importlib.import_module(f"benchmarks.peers.{self.module}")
        peer.serve(*self.handlers[handler], listening)


RAW, BARE_TRIO, NAIVE, PROXY = "raw", "bare trio", "naive trio", "proxy"
ZMQ_ASYNCIO, TRIOREQ, MULTIPART = "zmq.asyncio", "trioreq", "raw-multipart"
PROCESSES = "trioreq, 2 processes"
CONTESTANTS = {
    contestant.name: contestant
    for contestant in [
        Contestant(RAW, "raw_loop", ECHO),
        Contestant(MULTIPART, "multipart_loop", ECHO),
        Contestant(BARE_TRIO, "bare_trio", ECHO),
        Contestant(PROXY, "worker_proxy", IN_THREADS),
        Contestant(NAIVE, "naive_trio", ON_TRIO),
        Contestant(ZMQ_ASYNCIO, "zmq_asyncio", ON_ASYNCIO),
        Contestant("aiozmq", "aiozmq_protocol", ON_ASYNCIO, "aiozmq"),
        Contestant("pynng", "pynng_rep", WITHOUT_THREADS, "pynng", "sp"),
        Contestant("grpc.aio", "grpc_aio", ON_ASYNCIO, "grpc", "grpc"),
        Contestant(TRIOREQ, "trioreq_server", BY_NAME),
        Contestant(PROCESSES, "trioreq_processes", BY_NAME),
    ]
}


def installed(names: Iterable[str]) -> list[Contestant]:
    """Those of the servers that are installed here; the others are named on standard error."""
    found = []
    for name in names:
        contestant = CONTESTANTS[name]
        if contestant.installed:
            found.append(contestant)
        else:
            print(f"left out: {name}, since {contestant.needs} is not installed", file=sys.stderr)
    return found


@dataclass(frozen=True)
class Serving:
    """A server that runs."""

    contestant: Contestant
    pid: int
    port: int
    read_line: Callable[[], str]

    def memory(self) -> dict[str, int]:
        """The report of `tell_memory`."""
        os.kill(self.pid, signal.SIGUSR1)
        told: dict[str, int] = json.loads(self.read_line())
        return told


@contextmanager
def serving(
    name: str,
    handler: str = "echo",
    *,
    cpu: int | None = None,
    files: int = 0,
    trace: bool = False,
) -> Iterator[Serving]:
    """Run a server; see `main` for what the options are."""
    arguments = ["--handler", handler, "--files", str(files)]
    arguments += ["--cpu", str(cpu)] if cpu is not None else []
    arguments += ["--trace"] if trace else []
    with running(python_module("benchmarks.shared.servers", name, *arguments)) as process:
        port = int(read_line(process))
        yield Serving(CONTESTANTS[name], process.pid, port, lambda: read_line(process))


def tell_memory(_signal: int, _frame: FrameType | None) -> None:
    """Print the bytes that Python has in use (if it is traced), and those of the process.

    What is free is given back to the system first, so that a figure says what is held.
    """
    gc.collect()
    told = {"python": tracemalloc.get_traced_memory()[0], "resident": resident_memory()}
    print(json.dumps(told), flush=True)


def allow_files(count: int) -> None:
    """Let this process open so many files.

    Raises:
        SystemExit: The system does not allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(hard, count)))
        except (ValueError, OSError) as error:
            raise SystemExit(
                f"the server needs {count} open files, and the system allows {hard} (ulimit -n)"
            ) from error


def main() -> None:
    """Be one of the servers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("--handler", choices=TRIO, default="echo")
    parser.add_argument("--cpu", type=int, help="the processor to stay on")
    parser.add_argument("--files", type=int, default=0, help="open files to allow")
    parser.add_argument("--trace", action="store_true", help="let tracemalloc count")
    options = parser.parse_args()
    end_with_parent()
    pin(options.cpu)
    allow_files(options.files)
    if options.trace:
        tracemalloc.start()
    signal.signal(signal.SIGUSR1, tell_memory)
    CONTESTANTS[options.name].serve(options.handler)


if __name__ == "__main__":
    main()
