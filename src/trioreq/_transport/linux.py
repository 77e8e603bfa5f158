"""Linux only: the connection of a descriptor, and the kernel's counters.

libzmq cannot close one connection of a bound ROUTER. The kernel can: after a shutdown(2), libzmq
reads the end of the stream and closes the connection as if the peer had. It must be certain which
connection has the descriptor; docs/design.md has the order of steps for that.

On other systems connections are closed in the same way. The information that only Linux has is
unknown.
"""

from __future__ import annotations

import ctypes
import fcntl
import math
import mmap
import os
import platform
import re
import select
import socket
import struct
import sys
import termios
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .._protocol.addresses import canonical

NUMERIC = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
LINUX: bool = sys.platform == "linux"  # elsewhere the calls are missing or differ
SO_BINDTOIFINDEX = 62
EPOLL_CTL_MOD = 3
# Which events, and libzmq's own data; packed on one architecture alone.
EPOLL_EVENT = struct.Struct("=IQ" if platform.machine() == "x86_64" else "@IQ")
NO_INTERFACE = 2**31 - 1  # the largest index, which no interface has
PEER_CREDENTIALS = struct.Struct("3i")  # process, user, group
LAST_DATA_RECEIVED, BYTES_ACKNOWLEDGED, BYTES_RECEIVED = 52, 120, 128  # in struct tcp_info
NOT_SENT, BYTES_SENT, BYTES_SENT_AGAIN = 144, 200, 208
UINT32, COUNTER = struct.Struct("=I"), struct.Struct("=Q")
TCP_INFO_SIZE = BYTES_SENT_AGAIN + COUNTER.size

# With the number of the descriptor: a socket object would close it. PyDLL keeps the GIL: the call
# takes a microsecond, and getting the GIL back can take thousands.
_getsockopt = ctypes.PyDLL(None).getsockopt
_epoll_ctl = ctypes.CDLL(None).epoll_ctl if LINUX else None


@dataclass(frozen=True, slots=True)
class Signs:
    """The state of a connection that libzmq has closed. None for what is unknown.

    Attributes:
        peer_ended: Whether the peer has ended it.
        handshake: Whether the handshake was complete.
        silent: Whether nothing has arrived for the timeout of a heartbeat.
    """

    peer_ended: bool
    handshake: bool | None
    silent: bool | None


class Duplicates:
    """Duplicates descriptors: one at a time also if the process has as many open as it may.

    Attributes:
        spare: The descriptor that is reserved for this; None after `close`.
    """

    def __init__(self) -> None:
        self._placeholder, spare = os.pipe()  # two descriptors, or none
        self.spare: int | None = spare
        self._is_spare_free = True

    def duplicate(self, descriptor: int) -> int:
        """Return a duplicate, which must be given to `release`.

        Raises:
            OSError: It is not open. Or no descriptor is free, and the spare one is in use.
        """
        try:
            return os.dup(descriptor)
        except OSError:
            if self.spare is None or not self._is_spare_free:
                raise
        os.dup2(descriptor, self.spare, inheritable=False)
        self._is_spare_free = False
        return self.spare

    def release(self, duplicate: int) -> None:
        """Close a duplicate."""
        if duplicate == self.spare:
            os.dup2(self._placeholder, duplicate, inheritable=False)
            self._is_spare_free = True
        else:
            os.close(duplicate)

    def close(self) -> None:
        """Reserve no descriptor any more."""
        if self.spare is not None:
            os.close(self._placeholder)
            os.close(self.spare)
            self.spare = None


