"""One spelling for each IP address.

An IPv4 client of an IPv6 socket has an address such as ``::ffff:192.0.2.1``. Limits, `admit` and
the log must treat it as 192.0.2.1.
"""

from __future__ import annotations

import ipaddress


def canonical(address: str) -> str:
    """The one spelling of an IP address: IPv4 as such, IPv6 as in RFC 5952, with its zone.

    Another address, such as ``localhost:uid:gid:pid`` of ipc, is returned unchanged.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return str(mapped or ip)
