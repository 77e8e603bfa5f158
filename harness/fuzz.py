"""Hostile peers by the thousand, each a script that its seed and its number determine.

    for number in range(1000):
        run_script(endpoint, script(seed, number))

Most are what a well-behaved peer would do, with one thing wrong, so that they get far.
"""

from __future__ import annotations

import random
import socket
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from .zmtp import (
    COMMAND,
    GREETING,
    LONG,
    MORE,
    SIGNATURE,
    RawPeer,
    command,
    frame,
    message,
    metadata,
    ready,
)

PATIENCE = 5.0  # seconds that a hostile peer waits for a handshake
KEPT_SILENT = 50  # connections that are left open while others come
MAGIC = b"TRQ\x01"
End = Literal["close", "reset", "silence"]

Frames = list[bytes]


@dataclass(frozen=True, slots=True)
class Script:
    """What a peer does: `opening`, a handshake if `enters`, then `speech`, and an `end`."""

    opening: bytes
    enters: bool
    speech: bytes
    end: End


def script(seed: int, number: int) -> Script:
    """The script of this number."""
    source = random.Random(f"{seed}/{number}")  # not a secret
    end: End = source.choice(("close", "reset", "silence"))
    if source.random() < 0.4:
        return Script(_bad_opening(source), enters=False, speech=b"", end=end)
    properties = [(b"Socket-Type", source.choice((b"DEALER", b"REQ", b"ROUTER")))]
    if source.random() < 0.3:
        properties.append((b"Identity", source.randbytes(source.choice((1, 5, 200, 255)))))
    if source.random() < 0.2:
        properties += [(b"X-Trioreq-Stamp", b"9" * 20), (b"User-Id", b"\xff"), (b"X", b"")]
    speech = b"".join(_speech(source) for _ in range(source.randint(1, 4)))
    if source.random() < 0.3:
        speech = _damaged(source, speech)
    return Script(GREETING + ready(properties), enters=True, speech=speech, end=end)


def frames(source: random.Random) -> Frames:
    """A message, without the routing id: what the decoders and `Connection.arrived` get."""
    header = MAGIC + bytes([source.choice((0, 1, 2, 255))]) + source.randbytes(12)
    parts = (
        lambda: b"",
        lambda: header,
        lambda: MAGIC + bytes([source.randint(0, 1)]) + source.choice((bytes(12), b"\xff" * 12)),
        lambda: MAGIC + bytes([source.randint(0, 1)]) + bytes(7) + b"\x01" + bytes(4),
        lambda: header[: source.randint(0, 17)],
        lambda: header + b"\0",
        lambda: b"trioreq-error",
        lambda: _pack(source),
        lambda: source.randbytes(source.choice((1, 5, 17, 255, 256, 3000))),
    )
    size = source.choice((1, 1, 2, 2, 2, 3, 3, 4, 5, 8, 300))
    return [source.choice(parts)() for _ in range(size)]


def _pack(source: random.Random) -> bytes:
    """A pack, perhaps damaged."""
    number = source.choice((0, 1, 2, 10, 128, 129))
    entries = [
        len(body := source.randbytes(source.choice((0, 1, 5, 70)))).to_bytes(2, "big")
        + (MAGIC + bytes([source.choice((0, 0, 0, 1, 2))]) + source.randbytes(12))
        + body
        for _ in range(number)
    ]
    told = source.choice((number, number, number, 255))
    room = source.choice((bytes(4), b"\0\0\1\0", b"\xff" * 4))
    pack = MAGIC[:3] + b"\2" + room + bytes([told]) + b"".join(entries)
    return source.choice((pack, pack, pack, _damaged(source, pack), pack[:-1]))


