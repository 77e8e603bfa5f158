"""The connection table against a model that knows the truth. Pure: no clock, no sockets.

The model plays libzmq as docs/design.md describes it: connections on descriptors that are used
again at once, monitor events that wait in a queue, messages that wait longer than their sender
lives, connections that are accepted late, or never, or never send anything.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from trioreq._protocol import connection_table
from trioreq._protocol.connection_table import ConnectionTable


@dataclass(eq=False)
class Truth:
    """What is true of one connection."""

    descriptor: int
    epoch: int | None = None
    alive: bool = True
    connection: connection_table.Connection | None = None
    """What the table made of it, once its accept was recorded."""
    evicted: bool = False


@dataclass
class Kernel:
    events: deque[tuple[str, Truth]] = field(default_factory=deque)
    messages: deque[Truth] = field(default_factory=deque)


class ConnectionTableMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.table = ConnectionTable()
        self.kernel = Kernel()
        self.all: list[Truth] = []
        self.events_recorded = 0

    def _pick(self, data: st.DataObject, among: list[Truth]) -> Truth:
        return data.draw(st.sampled_from(among))

    def _alive(self, *, let_in: bool) -> list[Truth]:
        return [c for c in self.all if c.alive and (c.epoch is not None) is let_in]

    def _record_all(self) -> None:
        while self.kernel.events:
            self.record_event()

    @rule(data=st.data())
    def connect(self, data: st.DataObject) -> None:
        taken = {c.descriptor for c in self.all if c.alive}
        free = sorted({1, 2, 3} - taken)  # few, so that they come back soon
        if not free:
            return
        truth = Truth(data.draw(st.sampled_from(free)))
        self.all.append(truth)
        self.kernel.events.append(("accepted", truth))

    @precondition(lambda self: self._alive(let_in=False))
    @rule(data=st.data())
    def let_in(self, data: st.DataObject) -> None:
        """The ZAP handler: all events that are there first, then the epoch."""
        self._record_all()
        self._pick(data, self._alive(let_in=False)).epoch = self.table.epoch

    @precondition(lambda self: self._alive(let_in=True))
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        self.kernel.messages.append(self._pick(data, self._alive(let_in=True)))

    @precondition(lambda self: any(c.alive for c in self.all))
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        truth = self._pick(data, [c for c in self.all if c.alive])
        truth.alive = False
        self.kernel.events.append(("disconnected", truth))

    @precondition(lambda self: self.kernel.events)
    @rule()
    def record_event(self) -> None:
        kind, truth = self.kernel.events.popleft()
        self.events_recorded += 1
        if kind == "accepted":
            truth.connection, unreported = self.table.accepted(truth.descriptor)
            assert unreported is None
            assert truth.connection.id == self.table.epoch
            assert truth.connection.descriptor == truth.descriptor
            assert not truth.connection.disconnected
        else:
            connection = None if truth.evicted else truth.connection
            assert self.table.disconnected(truth.descriptor) is connection
            assert truth.connection is not None
            assert truth.connection.disconnected

    @precondition(lambda self: self._known())
    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        """Hold, read the monitor, shut down: a connection that is open then is the held one."""
        wanted = self._pick(data, self._known())
        held = [c for c in self.all if c.alive and c.descriptor == wanted.descriptor]
        self._record_all()
        assert wanted.connection is not None
        if not wanted.connection.disconnected:
            assert held == [wanted]
            self.table.evicted(wanted.connection)
            assert wanted.connection.disconnected
            wanted.evicted = True
            wanted.alive = False
            self.kernel.events.append(("disconnected", wanted))

    def _known(self) -> list[Truth]:
        """Those that the table has, some of which may be dead."""
        return [c for c in self.all if c.connection is not None and not c.connection.disconnected]

    @precondition(lambda self: self.kernel.messages)
    @rule()
    def read_message(self) -> None:
        """The sender is found, or found to be disconnected; never another connection."""
        truth = self.kernel.messages.popleft()
        assert truth.epoch is not None
        sender = self.table.sender(truth.descriptor, truth.epoch)
        recorded = not truth.alive and ("disconnected", truth) not in self.kernel.events
        assert sender is (None if recorded or truth.evicted else truth.connection)

    @invariant()
    def has_the_living_alone(self) -> None:
        """No state for the dead, however many there were."""
        if hasattr(self, "table"):
            unrecorded = {(kind, id(truth)) for kind, truth in self.kernel.events}
            known = [
                c.connection
                for c in self.all
                if (c.alive or ("disconnected", id(c)) in unrecorded)
                and ("accepted", id(c)) not in unrecorded
                and not c.evicted
            ]
            assert len(self.table) == len(known)
            assert set(self.table) == set(known)
            assert all(
                connection is not None and not connection.disconnected for connection in known
            )
            assert self.table.epoch == self.events_recorded


TestConnectionTable = ConnectionTableMachine.TestCase
TestConnectionTable.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)


def test_a_disconnect_that_was_never_reported_comes_out_at_the_next_accept() -> None:
    table = ConnectionTable()
    first, unreported = table.accepted(7)
    assert unreported is None
    second, unreported = table.accepted(7)
    assert unreported is first
    assert first.disconnected
    assert not second.disconnected
    assert list(table) == [second]


def test_the_disconnect_of_an_unknown_connection_is_counted_alone() -> None:
    table = ConnectionTable()
    assert table.disconnected(7) is None
    assert table.epoch == 1


def test_an_evicted_connection_is_disconnected_before_that_is_reported() -> None:
    table = ConnectionTable()
    first, _ = table.accepted(10)
    assert table.sender(10, table.epoch) is first
    table.evicted(first)
    assert first.disconnected
    assert table.sender(10, table.epoch) is None
    assert len(table) == 0
    assert table.disconnected(10) is None
    second, unreported = table.accepted(10)
    assert unreported is None
    assert second.id != first.id
    assert table.sender(10, first.id) is None
    assert table.sender(10, second.id) is second


def test_the_table_may_change_while_it_is_iterated() -> None:
    table = ConnectionTable()
    for descriptor in range(3):
        table.accepted(descriptor)
    for connection in table:
        table.evicted(connection)
    assert list(table) == []
