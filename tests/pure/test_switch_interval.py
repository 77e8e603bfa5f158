"""The interpreter's switch interval while functions run for long."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from trioreq._server.switch_interval import INTERVAL, short_switch_interval


@pytest.fixture(autouse=True)
def _of_python() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    yield
    sys.setswitchinterval(before)


def test_it_is_short_from_the_first_holder_to_the_last() -> None:
    first, second = short_switch_interval(), short_switch_interval()
    first.__enter__()
    assert sys.getswitchinterval() == INTERVAL
    second.__enter__()
    first.__exit__(None, None, None)
    assert sys.getswitchinterval() == INTERVAL
    second.__exit__(None, None, None)
    assert sys.getswitchinterval() == 0.005
    with short_switch_interval():
        assert sys.getswitchinterval() == INTERVAL
    assert sys.getswitchinterval() == 0.005


def test_a_shorter_one_stays() -> None:
    sys.setswitchinterval(0.000125)
    with short_switch_interval():
        assert sys.getswitchinterval() == 0.000125
    assert sys.getswitchinterval() == 0.000125


def test_an_interval_that_the_program_sets_meanwhile_stays() -> None:
    with short_switch_interval():
        sys.setswitchinterval(0.001)
        with short_switch_interval():
            assert sys.getswitchinterval() == 0.001
    assert sys.getswitchinterval() == 0.001
