"""The table of the ways in which a request ends: statistics, log and wire agree. Pure."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from trioreq import CancelReason, Code, Statistics
from trioreq._protocol import endings
from trioreq._protocol.endings import ENDINGS, OTHER_STATUS, Ending, status_of

PROTOCOL = (Path(__file__).parents[2] / "docs/protocol.md").read_text()


def test_every_ending_is_in_the_table_once() -> None:
    named = [value for value in vars(endings).values() if isinstance(value, Ending)]
    assert len(ENDINGS) == len(set(ENDINGS)) == len(named)
    assert set(ENDINGS) == set(named)


def test_the_outcomes_are_those_that_the_statistics_add_up() -> None:
    equation = (Statistics.__doc__ or "").partition("=")[2]
    summands = set(re.findall(r"``(\w+)``", equation)) - {"in_flight"}
    assert {ending.outcome for ending in ENDINGS} == summands
    assert summands < {field.name for field in fields(Statistics)}


def test_every_code_is_of_one_ending_and_has_a_status_of_its_own() -> None:
    """But for what was not started: plain clients get the same code, and others a status."""
    with_code = [ending for ending in ENDINGS if ending.code is not None]
    assert sorted(e.code or "" for e in with_code if e is not endings.SHUT_OUT) == sorted(Code)
    statuses = [ending.status for ending in with_code]
    assert len(set(statuses)) == len(statuses)
    assert not {0, 5, OTHER_STATUS} & set(statuses)
    for ending in with_code:
        assert ending.code is not None
        assert ending.text
        handlers = endings.SHUT_DOWN if ending is endings.SHUT_OUT else ending
        assert status_of(ending.code) == handlers.status


def test_the_statuses_are_those_of_the_protocol() -> None:
    table = {
        (code, int(status)) for code, status in re.findall(r"\| `([\w-]+)` \| (\d+) \|", PROTOCOL)
    }
    assert table == {(ending.code, ending.status) for ending in ENDINGS if ending.code is not None}


def test_an_ending_without_a_code_sends_nothing() -> None:
    for ending in ENDINGS:
        if ending.code is None:
            assert (ending.status, ending.text) == (0, "")


def test_a_code_of_the_handlers_own_has_the_other_status() -> None:
    assert status_of("not-found") == OTHER_STATUS


def test_every_reason_to_cancel_is_of_an_ending_and_the_log_says_which() -> None:
    assert {ending.reason for ending in ENDINGS} == {None, *CancelReason}
    assert len({ending.log for ending in ENDINGS}) == len(ENDINGS)
