"""One request, or many: what `trioreq-client` is told, and what it prints."""

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

from . import _output


@dataclass
class Ask:
    """What `request` was told, and what came of it."""

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

    def check(self) -> None:
        """Refuse what does not go together."""
        if self.file and self.body:
            raise click.UsageError("--file is the request: give no BODY beside it")
        if self.as_hex and self.as_json:
            raise click.UsageError("--hex and --json: choose one")

    def frames(self) -> list[bytes]:
        """The request."""
        if self.file:
            return [self.file.read_bytes()]
        if not self.body or self.body == ("-",):
            return [sys.stdin.buffer.read()]
        return [os.fsencode(part) for part in self.body]

    async def run(self) -> int:
        """Ask, once or many times."""
        frames = await trio.to_thread.run_sync(self.frames, abandon_on_cancel=True)
        async with trioreq.open_client(
            self.endpoint,
            timeout=self.timeout,
            retries=self.retries,
            connect_timeout=self.connect_timeout,
            curve=self.curve,
        ) as client:
            if self.repeat is None:
                show(await self.ask(client, frames), self)
                return 0
            while not self.repeat or self.sent < self.repeat:
                if self.sent:
                    await trio.sleep(self.interval)
                await self.ping(client, frames)
        self.summarize()
        return 0 if self.took else 1

    async def ask(self, client: trioreq.Client, frames: list[bytes]) -> list[bytes]:
        """Ask once."""
        begun = trio.current_time()
        self.sent += 1
        reply = await client.request_multipart(frames)
        now = trio.current_time()
        if self.sent == 1 and client.timings:
            # It may have waited for the connection; what that took is told apart.
            begun = max(begun, client.timings.since)
        self.took.append(now - begun)
        if self.verbose and client.timings:
            if self.sent == 1:
                tell(
                    f"connected to {self.endpoint} in {client.timings.connect * 1e3:.2f} ms, "
                    f"handshake {client.timings.handshake * 1e3:.2f} ms"
                )
            tell(f"reply in {self.took[-1] * 1e3:.2f} ms, {sum(map(len, reply))} bytes")
        return reply

    async def ping(self, client: trioreq.Client, frames: list[bytes]) -> None:
        """Ask once, and print a line of it."""
        try:
            reply = await self.ask(client, frames)
        except trioreq.TrioreqError as error:
            write(f"{self.sent}: {describe(error)}\n".encode())
        else:
            size = sum(map(len, reply))
            write(f"{self.sent}: {size} bytes, {self.took[-1] * 1e3:.2f} ms\n".encode())

    def summarize(self) -> None:
        """Print what came of all repeated requests."""
        if self.repeat is None or not self.sent:
            return
        lost = self.sent - len(self.took)
        text = f"{self.sent} requests, {len(self.took)} replies, {lost / self.sent:.0%} lost"
        if self.took:
            low, middle, high = min(self.took), statistics.median(self.took), max(self.took)
            text += f"; min/median/max {low * 1e3:.2f}/{middle * 1e3:.2f}/{high * 1e3:.2f} ms"
        write(f"{text}\n".encode())


def show(reply: Sequence[bytes], options: Ask) -> None:
    """Print a reply as it was asked for."""
    terminal = sys.stdout.isatty()
    shown: bytes | None = None
    if options.as_hex:
        shown = _output.hex_dump(reply)
    elif options.as_json:
        colour = terminal and not os.environ.get("NO_COLOR")
        shown = _output.pretty_json(reply, colour=colour)
        if shown is None:
            tell("the reply is not JSON")
    if shown is None:
        lines = options.multipart
        shown = _output.readable(reply) if terminal else _output.as_it_came(reply, lines=lines)
    write(shown)


def write(data: bytes) -> None:
    """To standard output, at once."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def tell(text: str) -> None:
    """To standard error."""
    click.echo(f"trioreq-client: {text}", err=True)


def describe(error: Exception) -> str:
    """What a person is told of an error."""
    return f"error: {error}" if isinstance(error, trioreq.ReplyError) else str(error)
