"""Groups of clients that ask and die, for code in trio."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Literal

from .children import Child, open_child
from .processes import ChildFailed, python_module

Kinds = Sequence[tuple[str, str]]
"""Endpoints, and what is asked there."""


class CrashingClients:
    """A process that runs `harness.programs.crashing`.

    Attributes:
        group: How many clients a group has.
        died: How many have asked and died.
    """

    def __init__(self, child: Child, group: int) -> None:
        self._child = child
        self.group = group
        self.died = 0

    async def crash(self, way: Literal["killed", "reset"], kinds: Kinds) -> None:
        """Let a group connect, ask and die; its clients take the kinds of requests in turn.

        Raises:
            ChildFailed: Not all of them have asked; their errors are on standard error.
        """
        asked = int(await self._child.ask(json.dumps([way, self.died, list(kinds)])))
        if asked != self.group:
            raise ChildFailed(f"{asked} of {self.group} clients have asked")
        self.died += self.group


@asynccontextmanager
async def open_crashing_clients(processes: int, connections: int) -> AsyncIterator[CrashingClients]:
    """Groups of so many processes, each with so many connections."""
    command = python_module("harness.programs.crashing", processes, connections)
    async with open_child(command) as child:
        yield CrashingClients(child, processes * connections)
