"""The interface of a network that replaces the system's, given instead of an address."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from .line import Line
from .server_sockets import Sockets


class Network(ABC):
    """Accepted by `serve` and `open_client` instead of an address.

    `trioreq.testing` has one, in memory.
    """

    @abstractmethod
    def bind(self, *, heartbeat: float | None, max_message_size: int, send_queue: int) -> Sockets:
        """Make a server's sockets."""

    @abstractmethod
    def line(self, *, heartbeat: float | None, max_message_size: int) -> Line:
        """Make a client's line to that server."""

    @property
    @abstractmethod
    def thread_pool(self) -> Callable[..., Any]:
        """Makes that server's `ThreadPool`, a type that this layer does not import."""

    @abstractmethod
    def open_processes(self, handler: Any, workers: Any) -> AbstractAsyncContextManager[Any]:  # noqa: ANN401
        """Open the replacement of that server's worker `Processes`."""

    @property
    @abstractmethod
    def observers(self) -> Sequence[Any]:
        """Additional `Observer`s of that server's requests."""
