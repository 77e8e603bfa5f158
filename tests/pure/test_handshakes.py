"""Which handshakes failed. Pure: libzmq's events in, failures out."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest
import zmq

from trioreq._protocol.connection_table import Connection
from trioreq._protocol.handshakes import Failure, Handshakes
from trioreq._transport.handshake_events import failure_of

FOREIGN, LEFT, MECHANISM = Failure.FOREIGN, Failure.LEFT, Failure.MECHANISM


class Script:
    """Connections by name, and what is reported of them."""

    def __init__(self) -> None:
        self.handshakes = Handshakes()
        self._connections: dict[str, Connection] = {}

    def begin(self, *names: str) -> None:
        for name in names:
            connection = Connection(len(self._connections), len(self._connections))
            self._connections[name] = connection
            self.handshakes.begun(connection, len(self._connections))

    def hear(self, name: str) -> list[Failure]:
        peer: Any = name
        self._connections[name].peer = peer
        return self.handshakes.heard(self._connections[name])

    def end(self, name: str, reason: Failure | None = None) -> list[Failure]:
        return self.handshakes.ended(self._connections[name], reason)

    def close(self, name: str) -> None:
        self.handshakes.closed(self._connections[name])

    def closed_end(self, name: str, reason: Failure | None = None) -> list[Failure]:
        return self.handshakes.closed_ended(self._connections[name].descriptor, reason)

    def is_open(self, name: str) -> bool:
        return self._connections[name] in self.handshakes


@pytest.fixture
def script() -> Script:
    return Script()


def test_a_reason_that_was_reported_is_that_of_the_connection(script: Script) -> None:
    script.begin("a", "b")
    assert script.end("b", MECHANISM) == [MECHANISM]
    assert script.end("a", LEFT) == [LEFT]
    assert script.handshakes.failed == 2


def test_a_connection_that_ends_without_a_report_has_failed(script: Script) -> None:
    script.begin("http")
    assert script.end("http") == [FOREIGN]
    assert script.handshakes.failed == 1


def test_a_connection_that_succeeded_has_not_failed(script: Script) -> None:
    script.begin("idle")
    script.handshakes.succeeded()
    assert not script.is_open("idle")
    assert script.end("idle") == []
    script.begin("heard")
    script.handshakes.succeeded()
    script.hear("heard")
    assert script.end("heard") == []
    assert script.handshakes.failed == 0


def test_a_refused_connection_does_not_count_twice(script: Script) -> None:
    for reason in (None, LEFT):  # libzmq reports one if READY has not come
        script.begin("refused")
        script.handshakes.refused()
        assert script.end("refused", reason) == []
        script.begin("refused", "slow")
        script.handshakes.refused()
        assert script.end("refused", reason) == []
        assert script.end("slow", Failure.TIMED_OUT) == [Failure.TIMED_OUT]


def test_it_may_be_open_which_of_two_failed_but_not_how_many(script: Script) -> None:
    script.begin("idle", "silent", "http")
    script.handshakes.succeeded()  # of one of the three
    assert script.end("http") == []  # it may have been this one
    assert script.hear("idle") == [FOREIGN]  # it was not
    assert script.end("silent", Failure.TIMED_OUT) == [Failure.TIMED_OUT]
    assert script.end("idle") == []
    assert script.handshakes.failed == 2


def test_a_connection_open_after_the_handshake_timeout_has_succeeded(script: Script) -> None:
    script.begin("idle", "another", "http", "late")  # at 1, 2, 3 and 4
    script.handshakes.succeeded()
    script.handshakes.succeeded()
    assert script.end("http") == []
    assert script.handshakes.undecided
    assert script.handshakes.outlasted(2) == []
    assert script.is_open("another")
    assert script.handshakes.outlasted(4) == [FOREIGN]
    assert not script.handshakes.undecided
    assert script.is_open("late")
    assert script.handshakes.outlasted(5) == []
    assert not script.is_open("late")


def test_only_the_oldest_connections_are_looked_at(script: Script) -> None:
    """This is done at each read of the monitor, with as many open as peers like."""

    class Counted(dict[Connection, float]):
        looked_at = 0

        def items(self) -> Any:
            for item in super().items():
                self.looked_at += 1
                yield item

    opened = script.handshakes._open = Counted()
    script.begin("idle", "http", *(f"{number}" for number in range(100)))
    script.handshakes.succeeded()
    assert script.end("http") == []
    assert script.handshakes.outlasted(1) == []
    assert opened.looked_at == 1
    assert script.handshakes.outlasted(2) == [FOREIGN]
    assert opened.looked_at == 3


def test_of_two_that_ended_one_at_most_has_succeeded(script: Script) -> None:
    script.begin("idle", "http", "tls")
    script.handshakes.succeeded()
    assert script.end("http") == []
    assert script.end("tls") == [FOREIGN]
    assert script.end("idle") == [FOREIGN]
    assert script.handshakes.failed == 2


def test_an_end_may_be_read_before_the_message(script: Script) -> None:
    script.begin("silent", "quick")
    script.handshakes.succeeded()
    script._connections["quick"].peer = object()  # type: ignore[assignment]  # read a moment ago
    assert script.end("quick") == []
    assert script.end("silent", LEFT) == [LEFT]


def test_a_connection_closed_by_the_server_has_not_failed(script: Script) -> None:
    script.begin("beyond a limit", "http")
    script.close("beyond a limit")
    assert not script.is_open("beyond a limit")
    assert script.closed_end("beyond a limit", LEFT) == []
    assert script.end("http") == [FOREIGN]
    assert script.handshakes.failed == 1


@pytest.mark.parametrize("reported", ["before", "after"])
@pytest.mark.parametrize("reason", [None, MECHANISM])
def test_the_success_of_a_connection_closed_by_the_server_is_not_anothers(
    script: Script, reported: str, reason: Failure | None
) -> None:
    script.begin("evicted", "foreign")
    if reported == "before":
        script.handshakes.succeeded()
    script.close("evicted")
    if reported == "after":
        script.handshakes.succeeded()
    assert script.closed_end("evicted") == []
    assert script.end("foreign", reason) == [reason or FOREIGN]
    script.begin("evicted", "foreign")
    script.handshakes.succeeded()
    script.close("evicted")
    assert [*script.end("foreign", reason), *script.closed_end("evicted")] == [reason or FOREIGN]
    assert script.handshakes.failed == 2


def test_the_refusal_of_another_is_not_that_of_a_connection_closed_by_the_server(
    script: Script,
) -> None:
    script.begin("evicted", "refused")
    script.close("evicted")
    script.handshakes.refused()
    assert script.closed_end("evicted", LEFT) == []
    assert script.end("refused", LEFT) == []
    script.begin("heard")
    script.handshakes.succeeded()
    script.hear("heard")
    script.close("heard")
    assert script.closed_end("heard") == []
    assert script.handshakes.failed == 0


def test_an_error_after_the_handshake_is_not_of_it(script: Script) -> None:
    script.begin("heard")
    script.handshakes.succeeded()
    assert script.end("heard", Failure.MALFORMED) == []


@pytest.mark.parametrize("seed", range(200))
def test_the_count_is_exact_when_all_have_ended_and_nothing_is_kept(
    script: Script, seed: int
) -> None:
    """Connections that fare in any way, all at the same time."""
    rng = random.Random(seed)
    ways = {
        "http": ["begin", "end"],
        "left": ["begin", "end"],
        "idle": ["begin", "succeed", "end"],
        "heard": ["begin", "succeed", "hear", "end"],
        "refused": ["begin", "refuse", "end"],
        "closed in its handshake": ["begin", "close", "broken off"],
        "closed when idle": ["begin", "succeed", "close", "closed end"],
        "closed just before its success": ["begin", "close", "succeed", "closed end"],
    }
    fates = {f"{n}": rng.choice([*ways]) for n in range(8)}
    steps = [ways[fate].copy() for fate in fates.values()]
    failed = 0
    while any(steps):
        number = rng.choice([number for number, left in enumerate(steps) if left])
        name, step = str(number), steps[number].pop(0)
        if step == "begin":
            script.begin(name)
        elif step == "succeed":
            script.handshakes.succeeded()
        elif step == "refuse":
            script.handshakes.refused()
        elif step == "hear":
            failed += len(script.hear(name))
        elif step == "close":
            script.close(name)
        elif step in ("closed end", "broken off"):
            reason = LEFT if step == "broken off" else None
            failed += len(script.closed_end(name, reason))
        else:
            failed += len(script.end(name, LEFT if fates[name] == "left" else None))
    assert failed == script.handshakes.failed
    assert failed == sum(fate in ("http", "left") for fate in fates.values())
    assert not script.handshakes._open
    assert not script.handshakes._closed
    assert script.handshakes._ended == script.handshakes._succeeded == 0


def test_values_of_events_are_reasons() -> None:
    protocol = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
    no_detail = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
    assert failure_of(protocol, 0x11000002) is MECHANISM
    assert failure_of(protocol, 0x11000001) is Failure.KEYS
    assert failure_of(protocol, 0x10000013) is Failure.MALFORMED
    for error in (errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT):
        assert failure_of(no_detail, error) is LEFT
    for error in (0, errno.EAGAIN, errno.EINTR):
        assert failure_of(no_detail, error) is Failure.TIMED_OUT
