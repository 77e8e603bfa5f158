"""Whose message does not end: the rule, and a model of libzmq that tries it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioreq._protocol.message_guard import EXTRA, HEARTBEATS, NOTABLE, TURNS, Unfinished

SIZE = 1000
ROOM = SIZE + EXTRA
SMALL = ROOM // NOTABLE
ONE = 7  # a connection


def look(unfinished: Unfinished, count: int, now: float = 0.0, number: int = ONE) -> bool:
    """Look at a connection that has sent so much, all of which was taken in."""
    return unfinished.is_notable(number, count) and unfinished.weigh(number, count, count, now)


def ends(unfinished: Unfinished, *, number: int = ONE, dry: bool = True) -> bool:
    return unfinished.is_endless(number, 1, dry=dry)


def watched_from(start: int) -> Unfinished:
    unfinished = Unfinished(SIZE)
    assert not look(unfinished, start)
    assert set(unfinished.watched) == {ONE}
    return unfinished


def test_who_has_sent_little_is_not_watched() -> None:
    unfinished = Unfinished(SIZE)
    assert not look(unfinished, SMALL)
    assert not unfinished.watched


def test_one_message_without_end_is_found_out() -> None:
    unfinished = watched_from(SMALL + 1)
    start = SMALL + 1
    assert not look(unfinished, start + ROOM)
    assert not look(unfinished, start + ROOM + 1)  # marked
    assert not look(unfinished, start + ROOM + 1)  # it has not gone on
    assert look(unfinished, start + ROOM + 2)
    assert ends(unfinished)


def test_one_that_trickles_is_found_out() -> None:
    unfinished = Unfinished(SIZE)
    seconds = found = 0
    while not found:
        seconds += 1
        found = look(unfinished, seconds * 2 * HEARTBEATS, float(seconds))
        assert seconds * HEARTBEATS < ROOM + SMALL
    assert ends(unfinished)


def test_heartbeats_alone_are_no_message_without_end() -> None:
    unfinished = Unfinished(SIZE)
    for hours in range(24 * 365):
        assert not look(unfinished, hours * 3600 * HEARTBEATS, hours * 3600.0)


def test_who_is_heard_begins_anew() -> None:
    unfinished = watched_from(SMALL + 1)
    unfinished.heard([ONE])
    assert not unfinished.watched
    began = 10 * ROOM
    assert not look(unfinished, began)
    assert not look(unfinished, began + SMALL)
    assert not unfinished.watched
    assert not look(unfinished, began + SMALL + 1)
    assert unfinished.watched
    start = began + SMALL + 1
    assert not look(unfinished, start + ROOM + 1)
    assert look(unfinished, start + ROOM + 2)
    assert ends(unfinished)


def test_who_is_heard_between_the_look_and_the_end_stays() -> None:
    unfinished = watched_from(SMALL + 1)
    assert not look(unfinished, 2 * ROOM)
    assert look(unfinished, 3 * ROOM)
    unfinished.heard([1, ONE])
    assert not ends(unfinished)


def test_who_was_not_seen_to_go_on_is_not_asked_about() -> None:
    unfinished = watched_from(SMALL + 1)
    assert not look(unfinished, 2 * ROOM)
    assert not ends(unfinished)


def test_the_end_may_be_in_what_was_taken_in_last() -> None:
    """It is so if libzmq may not have taken in anything since the mark."""
    unfinished = watched_from(SMALL + 1)
    assert not unfinished.weigh(ONE, 2 * ROOM, 2 * ROOM + 9, 0.0)
    assert not unfinished.weigh(ONE, 2 * ROOM + 9, 2 * ROOM + 9, 0.0)
    assert unfinished.weigh(ONE, 2 * ROOM + 10, 2 * ROOM + 19, 0.0)


def test_where_there_is_always_more_to_read_each_has_had_its_turn() -> None:
    unfinished = watched_from(SMALL + 1)
    assert not look(unfinished, 2 * ROOM)
    assert look(unfinished, 3 * ROOM)
    assert not ends(unfinished, dry=False)
    unfinished.heard([1] * (TURNS + 1))
    assert not ends(unfinished, dry=False)
    assert look(unfinished, 3 * ROOM)  # still: the count goes on
    unfinished.heard([1])
    assert ends(unfinished, dry=False)


@pytest.mark.parametrize("heard", [False, True])
def test_nothing_is_kept_of_the_gone(heard: bool) -> None:
    unfinished = watched_from(SMALL + 1)
    if heard:
        unfinished.heard([ONE])
    unfinished.forget(ONE)
    assert not unfinished.watched
    assert not unfinished._began


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

    def read(self, unfinished: Unfinished) -> None:
        while self.ends and self.ends[0] <= self.handed_over:
            del self.ends[0]
            if unfinished.watched:
                unfinished.heard([ONE])


UNIT = ROOM // 8
SIZES = st.sampled_from([1, UNIT, 4 * UNIT, 8 * UNIT - 1, ROOM])
STEPS = st.tuples(
    st.sampled_from(["send", "take in", "flush", "read", "look"]),
    st.sampled_from([1, UNIT, 5 * UNIT, ROOM, 3 * ROOM]),
    st.sampled_from([0, 0, 1, UNIT]),
)


@given(st.lists(SIZES, max_size=30), st.lists(STEPS, max_size=200))
def test_nobody_is_ended_whose_messages_have_room(
    sizes: list[int], steps: list[tuple[str, int, int]]
) -> None:
    unfinished, line = Unfinished(SIZE), Line(sizes)
    for step, size, unsure in steps:
        match step:
            case "send":
                line.send(size)
            case "take in":
                line.take_in(size)
            case "flush":
                line.flush()
            case "read":
                line.read(unfinished)
            case "look":
                least, most = max(0, line.taken - unsure), line.taken + unsure
                if unfinished.is_notable(ONE, line.sent) and unfinished.weigh(ONE, least, most, 0):
                    line.read(unfinished)
                    assert not ends(unfinished)


@given(
    st.lists(SIZES, max_size=5),
    st.lists(st.tuples(st.sampled_from([1, UNIT, 3 * ROOM]), st.booleans()), max_size=30),
)
def test_a_message_without_end_is_found_out_whatever_came_before(
    sizes: list[int], steps: list[tuple[int, bool]]
) -> None:
    unfinished, line = Unfinished(SIZE), Line([*sizes, 10**9])
    for size, looks in [*steps, *([(UNIT, True)] * 200)]:
        line.send(size)
        line.take_in(size)
        line.read(unfinished)
        if looks and look(unfinished, line.taken):
            line.read(unfinished)
            if ends(unfinished):
                break
    else:
        raise AssertionError("it was never found out")
    begun = sum(sizes)
    assert line.taken > begun + ROOM
