"""`trioreq-client request`: sends a request once or many times, and prints the replies."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import trio

import trioreq

from . import _output, _program
from ._program import describe
from ._streams import INPUT, OUTPUT, CannotRead, has_room, in_thread, read_all, run_while_read


@dataclass
class Ask:
    """The options of `request`, and its results."""

    endpoint: str
    body: tuple[str, ...]
    file: Path | None
    multipart: bool
    as_hex: bool
    as_json: bool
    timeout: float
    connect_timeout: float
    retries: int
    repeat: int | None
    interval: float
    verbose: bool
    curve: trioreq.CurveClient | None
    sent: int = 0
    took: list[float] = field(default_factory=list)  # seconds
    reply: list[bytes] = field(default_factory=list)

    def check(self) -> None:
        """Refuse options that cannot be combined."""
        if self.file and self.body:
            raise click.UsageError("--file and BODY cannot be combined: choose one")
        if self.as_hex and self.as_json:
            raise click.UsageError("--hex and --json: choose one")

    def run(self) -> int:
        """Send the request, print the reply, and return the exit code."""
        try:
            run_while_read(self.main)
        except BaseException:
            if has_room(OUTPUT):  # a slow reader must not delay Ctrl-C
                self.summarize()
            raise
        self.summarize()
        if self.repeat is None:
            show(self.reply, self)
        return 0 if self.took else 1

    async def main(self) -> None:
        """Send the request, once or many times."""
        async with trioreq.open_client(  # refuses a wrong endpoint before the request is read
            self.endpoint,
            timeout=self.timeout,
            retries=self.retries,
            connect_timeout=self.connect_timeout,
            curve=self.curve,
        ) as client:
            frames = await in_thread(self.frames)
            if self.repeat is None:
                self.reply = await self.ask(client, frames)
                return
            while not self.repeat or self.sent < self.repeat:
                if self.sent:
                    await trio.sleep(self.interval)
                await self.ping(client, frames)

    def frames(self) -> list[bytes]:
        """Read the request."""
        if self.file:
            return [read_file(self.file)]
        if not self.body or self.body == ("-",):
            return [read_input()]
        return [os.fsencode(part) for part in self.body]

    async def ask(self, client: trioreq.Client, frames: list[bytes]) -> list[bytes]:
        """Send the request once."""
        begun = trio.current_time()
        self.sent += 1
        reply = await client.request_multipart(frames)
        now = trio.current_time()
        if self.sent == 1 and client.timings:
            # Without the wait for the connection, which is reported separately.
            begun = max(begun, client.timings.since)
        self.took.append(now - begun)
        if self.verbose and client.timings:
            if self.sent == 1:
                await in_thread(
                    tell,
                    f"connected to {self.endpoint} in {client.timings.connect * 1e3:.2f} ms, "
                    f"handshake {client.timings.handshake * 1e3:.2f} ms",
                )
            size = sum(map(len, reply))
            await in_thread(tell, f"reply in {self.took[-1] * 1e3:.2f} ms, {size} bytes")
        return reply

    async def ping(self, client: trioreq.Client, frames: list[bytes]) -> None:
        """Send the request once, and print a line about it."""
        try:
            reply = await self.ask(client, frames)
        except trioreq.TrioreqError as error:
            text = describe(error)
        else:
            text = f"{sum(map(len, reply))} bytes, {self.took[-1] * 1e3:.2f} ms"
        await in_thread(write, f"{self.sent}: {text}\n".encode())

    def summarize(self) -> None:
        """Print a summary of the repeated requests."""
        if self.repeat is None or not self.sent:
            return
        lost = self.sent - len(self.took)
        text = f"{self.sent} requests, {len(self.took)} replies, {lost / self.sent:.0%} lost"
        if self.took:
            low, middle, high = min(self.took), statistics.median(self.took), max(self.took)
            text += f"; min/median/max {low * 1e3:.2f}/{middle * 1e3:.2f}/{high * 1e3:.2f} ms"
        write(f"{text}\n".encode())


def read_file(path: Path) -> bytes:
    """Read a request from a file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return read_all(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CannotRead(f"cannot read {path}: {error.strerror}") from error


def read_input() -> bytes:
    """Read a request from standard input, with a prompt on a terminal."""
    if os.isatty(INPUT):
        tell("type the request, and end it with Ctrl-D")
    try:
        return read_all(INPUT)
    except OSError as error:
        raise CannotRead(
            f"cannot read standard input: {error.strerror}; give BODY or --file instead"
        ) from error


def show(reply: Sequence[bytes], options: Ask) -> None:
    """Print a reply in the chosen format."""
    terminal = os.isatty(OUTPUT)
    shown: bytes | None = None
    if options.as_hex:
        shown = _output.hex_dump(reply)
    elif options.as_json:
        shown = _output.pretty_json(reply, colour=terminal and _output.colours_wanted())
        if shown is None:
            tell("the reply is not JSON")
    if shown is None:
        lines = options.multipart
        shown = _output.readable(reply) if terminal else _output.raw(reply, lines=lines)
    write(shown)


def write(data: bytes) -> None:
    """Write all of it to standard output."""
    sys.stdout.buffer.write(data)


def tell(text: str) -> None:
    """Write a line to standard error."""
    _program.tell("trioreq-client", text)
