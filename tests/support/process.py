"""A server in a process of its own, which hostile bytes may break without breaking the test.

    python -m support.process stock|trioreq [ENDPOINT]

It prints its endpoint and then, for each line that it is sent, what it knows of itself.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import trio
import zmq

import trioreq

ANY_PORT = "tcp://127.0.0.1:0"
TESTS = Path(__file__).parents[1]


class ServerProcess:
    """The process, as the test sees it; everything blocks.

    Attributes:
        endpoint: Where it listens.
        log: A file with all that it has said on standard error.
    """

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self.log = log
        self._stdin, self._stdout = process.stdin, process.stdout
        self.endpoint: str = json.loads(self._stdout.readline())

    def look(self) -> dict[str, Any]:
        """Its statistics, its memory in bytes after a trim, and its open descriptors."""
        self._stdin.write("\n")
        self._stdin.flush()
        seen: dict[str, Any] = json.loads(self._stdout.readline())
        return seen


@contextmanager
def server_process(kind: str, log: Path, endpoint: str = ANY_PORT) -> Iterator[ServerProcess]:
    """A ROUTER of libzmq's (`stock`) or a server that echoes (`trioreq`)."""
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "support.process", kind, endpoint],
            cwd=TESTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            yield ServerProcess(process, log)
        finally:
            process.kill()


def _tell(value: object) -> None:
    print(json.dumps(value), flush=True)


def _run_stock(endpoint: str) -> None:
    """Read a ROUTER, which is what it takes for libzmq to let peers in."""
    router = zmq.Context().socket(zmq.ROUTER)
    router.bind(endpoint)
    _tell(router.getsockopt_string(zmq.LAST_ENDPOINT))
    while True:
        router.send_multipart(router.recv_multipart())


async def _echo(request: trioreq.Request) -> bytes:
    return request.body


async def _run_trioreq(endpoint: str) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(trioreq.serve, _echo, endpoint)
        _tell(server.endpoints[0])
        own = psutil.Process()
        stdin = trio.lowlevel.FdStream(os.dup(0))
        async for lines in stdin:
            for _ in lines:
                ctypes.CDLL(None).malloc_trim(0)
                seen = {"memory": own.memory_info().rss, "descriptors": own.num_fds()}
                _tell(asdict(server.statistics()) | seen)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    kind, endpoint = sys.argv[1:]
    if kind == "stock":
        _run_stock(endpoint)
    else:
        trio.run(_run_trioreq, endpoint)
