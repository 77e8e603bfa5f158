"""The options of `serve`, and their checks.

An invalid option is reported before a socket is opened.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from ._checks import (
    check_count,
    check_instance,
    check_limit,
    check_message_size,
    check_seconds,
    wrong,
)
from ._functions import check_function, is_async
from ._protocol.envelope import ErrorReply
from ._protocol.frame_sizes import LEAST_AT_SERVER
from ._protocol.zap import Admit, Mechanism
from ._transport.curve import CurveServer
from ._workers import Workers

T = TypeVar("T")


def option(default: T, unit: str, text: str) -> T:
    """A row in a list of options, of which `trioreq-server` makes its own.

    Args:
        default: The value if none is given.
        unit: What a value is on the command line, such as ``SECONDS``; empty for a flag.
        text: The help of the command line.
    """
    made: T = field(default=default, metadata={"unit": unit, "help": text})
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of `serve`, which documents them. They are checked when this is made.

    A row here is an option of `trioreq-server` too: a flag, a name in its configuration file, and a
    variable of its environment.

    Raises:
        TypeError: An option is of the wrong type.
        ValueError: An option is out of its range, or cannot be combined with another.
    """

    workers: int | Workers = option(
        40,
        "N",
        "Plain functions that run at once, each in a thread. `processes:N` runs them in processes; "
        "MODULE:NAME is a ThreadWorkers, ProcessWorkers or RayWorkers.",
    )
    max_in_flight: int = option(1000, "N", "Handlers that run at once; more requests wait.")
    max_queued_per_client: int = option(1000, "N", "Requests of one client that may wait.")
    timeout: float | None = option(None, "SECONDS", "Time that a request may take.")
    heartbeat: float | None = option(
        15.0, "SECONDS", "Time after which a client that is stopped or cut off is disconnected."
    )
    max_message_size: int = option(16 * 1024 * 1024, "BYTES", "Size that a frame may have.")
    send_queue: int = option(1000, "N", "Replies that may wait for a client that does not read.")
    stall_timeout: float | None = option(
        10.0, "SECONDS", "Time after which a client is disconnected that reads none of its replies."
    )
    watchdog: float | None = option(
        1.0, "SECONDS", "Time that a handler may block the event loop before the log names it."
    )
    curve: CurveServer | None = None  # `trioreq-server` makes it of files
    plain_insecure: bool = option(
        False, "", "Clients authenticate with a user name and a password, in clear text."
    )
    admit: Admit | None = option(
        None, "MODULE:NAME", "An async function that decides about each Applicant."
    )
    max_connections: int | None = option(None, "N", "Connections there may be.")
    max_connections_per_address: int | None = option(
        None, "N", "Connections there may be from one IP address, or one user of the machine."
    )
    max_connection_age: float | None = option(
        None, "SECONDS", "Time after which a client is asked to connect again."
    )
    error_reply: ErrorReply | None = option(
        None, "MODULE:NAME", "A plain function that makes the body of an error reply."
    )

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
        check_seconds("max_connection_age", self.max_connection_age)
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
