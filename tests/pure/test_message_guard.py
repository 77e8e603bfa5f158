"""Which connection sends a message without end: the rule, and a model of libzmq that tries it.

Pure: byte counts and times are the test's.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioreq._protocol.connection_table import Connection
from trioreq._protocol.message_guard import EXTRA, HEARTBEATS, NOTABLE, TURNS, MessageGuard

SIZE = 1000
ROOM = SIZE + EXTRA
SMALL = ROOM // NOTABLE


class Case:
    """A guard, and one connection that it looks at.

    Attributes:
        guard: The guard.
        one: The connection.
        another: One that sends whole messages.
    """

    def __init__(self) -> None:
        self.guard = MessageGuard(SIZE)
        self.one = Connection(7, 20)
        self.another = Connection(8, 21)

    def look(self, count: int, now: float = 0.0) -> bool:
        """Look at the connection, which has sent so much, all of which was taken in."""
        return self.guard.is_notable(self.one, count) and self.weigh(count, count, now)

    def weigh(self, least: int, most: int, now: float = 0.0) -> bool:
        return self.guard.weigh(self.one, least, most, now)

    def is_endless(self, *, dry: bool = True) -> bool:
        return self.guard.is_endless(self.one, 1, dry=dry)


def watched_from(start: int) -> Case:
    case = Case()
    assert not case.look(start)
    assert case.guard.watched == {case.one}
    return case


def test_a_connection_that_has_sent_little_is_not_watched() -> None:
    case = Case()
    assert not case.look(SMALL)
    assert not case.guard.watched


def test_a_message_without_end_is_found() -> None:
    case = watched_from(SMALL + 1)
    start = SMALL + 1
    assert not case.look(start + ROOM)
    assert not case.look(start + ROOM + 1)  # marked
    assert not case.look(start + ROOM + 1)  # it has sent no more
    assert case.look(start + ROOM + 2)
    assert case.is_endless()


def test_one_that_trickles_is_found() -> None:
    case = Case()
    seconds = found = 0
    while not found:
        seconds += 1
        found = case.look(seconds * 2 * HEARTBEATS, float(seconds))
        assert seconds * HEARTBEATS < ROOM + SMALL
    assert case.is_endless()


def test_heartbeats_alone_are_not_a_message_without_end() -> None:
    case = Case()
    for hours in range(24 * 365):
        assert not case.look(hours * 3600 * HEARTBEATS, hours * 3600.0)


def test_a_connection_that_is_heard_begins_again() -> None:
    case = watched_from(SMALL + 1)
    case.guard.heard([case.one])
    assert not case.guard.watched
    began = 10 * ROOM
    assert not case.look(began)
    assert not case.look(began + SMALL)
    assert not case.guard.watched
    assert not case.look(began + SMALL + 1)
    assert case.guard.watched
    start = began + SMALL + 1
    assert not case.look(start + ROOM + 1)
    assert case.look(start + ROOM + 2)
    assert case.is_endless()


def test_a_connection_that_is_heard_between_the_look_and_the_verdict_stays() -> None:
    case = watched_from(SMALL + 1)
    assert not case.look(2 * ROOM)
    assert case.look(3 * ROOM)
    case.guard.heard([case.another, case.one])
    assert not case.is_endless()


def test_a_connection_that_was_not_seen_to_go_on_is_not_endless() -> None:
    case = watched_from(SMALL + 1)
    assert not case.look(2 * ROOM)
    assert not case.is_endless()


def test_the_end_may_be_in_the_bytes_that_were_read_last() -> None:
    """It is so if libzmq may not have taken in anything since the mark."""
    case = watched_from(SMALL + 1)
    assert not case.weigh(2 * ROOM, 2 * ROOM + 9)
    assert not case.weigh(2 * ROOM + 9, 2 * ROOM + 9)
    assert case.weigh(2 * ROOM + 10, 2 * ROOM + 19)


def test_where_there_is_always_more_to_read_a_message_of_each_is_enough() -> None:
    case = watched_from(SMALL + 1)
    assert not case.look(2 * ROOM)
    assert case.look(3 * ROOM)
    assert not case.is_endless(dry=False)
    case.guard.heard([case.another] * (TURNS + 1))
    assert not case.is_endless(dry=False)
    assert case.look(3 * ROOM)  # still: the count goes on
    case.guard.heard([case.another])
    assert case.is_endless(dry=False)


def test_a_message_of_each_is_more_where_there_are_more_connections() -> None:
    case = watched_from(SMALL + 1)
    assert not case.look(2 * ROOM)
    assert case.look(3 * ROOM)
    case.guard.heard([case.another] * (TURNS + 19))
    assert not case.guard.is_endless(case.one, 10, dry=False)
    case.guard.heard([case.another])
    assert case.guard.is_endless(case.one, 10, dry=False)


@pytest.mark.parametrize("heard", [False, True])
def test_nothing_is_kept_of_a_closed_connection(heard: bool) -> None:
    """What is kept is at the connection itself, which goes with it, and in `watched`."""
    case = watched_from(SMALL + 1)
    if heard:
        case.guard.heard([case.one])
    case.guard.forget(case.one)
    assert not case.guard.watched
    assert case.one.watch is None
    assert set(vars(case.guard)) == {"room", "watched", "_read"}


class Line:
    """One connection through libzmq, counted in bytes of its stream.

    What it takes in is handed over when it takes in more, or later of itself.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.ends: list[int] = []  # where messages end that were not read
        at = 0
        for size in sizes:
            at += size
            self.ends.append(at)
        self.total = at
        self.sent = self.taken = self.handed_over = 0

    def send(self, size: int) -> None:
        self.sent = min(self.total, self.sent + size)

    def take_in(self, size: int) -> None:
        self.flush()
        self.taken = min(self.sent, self.taken + size)

    def flush(self) -> None:
        self.handed_over = self.taken

    def read(self, case: Case) -> None:
        while self.ends and self.ends[0] <= self.handed_over:
            del self.ends[0]
            if case.guard.watched:
                case.guard.heard([case.one])


