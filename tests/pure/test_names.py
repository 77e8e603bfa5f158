"""The order in which addresses are tried, and what a host is. Pure."""

from __future__ import annotations

import pytest

from trioreq._transport import endpoints
from trioreq._transport.names import Host, in_order


@pytest.mark.parametrize(
    ("addresses", "order"),
    [
        ([], []),
        (["a:1", "a:2"], ["a:1", "a:2"]),
        (["1", "1", "2"], ["1", "2"]),
        (["a:1", "a:2", "3", "4"], ["a:1", "3", "a:2", "4"]),
        (["1", "2", "a:3"], ["1", "a:3", "2"]),
        (["1", "a:2", "3"], ["1", "a:2", "3"]),
    ],
)
def test_the_second_address_is_of_the_other_family(addresses: list[str], order: list[str]) -> None:
    assert in_order(addresses) == order


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        ("ipc:///run/socket", None),
        ("tcp://127.0.0.1:5555", Host("tcp://", "127.0.0.1", 5555)),
        ("tcp://db_1.test.:5555", Host("tcp://", "db_1.test.", 5555)),
        ("tcp://[::1]:5555", Host("tcp://", "::1", 5555)),
        ("tcp://[fe80::1%eth0]:5555", Host("tcp://", "fe80::1%eth0", 5555)),
        ("tcp://münchen.test:5555", Host("tcp://", "xn--mnchen-3ya.test", 5555)),
        ("tcp://eth0:0;host:5555", Host("tcp://eth0:0;", "host", 5555)),
        ("tcp://[::1]:0;[::2]:5555", Host("tcp://[::1]:0;", "::2", 5555)),
    ],
)
def test_the_host_of_an_endpoint(endpoint: str, host: Host | None) -> None:
    assert endpoints.check_client(endpoint) == host


def test_a_name_and_a_zone_are_looked_up() -> None:
    numeric = {
        name: Host("tcp://", name, 5555).is_numeric()
        for name in ("127.0.0.1", "::1", "fe80::1%eth0", "localhost", "127.1")
    }
    assert numeric == {
        "127.0.0.1": True,
        "::1": True,
        "fe80::1%eth0": False,
        "localhost": False,
        "127.1": False,
    }