def _bad_opening(source: random.Random) -> bytes:
    good = GREETING + ready([(b"Socket-Type", b"DEALER")])
    name = source.choice((b"CURVE", b"PLAIN", b"GSSAPI", b"NULL\0X", b"\xff" * 20))
    return source.choice(
        (
            b"",
            good[: source.randint(1, len(good) - 1)],
            _damaged(source, good),
            source.randbytes(source.randint(1, 200)),
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"\x01\x00" + message(b"", b"ZMTP 1"),
            SIGNATURE + b"\x01\x05\x00\x00" + message(b"", b"ZMTP 2"),
            SIGNATURE + bytes([source.randint(0, 255), source.randint(0, 255)]) + bytes(52),
            SIGNATURE + b"\x03\x00" + name.ljust(20, b"\0") + bytes(32),
            GREETING + message(b"", b"too early"),
            GREETING + command(source.choice((b"PING", b"PONG", b"ERROR", b"HELLO", b"SUBSCRIBE"))),
            GREETING + command(b"READY", metadata(b"Socket-Type", b"NONE")),
            GREETING + command(b"READY", b"\x0bSocket-Type\xff\xff\xff\xff"),
            GREETING + frame(b"", COMMAND),
            GREETING + bytes([COMMAND | LONG]) + source.randbytes(8) + b"\x05READY",
            good * 3,
        )
    )


def _speech(source: random.Random) -> bytes:
    return source.choice(
        (
            lambda: message(*frames(source)),
            lambda: message(*frames(source)),
            lambda: message(b"", source.randbytes(source.randint(0, 300))),
            lambda: message(*[b""] * source.randint(1, 3000)),
            lambda: frame(source.randbytes(20), MORE),  # and what follows is of the same message
            lambda: command(b"PING", source.randbytes(source.choice((0, 1, 2, 18, 300)))),
            lambda: command(b"PING", b"\0\0" + b"x") * source.randint(1, 1000),
            lambda: command(b"PONG", source.randbytes(source.randint(0, 300))),
            lambda: command(source.randbytes(source.randint(0, 20))),
            lambda: frame(b"", COMMAND),
            lambda: frame(source.randbytes(10), COMMAND | MORE),
            lambda: bytes([LONG]) + (2 ** source.randint(25, 63)).to_bytes(8, "big") + bytes(100),
            lambda: bytes([LONG]) + (100_000).to_bytes(8, "big") + bytes(100),  # and no more
            lambda: bytes([source.randint(8, 255)]) + source.randbytes(30),
        )
    )()


def _damaged(source: random.Random, good: bytes) -> bytes:
    """Some bytes cut out, doubled or changed."""
    bad = bytearray(good)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(bad) + 1)
        upto = at + source.choice((1, 2, 8, 50))
        bad[at:upto] = source.choice((b"", bad[at:upto] * 2, source.randbytes(upto - at)))
    return bytes(bad)


def run_script(endpoint: str, todo: Script, source: str = "") -> RawPeer | None:
    """Run a script; returns the peer if its connection stays open.

    The server may end the connection at any time, but must not let the peer wait longer than
    `PATIENCE`.
    """
    peer = RawPeer(endpoint, source)
    peer.socket.settimeout(PATIENCE)
    with suppress(ConnectionError):
        peer.send(todo.opening)
        if todo.enters:
            with suppress(AssertionError):  # an ERROR for a READY
                peer.enter()
            peer.socket.setblocking(False)  # the server may have stopped reading
            with suppress(BlockingIOError):
                peer.socket.send(todo.speech)
    if todo.end == "silence":
        return peer
    if todo.end == "reset":
        peer.reset()
    else:
        with suppress(OSError):
            peer.socket.shutdown(socket.SHUT_WR)
        peer.close()
    return None


def hammer(endpoint: str, seed: int, numbers: range, threads: int = 4) -> None:
    """Run the scripts of these numbers, several at once.

    Raises:
        AssertionError: The server let one wait; the message names its seed and number.
    """
    silent: deque[RawPeer] = deque()

    def run(number: int) -> None:
        todo = script(seed, number)
        # One address has too few ports for thousands of closed connections.
        address = f"127.1.{number % 200}.{number % 250 + 1}"
        try:
            peer = run_script(endpoint, todo, address)
        except OSError as error:
            raise AssertionError(f"seed {seed}, number {number}: {error!r} in {todo}") from error
        if peer is not None:
            silent.append(peer)
            if len(silent) > KEPT_SILENT:
                silent.popleft().close()

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(run, numbers):
            pass
    for peer in silent:
        peer.close()
