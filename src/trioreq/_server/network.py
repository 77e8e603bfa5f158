"""A stand-in for the system's network and its threads, which an address can be."""

from __future__ import annotations

from abc import ABC, abstractmethod

from .._transport.line import Line
from .._transport.server_sockets import Sockets
from .connection import Desk
from .handlers import Handler, Workers


class Network(ABC):
    """What `serve` and `open_client` take in the place of an address; `trioreq.testing` has one."""

    @abstractmethod
    def bind(self, *, heartbeat: float | None, max_message_size: int, send_queue: int) -> Sockets:
        """Be the place where a server is."""

    @abstractmethod
    def line(self, *, heartbeat: float | None, max_message_size: int) -> Line:
        """Make a client's way to that server."""

    @abstractmethod
    def threads(self, handler: Handler, desk: Desk) -> Workers:
        """Make what runs that server's plain functions."""