class DuplicatedConnection:
    """A connection, held by a duplicate of its descriptor, whose number may be reused.

    Args:
        duplicate: The duplicate.
        duplicates: Releases it.
        handshake: Bytes that this side has sent when the handshake is complete.
        patience: The timeout of a heartbeat, in seconds.

    Attributes:
        descriptor: The duplicate's own. The spare one counts as the highest of all, since no other
            was free.
    """

    __slots__ = ("_duplicates", "_handshake", "_patience", "_socket", "descriptor")

    def __init__(
        self, duplicate: socket.socket, duplicates: Duplicates, handshake: int, patience: float
    ) -> None:
        number = duplicate.fileno()
        self.descriptor = sys.maxsize if number == duplicates.spare else number
        self._socket = duplicate
        self._duplicates = duplicates
        self._handshake = handshake
        self._patience = patience

    @property
    def address(self) -> str:
        """The peer's IP address, or the user that it runs as on this machine (ipc)."""
        if self._socket.family == socket.AF_UNIX:
            if not LINUX:
                return "unknown uid"
            credentials = self._socket.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS.size
            )
            return f"uid {PEER_CREDENTIALS.unpack(credentials)[1]}"
        try:  # as libzmq does, which includes the zone of a link-local address
            host, _ = socket.getnameinfo(self._socket.getpeername(), NUMERIC)
        except OSError:  # it is disconnected already
            return ""
        return canonical(host)

    def shut_down(self) -> None:
        """Close the connection, in both directions."""
        with suppress(OSError):  # the peer has closed it
            self._socket.shutdown(socket.SHUT_RDWR)

    def signs(self) -> Signs:
        """How it has ended, after libzmq has reported its disconnect."""
        if not LINUX:  # it counts as ended by the peer, which is not logged
            return Signs(peer_ended=True, handshake=None, silent=None)
        ended = select.poll()
        ended.register(self._socket, select.POLLRDHUP)
        if ended.poll(0):
            return Signs(peer_ended=True, handshake=None, silent=None)
        if self._socket.family == socket.AF_UNIX:  # for which the kernel has no counters
            silent = None if self._patience < math.inf else False
            return Signs(peer_ended=False, handshake=None, silent=silent)
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
        (silence,) = UINT32.unpack_from(info, LAST_DATA_RECEIVED)
        (acknowledged,) = COUNTER.unpack_from(info, BYTES_ACKNOWLEDGED)
        return Signs(
            peer_ended=False,
            handshake=acknowledged >= self._handshake,
            silent=silence / 1000 >= self._patience,
        )

    def close(self) -> None:
        """Close the duplicate. The connection stays open while libzmq has it."""
        self._duplicates.release(self._socket.detach())


def hold(
    descriptor: int, duplicates: Duplicates, handshake: int, patience: float
) -> DuplicatedConnection | None:
    """Hold a connection; None if the descriptor is not that of a socket.

    See `DuplicatedConnection` for the arguments.
    """
    try:
        own = duplicates.duplicate(descriptor)
    except OSError:
        return None
    try:
        return DuplicatedConnection(socket.socket(fileno=own), duplicates, handshake, patience)
    except OSError:
        duplicates.release(own)
        return None


def refuse_connections(listener: int) -> None:
    """Make the kernel refuse connections to a listening tcp socket.

    libzmq cannot stop accepting: unbinding closes the connections that it has accepted, and it
    aborts if its listener is closed or shut down from outside. So the listener is bound to a
    network interface that does not exist. Then no packet matches it, and the kernel answers as if
    there were no listener. This needs no privilege. Accepted connections are not affected.
    """
    if not LINUX:
        return
    with suppress(OSError), socket.socket(fileno=os.dup(listener)) as own:  # an old kernel, or ipc
        own.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, NO_INTERFACE)


def ignore_connections(listeners: Sequence[int]) -> bool:
    """Let libzmq accept no more of sockets that listen, and leave them to other processes.

    The sockets are shared: to bind one to another interface, or to close it, would refuse
    connections to all processes, and to those that have it later. libzmq cannot stop accepting by
    itself, and aborts if what it watches is not registered when it closes it. So the listeners stay
    registered with libzmq's epoll instance, for no event.

    Returns:
        Whether the system can do it: it needs Linux and its /proc. Otherwise all is as before.

    Raises:
        OSError: No descriptor is free. Then all is as before.
    """
    if _epoll_ctl is None:
        return False
    found = [_registration(listener) for listener in listeners]
    registrations = [one for one in found if one is not None]
    if len(registrations) < len(found):
        return False
    return not any(
        _epoll_ctl(epoll, EPOLL_CTL_MOD, listener, EPOLL_EVENT.pack(0, data))
        for listener, (epoll, data) in zip(listeners, registrations, strict=True)
    )


