"""One spelling for each IP address. Pure."""

from __future__ import annotations

import pytest

from trioreq._protocol.addresses import canonical


@pytest.mark.parametrize(
    ("address", "one"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::FFFF:c000:0201", "192.0.2.1"),
        ("0:0:0:0:0:ffff:192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0::0001", "2001:db8::1"),
        ("::1", "::1"),
        ("fe80:0::1%eth0", "fe80::1%eth0"),
        ("::192.0.2.1", "::c000:201"),  # not a client of IPv4
        ("localhost:1000:1000:42", "localhost:1000:1000:42"),
        ("uid 1000", "uid 1000"),
        (r"\xff1", r"\xff1"),
        ("", ""),
    ],
)
def test_an_address_has_one_spelling(address: str, one: str) -> None:
    assert canonical(address) == one
    assert canonical(one) == one