UNIT = ROOM // 8
SIZES = st.sampled_from([1, UNIT, 4 * UNIT, 8 * UNIT - 1, ROOM])
STEPS = st.tuples(
    st.sampled_from(["send", "take in", "flush", "read", "look"]),
    st.sampled_from([1, UNIT, 5 * UNIT, ROOM, 3 * ROOM]),
    st.sampled_from([0, 0, 1, UNIT]),
)


@given(st.lists(SIZES, max_size=30), st.lists(STEPS, max_size=200))
def test_a_connection_whose_messages_have_room_is_never_endless(
    sizes: list[int], steps: list[tuple[str, int, int]]
) -> None:
    looked_at, line = Case(), Line(sizes)
    for step, size, unsure in steps:
        match step:
            case "send":
                line.send(size)
            case "take in":
                line.take_in(size)
            case "flush":
                line.flush()
            case "read":
                line.read(looked_at)
            case "look":
                least, most = max(0, line.taken - unsure), line.taken + unsure
                if looked_at.guard.is_notable(looked_at.one, line.sent) and looked_at.weigh(
                    least, most
                ):
                    line.read(looked_at)
                    assert not looked_at.is_endless()


@given(
    st.lists(SIZES, max_size=5),
    st.lists(st.tuples(st.sampled_from([1, UNIT, 3 * ROOM]), st.booleans()), max_size=30),
)
def test_a_message_without_end_is_found_whatever_came_before(
    sizes: list[int], steps: list[tuple[int, bool]]
) -> None:
    case, line = Case(), Line([*sizes, 10**9])
    for size, looks in [*steps, *([(UNIT, True)] * 200)]:
        line.send(size)
        line.take_in(size)
        line.read(case)
        if looks and case.look(line.taken):
            line.read(case)
            if case.is_endless():
                break
    else:
        raise AssertionError("it was never found")
    begun = sum(sizes)
    assert line.taken > begun + ROOM
