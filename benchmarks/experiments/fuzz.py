"""Does anything that a peer can say harm the server, or anybody but that peer?

    python -m benchmarks fuzz connections [--number 50000] [--seed 1] [--transport tcp]
    python -m benchmarks fuzz inputs [--number 1000000] [--seed 1]

`connections`: a server in a process of its own, hostile peers made of the seed, and a healthy
client beside them, which has to get each reply. Printed is what the server says of itself before
and after; it ends with an error if the server has died, or has kept memory or descriptors.

`inputs`: the decoders, and what a connection makes of messages, under atheris (extra `fuzz`), which
looks for inputs that reach new code. What fails is printed, and kept in a file.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from hostile.test_fuzz import MIB, at_rest, healthy_client, outcomes
from support.fuzz import hammer
from support.process import server_process

from trioreq._protocol import envelope as wire
from trioreq._protocol import packs
from trioreq._protocol.fair_queue import Turns
from trioreq._request import Peer
from trioreq._server.connection import Call, Connection, Desk

WARM_UP = 2000  # connections, until what is made once is made
PEER = Peer(id=1, address="127.0.0.1", socket_type="DEALER")


def connections(number: int, seed: int, transport: str) -> None:
    """Hostile peers against a server process."""
    print(f"seed {seed}, {number} connections on {transport}")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        endpoint = "tcp://127.0.0.1:0" if transport == "tcp" else f"ipc://{folder}/socket"
        with server_process("trioreq", log, endpoint) as server:
            descriptors = server.look()["descriptors"]
            hammer(server.endpoint, seed, range(WARM_UP))
            before = at_rest(server, descriptors)
            begun = time.monotonic()
            with healthy_client(server.endpoint) as asked:
                hammer(server.endpoint, seed, range(WARM_UP, WARM_UP + number))
            took = time.monotonic() - begun
            after = at_rest(server, descriptors)
            for name, value in after.items():
                print(f"{name:24} {before[name]!s:>12} {value!s:>12}")
            print(f"log: {log.stat().st_size} bytes, {len(log.read_text().splitlines())} lines")
            print(f"healthy client: {asked[0]} replies; {number / took:.0f} connections a second")
            assert server.process.poll() is None
            assert after["requests"] == outcomes(after)
            assert after["memory"] - before["memory"] < 4 * MIB


class Sent:
    """A connection's other end: it counts what it is sent."""

    client = PEER
    max_pack_size = own_max_pack_size = 1000

    def __init__(self) -> None:
        self.messages = 0

    def send(self, frames: Sequence[bytes]) -> None:
        """Count it, if it is one."""
        assert all(type(frame) is bytes for frame in frames)
        assert b"" in frames[:-1]
        self.messages += 1


class Nothing:
    """What carries nothing: the requests of an input are never started."""

    holding = False

    @property
    def outbox(self) -> Nothing:
        """Itself: it holds nothing."""
        return self

    def gather(self, work: Callable[[], object]) -> None:
        """Do it."""
        work()

    def release(self) -> None:
        """Hold nothing."""

    async def receive(self, first: int = 0, before_wait: object = None) -> bool:
        """Bring nothing."""
        return False


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
    """One input: to the decoders first, then to a connection of its own."""
    link = Sent()
    desk = Desk(Turns[Connection, Call](2, 3), math.inf, Nothing(), trio.Event().set)
    connection = Connection(link, desk)
    messages = messages_of(data)
    requests = 0
    for message in messages:
        envelope, header, body = wire.request_untrusted(message)
        assert not body or [*envelope, *body] == message
        assert header is None or header.pack() == envelope[-2]
        wire.error_untrusted(tuple(message))
        pack = packs.unpack_untrusted(message[0]) if len(message) == 1 else None
        requests += 1 if pack is None else len(pack[1])
        connection.arrived(message)
    ended = sum(desk.tally.ended.values())
    assert desk.tally.requests == ended + desk.in_flight
    assert desk.in_flight <= 5
    connection.left()
    assert (desk.in_flight, desk.turns.waiting) == (0, 0)
    assert desk.turns.free + len(desk.turns.granted) == 2  # no lane is here to take them
    assert connection.named == {}
    assert link.messages <= 2 * requests


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
        Connection.arrived,
        Connection.end,
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
    logging.disable()  # a line for each input that is no request says nothing new
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
