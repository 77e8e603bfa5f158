"""The options of `serve`, and their checks.

An invalid option is reported before a socket is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._checks import (
    check_count,
    check_instance,
    check_limit,
    check_message_size,
    check_seconds,
    wrong,
)
from ._functions import check_function, is_async
from ._protocol.frame_sizes import LEAST_AT_SERVER
from ._transport.curve import CurveServer
from ._workers import Workers

if TYPE_CHECKING:
    from ._protocol.envelope import ErrorReply
    from ._protocol.zap import Admit, Mechanism


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of `serve`, which documents them. They are checked when this is made.

    Raises:
        TypeError: An option is of the wrong type.
        ValueError: An option is out of its range, or cannot be combined with another.
    """

    workers: int | Workers = 40
    max_in_flight: int = 1000
    max_queued_per_client: int = 1000
    timeout: float | None = None
    heartbeat: float | None = 15.0
    max_message_size: int = 16 * 1024 * 1024
    send_queue: int = 1000
    stall_timeout: float | None = 10.0
    watchdog: float | None = 1.0
    curve: CurveServer | None = None
    plain_insecure: bool = False
    admit: Admit | None = None
    max_connections: int | None = None
    max_connections_per_address: int | None = None
    error_reply: ErrorReply | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.workers, Workers):
            check_count("workers", self.workers, 1)
        check_count("max_in_flight", self.max_in_flight, 1)
        check_count("max_queued_per_client", self.max_queued_per_client, 0)
        check_count("send_queue", self.send_queue, 1)
        check_seconds("timeout", self.timeout)
        check_seconds("heartbeat", self.heartbeat)
        check_seconds("stall_timeout", self.stall_timeout)
        check_seconds("watchdog", self.watchdog)
        check_limit("max_connections", self.max_connections)
        check_limit("max_connections_per_address", self.max_connections_per_address)
        if self.error_reply is not None:
            check_function("error_reply", self.error_reply, "a code", "a text")
            if is_async(self.error_reply):
                raise wrong("error_reply", "a plain function", self.error_reply)
        self._check_access()
        mechanism = self.mechanism
        check_message_size(self.max_message_size, LEAST_AT_SERVER[mechanism], mechanism)

    @property
    def plain_functions(self) -> int:
        """How many plain functions may run at once."""
        return self.workers.n if isinstance(self.workers, Workers) else self.workers

    @property
    def mechanism(self) -> Mechanism:
        """How clients authenticate."""
        if self.curve is not None:
            return "CURVE"
        return "PLAIN" if self.plain_insecure else "NULL"

    def _check_access(self) -> None:
        curve, admit = self.curve, self.admit
        if curve is not None:
            check_instance("curve", curve, CurveServer, "a CurveServer or None", secret=True)
        check_instance("plain_insecure", self.plain_insecure, bool, "True or False")
        if admit is not None:
            check_function("admit", admit, "an applicant")
            if not is_async(admit):
                raise wrong("admit", "an async function", admit, "write async def")
        if curve is not None and self.plain_insecure:
            raise ValueError("curve and plain_insecure cannot be combined: choose one mechanism")
        if self.plain_insecure and admit is None:
            raise ValueError("plain_insecure needs admit, which checks the password")
        if curve is not None and curve.allow is None and admit is None:
            raise ValueError("curve without an allow-list needs admit, which decides about keys")
        if curve is not None and curve.allow is not None and admit is not None:
            raise ValueError("curve's allow-list and admit cannot be combined: choose one")
