"""Which connections are not heard. Pure: byte counts and times in, verdicts out."""

from __future__ import annotations

import random

import pytest

from trioreq._protocol.connection_table import Connection
from trioreq._protocol.unheard import SIZES, UnheardGuard
from trioreq._protocol.zap import Mechanism

INTERVAL, PATIENCE = 10.0, 15.0
LOOK = 0.25


class Line:
    """A connection of which the guard is shown the byte counts, and its heartbeats."""

    def __init__(self, mechanism: Mechanism = "NULL", context: int = 0) -> None:
        self.sizes = SIZES[mechanism]
        self.guard = UnheardGuard(mechanism, INTERVAL, PATIENCE)
        self.connection = Connection(1, 10)
        self.context = context
        self.now = 100.0
        self.received = (self.sizes.complete or 100) + 30
        self.sent = self.sizes.sent
        self._pinged = self.now

    def ask(self) -> bool:
        """The ZAP handler is asked; returns whether it should wait."""
        return self.guard.asks(self.connection, self.received, self.now)

    def ping_from_client(self, *, answered: bool = True) -> None:
        self.received += self.sizes.ping + self.context
        if answered:
            self.pong_to_client()

    def pong_to_client(self) -> None:
        self.sent += self.sizes.pong + self.context

    def pass_time(self, *, answering: bool = True) -> None:
        """The server sends its PINGs when it is time."""
        self.now += LOOK
        if self.now - self._pinged >= INTERVAL * 1.001:
            self._pinged += INTERVAL * 1.001
            self.sent += self.sizes.ping
            self.received += self.sizes.pong * answering

    def look(self) -> bool:
        return self.guard.is_unheard(self.connection, self.received, self.sent, self.now)

    def is_unheard_within(self, seconds: float, *, answering: bool = True) -> bool:
        for _ in range(round(seconds / LOOK)):
            self.pass_time(answering=answering)
            if self.look():
                return True
        return False


@pytest.mark.parametrize("mechanism", SIZES)
@pytest.mark.parametrize("size", [5, 7, 9, 32, 1000])
def test_a_message_that_is_not_heard_shows(mechanism: Mechanism, size: int) -> None:
    line = Line(mechanism)
    line.ask()
    line.look()
    line.received += size + (33 if mechanism == "CURVE" else 0)
    begun = line.now
    assert line.is_unheard_within(60)
    assert PATIENCE <= line.now - begun <= 2 * INTERVAL + 1


@pytest.mark.parametrize("mechanism", ["NULL", "CURVE"])
def test_a_message_right_behind_the_handshake_shows(mechanism: Mechanism) -> None:
    line = Line(mechanism)
    line.ask()
    line.received += 50
    assert line.is_unheard_within(60)


@pytest.mark.parametrize("mechanism", SIZES)
def test_the_last_command_is_waited_for_if_it_is_the_next(mechanism: Mechanism) -> None:
    line = Line(mechanism)
    assert not line.ask()
    for received in (0, 63, 64, 71):
        line = Line(mechanism)
        line.received = received
        assert line.ask() is (mechanism == "NULL" and received >= 64)
        assert line.connection.silence is None


def test_the_last_command_of_the_handshake_may_be_late() -> None:
    line = Line()
    line.received = 64  # the greeting
    line.ask()
    assert line.connection.silence is None
    line.received = 107
    line.look()  # the handshake is over
    line.received += 11
    assert line.is_unheard_within(60)


@pytest.mark.parametrize("mechanism", SIZES)
@pytest.mark.parametrize("context", [0, 1, 16])
@pytest.mark.parametrize("seed", range(5))
def test_an_idle_connection_is_not_suspected(mechanism: Mechanism, context: int, seed: int) -> None:
    """It answers PINGs, and sends some; sometimes one is just being answered."""
    rng = random.Random(seed)
    line = Line(mechanism, context)
    if seed % 2:
        line.ask()
    for _ in range(5_000):
        for _ in range(rng.choice([0, 0, 1, 3])):
            line.ping_from_client()
        on_its_way = rng.random() < 0.001
        if on_its_way:
            line.ping_from_client(answered=False)
        line.pass_time()
        assert not line.look()
        if on_its_way:
            line.pong_to_client()


def test_a_first_look_may_come_while_a_ping_is_not_answered() -> None:
    line = Line("PLAIN")
    line.sent += line.sizes.ping
    line.look()
    line.received += line.sizes.pong
    assert not line.is_unheard_within(100)


def test_a_client_that_stops_and_continues_is_not_suspected() -> None:
    line = Line()
    line.ask()
    assert not line.is_unheard_within(11, answering=False)
    line.received += line.sizes.pong
    assert not line.is_unheard_within(100)


def test_a_message_whose_end_has_not_come_is_waited_for() -> None:
    """No heartbeat is answered in the middle of a frame."""
    line = Line()
    line.ask()
    for _ in range(400):
        line.received += 1000
        line.pass_time(answering=False)
        assert not line.look()
    assert not line.is_unheard_within(300, answering=False)  # it is the heartbeat that ends it


def test_a_client_that_goes_on_sending_shows_by_its_own_heartbeats() -> None:
    line = Line()
    line.ask()
    for number in range(400):
        if not number % 6:
            line.received += 11
        if not number % 4:
            line.ping_from_client()
        line.pass_time()
        if line.look():
            assert line.now - 100 >= PATIENCE
            return
    pytest.fail("it never shows")


def test_without_heartbeats_of_the_server_those_of_the_client_count() -> None:
    line = Line()
    line.guard = UnheardGuard("NULL", None, PATIENCE)
    line.ask()
    line.received += 11
    assert not line.is_unheard_within(5)
    line.ping_from_client()
    assert line.is_unheard_within(20)
