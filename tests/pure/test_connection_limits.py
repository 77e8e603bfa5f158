"""How many connections there may be. Pure: no clock, no sockets."""

from __future__ import annotations

from trioreq._protocol.connection_limits import ConnectionLimits, OwnTotal
from trioreq._protocol.connection_table import Connection


def test_connections_are_counted_in_all_and_by_address() -> None:
    limits = ConnectionLimits(3, 2)
    connections = [Connection(number, 10 + number) for number in range(9)]

    def enter(number: int, address: str) -> str | None:
        return limits.enter(connections[number], address)

    assert [enter(number, "a") for number in (1, 2)] == [None, None]
    assert enter(3, "a") == "max_connections_per_address is reached"
    assert enter(4, "b") is None
    assert enter(5, "c") == "max_connections is reached"
    limits.leave(connections[3])  # it was not counted
    assert enter(6, "a") == "max_connections is reached"
    limits.leave(connections[1])
    assert enter(7, "a") is None
    limits.leave(connections[7])
    limits.leave(connections[7])  # nor is it uncounted twice
    assert enter(8, "a") is None
    assert enter(0, "a") == "max_connections is reached"


def test_without_limits_every_connection_is_accepted() -> None:
    limits = ConnectionLimits(None, None)
    assert [limits.enter(Connection(number, 10), "a") for number in range(100)] == [None] * 100


def test_nothing_is_kept_of_closed_connections() -> None:
    total = OwnTotal()
    limits = ConnectionLimits(None, 1, total)
    for number in range(10):
        connection = Connection(number, 10)
        assert limits.enter(connection, f"address {number}") is None
        limits.leave(connection)
        assert not connection.counted
    assert not limits._counts
    assert total.add(0) == 0


def test_the_connections_of_other_processes_count() -> None:
    total = OwnTotal()
    here, there = (ConnectionLimits(2, None, total) for _ in range(2))
    first, second, third = (Connection(number, 10) for number in range(3))
    assert here.enter(first, "a") is None
    assert there.enter(second, "a") is None
    assert here.enter(third, "a") == "max_connections is reached"
    assert total.add(0) == 2
    there.leave(second)
    assert here.enter(third, "a") is None