def _registration(listener: int) -> tuple[int, int] | None:
    """The epoll instance that a descriptor is registered with, and its data there."""
    found = re.compile(rf"^tfd:\s+{listener}\s+events:\s+\w+\s+data:\s+(\w+)", re.MULTILINE)
    with suppress(FileNotFoundError):  # there is no /proc
        for name in os.listdir("/proc/self/fdinfo"):  # noqa: PTH208  # names are enough
            with suppress(FileNotFoundError):  # it is closed meanwhile
                info = found.search(Path(f"/proc/self/fdinfo/{name}").read_text())
                if info is not None:
                    return int(name), int(info[1], 16)
    return None


class KernelCounters:
    """The memory of this process, and the bytes of a tcp connection.

    No method fails. Counters that the kernel does not have are 0.
    """

    def __init__(self) -> None:
        self._info = ctypes.create_string_buffer(TCP_INFO_SIZE)
        self._size = ctypes.c_uint32()
        self._size_ref = ctypes.byref(self._size)

    def memory(self) -> int:
        """Bytes of resident memory of this process."""
        with suppress(OSError), open("/proc/self/statm", "rb", buffering=0) as file:  # noqa: PTH123
            return int(file.read().split()[1]) * mmap.PAGESIZE
        return 0

    def received(self, descriptor: int) -> int:
        """Bytes that the kernel has received on a tcp connection; 0 if it is not one."""
        return self._count(descriptor, BYTES_RECEIVED)

    def acked(self, descriptor: int) -> int:
        """Bytes that the peer's system has acknowledged on a tcp connection; 0 if it is not one."""
        return self._count(descriptor, BYTES_ACKNOWLEDGED)

    def traffic(self, descriptor: int) -> tuple[int, int] | None:
        """Bytes that the process has read from a tcp connection, and written to it.

        Returns:
            Both at one instant. None if bytes are unread, or without the counters: before Linux
            4.19, or if it is not a tcp connection.
        """
        if self._unread(descriptor) or self._read_info(descriptor) < TCP_INFO_SIZE:
            return None
        waiting: int = UINT32.unpack_from(self._info, NOT_SENT)[0]
        written = self._counter(BYTES_SENT) - self._counter(BYTES_SENT_AGAIN) + waiting
        return self._counter(BYTES_RECEIVED), written

    def _count(self, descriptor: int, offset: int) -> int:
        if self._read_info(descriptor) < offset + COUNTER.size:
            return 0
        return self._counter(offset)

    def _read_info(self, descriptor: int) -> int:
        """Read the kernel's struct tcp_info; returns its size."""
        self._size.value = TCP_INFO_SIZE
        failed = _getsockopt(
            descriptor, socket.IPPROTO_TCP, socket.TCP_INFO, self._info, self._size_ref
        )
        return 0 if failed else self._size.value

    def _counter(self, offset: int) -> int:
        count: int = COUNTER.unpack_from(self._info, offset)[0]
        return count

    def _unread(self, descriptor: int) -> int:
        """Bytes that have arrived and were not read."""
        with suppress(OSError):
            unread = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
            return int.from_bytes(unread, sys.byteorder)
        return 0

    def read_by_owner(self, descriptor: int) -> tuple[int, int]:
        """Received bytes that the process has read: at least and at most, at one instant."""
        before = self.received(descriptor)
        unread = self._unread(descriptor)
        return before - unread, self.received(descriptor) - unread
