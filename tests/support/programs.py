"""Programs in other languages, each with one zmq socket."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn

import pytest

from harness.children import Child, open_process

NPM_PACKAGE = "zeromq@6.8.0"
VERSIONS: dict[str, list[str]] = {}
"""What was run, by program, as each said itself."""


def cannot_be_had(what: str, remedy: str) -> NoReturn:
    """Skip the test; in CI, fail it."""
    message = f"{what}: {remedy}"
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


class Program(Child):
    """A process that obeys the commands of `tests/interop/programs`, one a line."""

    async def version(self) -> list[str]:
        """The names and versions of what it runs on."""
        return await self._order("version")

    async def connect(self, kind: str, endpoint: str, *options: str) -> None:
        """Connect its socket."""
        await self._order("connect", kind, endpoint, *options)

    async def bind(self, kind: str, endpoint: str) -> str:
        """Bind its socket; returns the endpoint that clients connect to."""
        (bound,) = await self._order("bind", kind, endpoint)
        return bound

    async def send(self, *frames: bytes) -> None:
        """Send a message."""
        await self._order("send", *(frame.hex() or "-" for frame in frames))

    async def receive(self) -> list[bytes]:
        """Wait for a message; returns its frames."""
        return [bytes.fromhex(word.strip("-")) for word in await self._order("receive")]

    async def request(self, *frames: bytes) -> list[bytes]:
        """Send a message, and wait for the next that comes."""
        await self.send(*frames)
        return await self.receive()

    async def _order(self, *words: str) -> list[str]:
        answer = await self.ask(" ".join(words))
        return answer.split("|") if answer else []


@asynccontextmanager
async def open_program(command: Sequence[str]) -> AsyncIterator[Program]:
    """A program, killed at the end if it still runs."""
    async with open_process(command) as process:
        yield Program(process)
