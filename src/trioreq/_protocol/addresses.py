"""One spelling for each IP address.

A client of IPv4 that reaches a socket of IPv6 has an address such as ``::ffff:192.0.2.1``. It is
the same client as 192.0.2.1, and counts as such for limits, for `admit` and in the log.
"""

from __future__ import annotations

import ipaddress


def canonical(address: str) -> str:
    """The one spelling of an IP address: IPv4 as such, IPv6 as RFC 5952 has it, with its zone.

    What is not an IP address, such as ``localhost:uid:gid:pid`` of ipc, stays as it is.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return str(mapped or ip)
