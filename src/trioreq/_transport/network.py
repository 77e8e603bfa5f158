"""A stand-in for the system's network and its threads, which an address can be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from .line import Line
from .server_sockets import Sockets


class Network(ABC):
    """What `serve` and `open_client` accept in the place of an address.

    `trioreq.testing` has one.
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
        """Makes that server's `ThreadPool`, of which this layer knows nothing."""

    @abstractmethod
    def open_workers(self, handler: Any, workers: Any) -> AbstractAsyncContextManager[Any]:  # noqa: ANN401
        """Open what stands for that server's `OpenWorkers`."""

    @property
    @abstractmethod
    def observers(self) -> Sequence[Any]:
        """More `Observer`s of that server's requests."""
