"""A server process under hostile peers, with a healthy client beside them.

The peers are made of a seed; `python -m benchmarks.fuzz` runs more of them. Time is real. What is
looked at after the end is waited for by asking the server until it is so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from support.fuzz import hammer
from support.process import ServerProcess, server_process
from support.zmtp import LIMIT

from trioreq._protocol.endings import ENDINGS

SEED = 20
MIB = 2**20


def outcomes(seen: dict[str, Any]) -> int:
    """All requests, by how they ended."""
    return sum(seen[name] for name in {ending.outcome for ending in ENDINGS})


def at_rest(server: ServerProcess, descriptors: int) -> dict[str, Any]:
    """What the server says of itself once nobody is there, and each descriptor is given back.

    libzmq closes a descriptor a little later than it tells of the connection's end.
    """
    end = time.monotonic() + LIMIT
    while True:
        seen = server.look()
        if (seen["connections"], seen["in_flight"], seen["descriptors"]) == (0, 0, descriptors):
            return seen
        assert time.monotonic() < end, seen


@contextmanager
def healthy_client(endpoint: str) -> Iterator[list[int]]:
    """Ask without a pause, and see each answer; the list has how often at its end."""
    done = threading.Event()
    asked = [0]
    failures: list[BaseException] = []

    def ask() -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            client = context.socket(zmq.REQ)
            client.rcvtimeo = round(LIMIT * 1000)
            client.connect(endpoint)
            while not done.is_set() or asked[0] == 0:
                client.send(b"%d" % asked[0])
                assert client.recv() == b"%d" % asked[0]
                asked[0] += 1
        except BaseException as failure:
            failures.append(failure)
            raise
        finally:
            context.destroy(linger=0)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield asked
    finally:
        done.set()
        thread.join()
    assert failures == []


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_hostile_peers_harm_nobody_but_themselves(transport: str, tmp_path: Path) -> None:
    endpoint = "tcp://127.0.0.1:0" if transport == "tcp" else f"ipc://{tmp_path}/socket"
    with server_process("trioreq", tmp_path / "log", endpoint) as server:
        descriptors = server.look()["descriptors"]
        hammer(server.endpoint, SEED, range(500))  # what is made once is made
        before = at_rest(server, descriptors)
        with healthy_client(server.endpoint) as asked:
            hammer(server.endpoint, SEED + 1, range(1500))
        after = at_rest(server, descriptors)
        assert server.process.poll() is None
        assert asked[0] > 0
        assert after["requests"] == outcomes(after)
        assert after["replied"] - before["replied"] >= asked[0]
        assert after["malformed"] > before["malformed"] > 0
        assert after["memory"] - before["memory"] < 4 * MIB
        lines = server.log.read_text().splitlines()
        assert len(lines) == len(set(lines)) < 2000  # nothing twice of one connection
        assert [line for line in lines if len(line) > 300 or "Traceback" in line] == []
