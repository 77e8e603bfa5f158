"""The presence table against a model that knows the truth. Pure: no clock, no sockets.

The model plays libzmq as docs/design.md describes it: connections on descriptors that are used
again at once, monitor events that wait in a queue, messages that wait longer than their sender
lives, connections that are let in late, or never, or never speak.
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

from trioreq._protocol.connection_table import Presence


@dataclass(eq=False)
class Connection:
    descriptor: int
    stamp: int | None = None
    alive: bool = True
    number: int | None = None
    """What the table calls it: the number of its opening."""
    thrown_out: bool = False


@dataclass
class Kernel:
    events: deque[tuple[str, Connection]] = field(default_factory=deque)
    messages: deque[Connection] = field(default_factory=deque)


class PresenceMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.table = Presence()
        self.kernel = Kernel()
        self.connections: list[Connection] = []
        self.events_seen = 0

    def _pick(self, data: st.DataObject, among: list[Connection]) -> Connection:
        return data.draw(st.sampled_from(among))

    def _alive(self, *, let_in: bool) -> list[Connection]:
        return [c for c in self.connections if c.alive and (c.stamp is not None) is let_in]

    def _drain(self) -> None:
        while self.kernel.events:
            self.take_event()

    @rule(data=st.data())
    def connect(self, data: st.DataObject) -> None:
        taken = {c.descriptor for c in self.connections if c.alive}
        free = sorted({1, 2, 3} - taken)  # few, so that they come back soon
        if not free:
            return
        connection = Connection(data.draw(st.sampled_from(free)))
        self.connections.append(connection)
        self.kernel.events.append(("opened", connection))

    @precondition(lambda self: self._alive(let_in=False))
    @rule(data=st.data())
    def let_in(self, data: st.DataObject) -> None:
        """The gate: all events that are there first, then the stamp."""
        self._drain()
        self._pick(data, self._alive(let_in=False)).stamp = self.table.stamp

    @precondition(lambda self: self._alive(let_in=True))
    @rule(data=st.data())
    def speak(self, data: st.DataObject) -> None:
        self.kernel.messages.append(self._pick(data, self._alive(let_in=True)))

    @precondition(lambda self: any(c.alive for c in self.connections))
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        connection = self._pick(data, [c for c in self.connections if c.alive])
        connection.alive = False
        self.kernel.events.append(("ended", connection))

    @precondition(lambda self: self.kernel.events)
    @rule()
    def take_event(self) -> None:
        kind, connection = self.kernel.events.popleft()
        self.events_seen += 1
        if kind == "opened":
            assert self.table.opened(connection.descriptor) is None
            connection.number = self.table.stamp
        else:
            number = None if connection.thrown_out else connection.number
            assert self.table.ended(connection.descriptor) == number

    @precondition(lambda self: self._known())
    @rule(data=st.data())
    def throw_out(self, data: st.DataObject) -> None:
        """Hold, look, shut down: whom the table still knows then is the one that is held."""
        wanted = self._pick(data, self._known())
        held = [c for c in self.connections if c.alive and c.descriptor == wanted.descriptor]
        self._drain()
        if self.table.holder(wanted.descriptor) == wanted.number:
            assert held == [wanted]
            self.table.forget(wanted.descriptor)
            wanted.thrown_out = True
            wanted.alive = False
            self.kernel.events.append(("ended", wanted))

    def _known(self) -> list[Connection]:
        """Those that the table has, some of which may be dead."""
        return [
            c
            for c in self.connections
            if c.number is not None and self.table.holder(c.descriptor) == c.number
        ]

    @precondition(lambda self: self.kernel.messages)
    @rule()
    def read_message(self) -> None:
        """The sender is found, or found to be gone; never another connection."""
        sender = self.kernel.messages.popleft()
        assert sender.stamp is not None
        found = self.table.sender(sender.descriptor, sender.stamp)
        end_seen = not sender.alive and ("ended", sender) not in self.kernel.events
        assert found == (None if end_seen or sender.thrown_out else sender.number)

    @invariant()
    def keeps_the_living_alone(self) -> None:
        """No state for the dead, however many there were."""
        if hasattr(self, "table"):
            ended = {id(c) for kind, c in self.kernel.events if kind == "ended"}
            opening = {id(c) for kind, c in self.kernel.events if kind == "opened"}
            known = [
                c
                for c in self.connections
                if (c.alive or id(c) in ended) and id(c) not in opening and not c.thrown_out
            ]
            assert len(self.table) == len(known)
            assert self.table.stamp == self.events_seen


TestPresence = PresenceMachine.TestCase
TestPresence.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)


def test_an_end_that_was_never_told_is_told_by_the_next_opening() -> None:
    table = Presence()
    table.opened(7)
    first = table.stamp
    assert table.opened(7) == first


def test_the_end_of_an_unknown_connection_is_nobodys() -> None:
    assert Presence().ended(7) is None


def test_who_is_forgotten_is_gone_before_its_end_is_told() -> None:
    table = Presence()
    table.opened(10)
    first = table.holder(10)
    assert table.sender(10, table.stamp) == first
    table.forget(10)
    assert table.holder(10) is None
    assert table.sender(10, table.stamp) is None
    assert len(table) == 0
    assert table.ended(10) is None
    table.opened(10)
    assert table.holder(10) not in (None, first)
    assert table.sender(10, first or 0) is None
