"""The numeric addresses of a server whose endpoint has a host name.

libzmq resolves names in its I/O thread: a name server that does not answer blocks all sockets of
the Context, and its termination. It asks for addresses of one family, and uses only the first. So
libzmq gets numeric addresses, and names are resolved here, in threads that can be abandoned.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from functools import partial
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

import trio

LOOKUPS: Final = 16  # at a time, including abandoned ones: each has a thread until it ends
MISSING: Final = {socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY}

_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("trioreq.lookups")


class Host(NamedTuple):
    """The host of a client's tcp endpoint.

    Attributes:
        before: The part before it: the transport, and the source address if there is one.
        name: A name, or an address without its brackets.
        port: The port.
    """

    before: str
    name: str
    port: int

    def is_numeric(self) -> bool:
        """Whether it is numeric. A zone, as in ``fe80::1%eth0``, must be resolved."""
        try:
            return getattr(ip_address(self.name), "scope_id", None) is None
        except ValueError:
            return False

    def endpoint(self, address: str) -> str:
        """The endpoint with an address instead of the name."""
        return f"{self.before}{f'[{address}]' if ':' in address else address}:{self.port}"


class LookupFailed(Exception):
    """A name has no address; the message says why and what to check."""


async def look_up(host: Host) -> list[str]:
    """Resolve a host.

    Returns:
        An endpoint for each of its addresses, in the order in which to try them.

    Raises:
        LookupFailed: It has no address.
    """
    if host.is_numeric():
        return [host.endpoint(host.name)]
    look = partial(socket.getaddrinfo, host.name, host.port, type=socket.SOCK_STREAM)
    try:
        found = await trio.to_thread.run_sync(look, abandon_on_cancel=True, limiter=_lookups())
    except socket.gaierror as error:
        raise LookupFailed(_reason(host, error)) from error
    except (OSError, RuntimeError) as error:  # no descriptor is free, or no thread can be started
        raise LookupFailed(f"the name {host.name!r} cannot be looked up: {error}") from error
    addresses = (address for *_, address in found)
    return [host.endpoint(address) for address in in_order(map(_with_zone, addresses))]


def in_order(addresses: Iterable[str]) -> list[str]:
    """The order in which to try addresses, by RFC 8305 (Happy Eyeballs).

    It is the system's order (RFC 6724), which normally begins with all addresses of one family; but
    the second is moved up from the other family, which may be the one that works.
    """
    ordered = list(dict.fromkeys(addresses))
    for index, address in enumerate(ordered):
        if (":" in address) is not (":" in ordered[0]):
            ordered.insert(1, ordered.pop(index))
            break
    return ordered


def _with_zone(address: tuple[Any, ...]) -> str:
    """The address in a socket address of `socket.getaddrinfo`."""
    numeric, _, *rest = address
    return f"{numeric}%{rest[1]}" if rest and rest[1] else str(numeric)


def _lookups() -> trio.CapacityLimiter:
    """The limiter of all lookups of this run of trio."""
    try:
        return _limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(LOOKUPS)
        _limiter.set(limiter)
        return limiter


def _reason(host: Host, error: socket.gaierror) -> str:
    if error.errno in MISSING:
        return f"the name {host.name!r} does not exist ({error.strerror}): is it spelled right?"
    return (
        f"the name {host.name!r} cannot be looked up ({error.strerror}): "
        "does the name server answer?"
    )
