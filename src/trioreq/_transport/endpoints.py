"""Checks addresses before they are bound or connected to, and explains errors."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
import stat
from pathlib import Path

from .._errors import EndpointError
from .._protocol.addresses import canonical
from .names import Host

EXAMPLES = "'tcp://127.0.0.1:5555' or 'ipc:///run/my-service.sock'"

ANY_IPC = "ipc://*"  # a new path

MOST_PORT = 65535
MOST_PATH = 107  # bytes that the kernel has room for
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # what libzmq accepts as a name
SOURCE = re.compile(r"[A-Za-z0-9:\[][A-Za-z0-9.:%\[\]_-]*:([0-9]{1,5})")  # and to connect from

ADVICE = {
    errno.EADDRINUSE: "the address is in use: stop the other server, or choose another port",
    errno.EADDRNOTAVAIL: "this machine has no such address: use one of its own, or '*' for all",
    errno.ENODEV: "no such address or network interface: use an IP address, or '*'",
    errno.EINVAL: f"invalid address: write it as {EXAMPLES}",
    errno.EACCES: "permission denied: choose another address, or run as a user with the permission",
    errno.ENOENT: "no such directory: make it first",
    errno.ENOTDIR: "a part of the path is not a directory: choose another path",
    errno.ENAMETOOLONG: "the path is too long for a socket (107 bytes): choose a shorter one",
}


def check_client(endpoint: str) -> Host | None:
    """Refuse an address that no client can connect to, and that libzmq would retry endlessly.

    Returns:
        The host of a tcp endpoint; None for ipc.

    Raises:
        EndpointError: It cannot be connected to.
    """
    transport, separator, rest = endpoint.partition("://")
    if transport not in ("tcp", "ipc") or not separator or not rest or "\0" in rest:
        raise EndpointError(f"{endpoint!r} is not an address of a server: write it as {EXAMPLES}")
    size = _size(endpoint, rest)
    if transport == "ipc":
        if rest in ("*", "@"):
            raise EndpointError(f"{endpoint!r}: a client needs a path: write it as {EXAMPLES}")
        if size > MOST_PATH:
            raise EndpointError(f"cannot connect to {endpoint!r}: {ADVICE[errno.ENAMETOOLONG]}")
        return None
    source, semicolon, target = rest.rpartition(";")
    host, _, port = target.rpartition(":")
    if semicolon and not _is_source(source):
        raise EndpointError(
            f"{endpoint!r}: {source!r} is not an address to connect from: give one of this "
            "machine and a port, or port 0, as in 'tcp://192.0.2.1:0;host:5555'"
        )
    if not host or host == "*" or not port.isdecimal() or not 0 < int(port) <= MOST_PORT:
        raise EndpointError(
            f"{endpoint!r}: a client needs a host and a port: write it as {EXAMPLES}"
        )
    return Host(f"tcp://{source}{semicolon}", _check_host(endpoint, host), int(port))


def _size(addr: str, rest: str) -> int:
    """The bytes of what follows the transport, as libzmq takes it.

    Raises:
        EndpointError: It is not UTF-8.
    """
    try:
        return len(rest.encode())
    except UnicodeEncodeError:  # it comes from a command line with other bytes
        raise EndpointError(f"{addr!r} is not UTF-8: choose another address") from None


def _is_source(source: str) -> bool:
    """Whether libzmq can connect from there: an address or interface, and a port."""
    found = SOURCE.fullmatch(source)
    return found is not None and int(found[1]) <= MOST_PORT


def _check_host(endpoint: str, host: str) -> str:
    """The host without brackets, and in ASCII."""
    inner = host[1:-1]
    if host == f"[{inner}]":
        try:
            return str(ipaddress.IPv6Address(inner))
        except ValueError:
            raise EndpointError(f"{endpoint!r}: {inner!r} is not an IPv6 address") from None
    if ":" in host:
        raise EndpointError(
            f"{endpoint!r}: an IPv6 address needs brackets: write it as 'tcp://[::1]:5555'"
        )
    try:
        name = host.encode("idna").decode()
    except UnicodeError:
        name = ""
    if not NAME.fullmatch(name):
        raise EndpointError(f"{endpoint!r}: {host!r} is not the name of a host")
    return name


def check(addr: str) -> Path | None:
    """Refuse an address that cannot be served; libzmq's errors say less, or are missing.

    Returns:
        The path of the socket file that binding the address makes, if it makes one.

    Raises:
        EndpointError: It cannot be served.
    """
    transport, separator, rest = addr.partition("://")
    if not separator or not rest or "\0" in rest:
        raise EndpointError(f"{addr!r}: {ADVICE[errno.EINVAL]}")
    size = _size(addr, rest)
    if transport == "inproc":
        raise EndpointError(
            f"{addr!r}: inproc does not report disconnects, so it cannot be served; use ipc or tcp"
        )
    if transport not in ("tcp", "ipc"):
        raise EndpointError(f"{addr!r}: only tcp and ipc can be served: write it as {EXAMPLES}")
    if transport == "tcp":
        port = rest.rpartition(":")[2]
        if port != "*" and not (port.isdecimal() and int(port) <= MOST_PORT):  # libzmq wraps it
            raise EndpointError(f"{addr!r}: {port!r} is not a port: write it as {EXAMPLES}")
        return None
    if size > MOST_PATH:
        raise EndpointError(explain(addr, errno.ENAMETOOLONG))
    if rest.startswith("@"):  # an abstract name of Linux: there is no file to check
        return None
    path = Path(rest)
    _refuse_taken(addr, path)
    return path


def _refuse_taken(addr: str, path: Path) -> None:
    """Refuse a path that is in use: libzmq would take it over. A dead server's may be taken."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise EndpointError(explain(addr, error.errno)) from error
    if not stat.S_ISSOCK(mode):
        raise EndpointError(f"cannot bind {addr!r}: the file exists and is not a socket: move it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return  # nothing listens: its server is dead
        except BlockingIOError:
            pass  # a server listens, and its backlog is full
        except OSError as error:
            raise EndpointError(explain(addr, error.errno)) from error
    raise EndpointError(f"cannot bind {addr!r}: {ADVICE[errno.EADDRINUSE]}")


def is_exposed(endpoint: str) -> bool:
    """Whether a bound address can be reached from other machines."""
    transport, _, rest = endpoint.partition("://")
    if transport != "tcp":
        return False
    try:
        address = ipaddress.ip_address(_host(rest))
    except ValueError:
        return True
    return not address.is_loopback


def is_ipv6(addr: str) -> bool:
    """Whether an address of tcp names an IPv6 address."""
    transport, _, rest = addr.partition("://")
    return transport == "tcp" and ":" in _host(rest)


def bound(endpoint: str) -> str:
    """The one spelling of an endpoint that libzmq has bound; see `canonical`."""
    transport, _, rest = endpoint.partition("://")
    if transport != "tcp":
        return endpoint
    host = canonical(_host(rest))
    port = rest.rpartition(":")[2]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def of_socket(listener: socket.socket) -> str:
    """The endpoint of a socket that listens."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        if isinstance(name, bytes):  # a name without a file begins with a zero byte
            return f"ipc://@{os.fsdecode(name[1:])}"
        return f"ipc://{name}"
    host, port = name[:2]
    return (
        f"tcp://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"tcp://{host}:{port}"
    )


def _host(rest: str) -> str:
    """The host in what follows ``tcp://``."""
    return rest.rpartition(":")[0].removeprefix("[").removesuffix("]")


def explain(addr: str, number: int | None) -> str:
    """Why binding failed, and what to do."""
    return f"cannot bind {addr!r}: {reason(number)}"


def reason(number: int | None) -> str:
    """What an error number means here, and what to do."""
    return ADVICE.get(number or 0) or os.strerror(number or 0)


class BoundFile:
    """The socket file of a bound ipc endpoint. libzmq leaves it behind."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._identity = self._identify()

    def remove(self) -> None:
        """Remove it, unless it is another server's by now."""
        if self._identity is not None and self._identify() == self._identity:
            self._path.unlink(missing_ok=True)

    def _identify(self) -> tuple[int, int] | None:
        try:
            status = self._path.lstat()
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino
