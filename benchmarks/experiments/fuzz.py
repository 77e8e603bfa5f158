"""Does anything that a peer can say harm the server, or any other peer?

    python -m benchmarks fuzz connections [--number 50000] [--seed 1] [--transport tcp]
    python -m benchmarks fuzz inputs [--number 1000000] [--seed 1]

`connections`: a server in a process of its own, hostile peers made of the seed, and a healthy
client beside them, which has to get each reply. Printed is what the server says of itself before
and after; it ends with an error if the server has died, or has kept memory or descriptors.

`inputs`: the decoders, and what the server makes of a client's messages, under atheris (extra
`fuzz`), which looks for inputs that reach new code. What fails is printed, and kept in a file.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio

from harness.measurements import fuzz
from harness.outcomes import ended
from trioreq._options import Options
from trioreq._protocol import envelope as wire
from trioreq._protocol import packs
from trioreq._protocol.connection_table import Connection
from trioreq._protocol.endings import DISCONNECTED
from trioreq._protocol.fair_queue import FairQueue
from trioreq._request import Peer
from trioreq._server.client import Client
from trioreq._server.observer import Counters
from trioreq._server.pending_request import PendingRequest
from trioreq._server.requests import Requests

MIB = 2**20
WARM_UP = 2000  # connections, until what is made once is made
PEER = Peer(id=1, address="127.0.0.1", socket_type="DEALER")


def connections(number: int, seed: int, transport: str) -> None:
    """Hostile peers against a server process."""
    print(f"seed {seed}, {number} connections on {transport}")
    with tempfile.TemporaryDirectory() as folder:
        endpoint = "tcp://127.0.0.1:0" if transport == "tcp" else f"ipc://{folder}/socket"
        report = trio.run(fuzz.measure, endpoint, seed, WARM_UP, number)
    for name, value in report.after.items():
        print(f"{name:24} {report.before[name]!s:>12} {value!s:>12}")
    print(f"log: {sum(map(len, report.log))} characters, {len(report.log)} lines")
    rate = number / report.seconds
    print(f"healthy client: {report.replies} replies; {rate:.0f} connections a second")
    assert report.after["requests"] == ended(report.after)
    assert report.after["memory"] - report.before["memory"] < 4 * MIB


class Outbox:
    """Counts the messages that it is given."""

    def __init__(self) -> None:
        self.messages = 0

    def send(self, connection: Connection, frames: Sequence[bytes]) -> None:
        """Count a message, if it is one."""
        assert all(type(frame) is bytes for frame in frames)
        assert b"" in frames[:-1]
        self.messages += 1


class Counts(Counters):
    """Counts also how many requests have begun."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = 0

    def arrived(self, request: PendingRequest) -> None:
        """As in `Observer`."""
        self.requests += 1


def messages_of(data: bytes) -> list[list[bytes]]:
    """An input as messages: a byte for the size of each frame, whose top bit ends the message."""
    found: list[list[bytes]] = [[]]
    at = 0
    while at < len(data):
        size = data[at] & 127
        found[-1].append(data[at + 1 : at + 1 + size])
        if data[at] & 128:
            found.append([])
        at += 1 + size
    return [message for message in found if message]


def try_input(data: bytes) -> None:
    """One input: to the decoders first, then to a client of its own, whose requests never start."""
    outbox: Any = Outbox()
    counts = Counts()
    queue: FairQueue[Client, PendingRequest] = FairQueue(2, 3)
    requests = Requests(Options(), queue, outbox, 1000, (counts,), streams=False)
    client = Client(Connection(1, 10), PEER, "handler")
    read = runnable = 0
    for message in messages_of(data):
        envelope, header, body = wire.request_untrusted(message)
        assert not body or [*envelope, *body] == message
        assert header is None or header.pack() == envelope[-2]
        wire.error_untrusted(tuple(message))
        pack = packs.unpack_untrusted(message[0]) if len(message) == 1 else None
        for frames in [message] if pack is None else pack[1]:
            read += 1
            runnable += requests.accept(client, frames, trio.current_time()) is not None
    assert counts.requests == sum(counts.endings.values()) + requests.in_flight
    assert requests.in_flight <= 5
    client.connection.disconnected = True
    requests.cancel_all(client, DISCONNECTED)
    assert (requests.in_flight, queue.waiting) == (0, 0)
    assert queue.free + runnable == 2  # nothing is here that would release them
    assert not client.requests
    assert not client.named
    assert outbox.messages <= 2 * read


async def inputs(number: int, seed: int) -> None:
    """Inputs that atheris makes; it ends the process."""
    try:
        import atheris
    except ImportError as error:
        raise SystemExit(
            "inputs are made by atheris, which is not installed: pip install -e '.[fuzz]' "
            "(there are wheels for CPython up to 3.13 on Linux)"
        ) from error
    for function in (
        wire.request_untrusted,
        wire.header_untrusted,
        wire.split_untrusted,
        wire.error_untrusted,
        wire.answer,
        packs.unpack_untrusted,
        Requests.accept,
        Requests.cancel,
    ):
        atheris.instrument_func(function)
    seeds = Path(tempfile.mkdtemp())
    for kind in (wire.REQUEST, wire.CANCEL):  # it would take long to guess the magic
        header = wire.Header(kind, 1, 1000).pack()
        (seeds / str(kind)).write_bytes(b"\x11" + header + b"\x00\x81x")
        message = (header, b"", b"x")
        (packed,) = packs.pack([message, message], 1000, 1000)[0]
        (seeds / f"pack {kind}").write_bytes(bytes([128 + len(packed)]) + packed)
    print(f"seed {seed}, {number} inputs", flush=True)
    logging.disable()  # a line for each malformed request says nothing new
    options = [f"-seed={seed}", f"-atheris_runs={number}", "-max_len=512", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(seeds)], try_input)
    atheris.Fuzz()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("what", choices=("connections", "inputs"))
    parser.add_argument("--number", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--transport", choices=("tcp", "ipc"), default="tcp")


def run(options: argparse.Namespace) -> int:
    """Measure and show."""
    if options.what == "connections":
        connections(options.number or 50_000, options.seed, options.transport)
    else:
        trio.run(inputs, options.number or 1_000_000, options.seed)
    return 0
