"""What only the Linux kernel knows: whose connection a descriptor is, and what it has counted.

libzmq cannot close one connection of a bound ROUTER. The kernel can: after a shutdown(2), libzmq
reads the end of the stream and closes the connection as if the peer had. What must be certain is
whose descriptor it is; docs/design.md has the order of steps that makes it so.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import socket
import struct
import sys
import termios
from contextlib import suppress

PEER_CREDENTIALS = struct.Struct("3i")  # process, user, group
BYTES_RECEIVED = 128  # offsets in struct tcp_info
NOT_SENT = 144
BYTES_SENT = 200  # and behind it, how many of those were sent again
COUNTER = struct.Struct("=Q")
WAITING = struct.Struct("=I")
TCP_INFO_SIZE = BYTES_SENT + 2 * COUNTER.size

# By the number of the descriptor, which is not ours to wrap in an object; and with the GIL kept:
# the call takes a microsecond, and to get the GIL back can take thousands.
_getsockopt = ctypes.PyDLL(None).getsockopt


class DuplicatedConnection:
    """The connection that has a descriptor now, whoever has its number later."""

    def __init__(self, duplicate: socket.socket) -> None:
        self._socket = duplicate

    @property
    def address(self) -> str:
        """The peer's IP address, or the user that it runs as on this machine (ipc)."""
        if self._socket.family == socket.AF_UNIX:
            credentials = self._socket.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS.size
            )
            return f"uid {PEER_CREDENTIALS.unpack(credentials)[1]}"
        try:
            address: str = self._socket.getpeername()[0]
        except OSError:  # it is disconnected already
            return ""
        return address

    def shut_down(self) -> None:
        """Close the connection, in both directions."""
        with suppress(OSError):  # the peer was faster
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the duplicate; the connection lives on."""
        self._socket.close()


def duplicate(descriptor: int) -> DuplicatedConnection | None:
    """Duplicate a descriptor; None if it is not that of a socket."""
    try:
        own = os.dup(descriptor)
    except OSError:
        return None
    try:
        return DuplicatedConnection(socket.socket(fileno=own))
    except OSError:
        os.close(own)
        return None


class KernelCounters:
    """The memory of this process, and the bytes of a tcp connection.

    Nothing here fails: what the kernel does not count is 0.
    """

    def __init__(self) -> None:
        self._info = ctypes.create_string_buffer(TCP_INFO_SIZE)
        self._size = ctypes.c_uint32()
        self._size_ref = ctypes.byref(self._size)

    def memory(self) -> int:
        """Bytes of memory that this process has resident."""
        with suppress(OSError), open("/proc/self/statm", "rb", buffering=0) as file:  # noqa: PTH123
            return int(file.read().split()[1]) * mmap.PAGESIZE
        return 0

    def received(self, descriptor: int) -> int:
        """Bytes that the kernel has received on a tcp connection; 0 if it is not one."""
        if self._read_info(descriptor) < BYTES_RECEIVED + COUNTER.size:
            return 0
        return self._counter(BYTES_RECEIVED)

    def traffic(self, descriptor: int) -> tuple[int, int] | None:
        """Bytes that the process has read from a tcp connection, and written to it.

        Returns:
            Both at one instant. None if not all that has come is read, or if they are not counted:
            before Linux 4.19, and if it is not a tcp connection.
        """
        if self._unread(descriptor) or self._read_info(descriptor) < TCP_INFO_SIZE:
            return None
        again = self._counter(BYTES_SENT + COUNTER.size)
        waiting: int = WAITING.unpack_from(self._info, NOT_SENT)[0]
        return self._counter(BYTES_RECEIVED), self._counter(BYTES_SENT) - again + waiting

    def _read_info(self, descriptor: int) -> int:
        """Have the kernel fill in its struct tcp_info; returns how much of it there is."""
        self._size.value = TCP_INFO_SIZE
        failed = _getsockopt(
            descriptor, socket.IPPROTO_TCP, socket.TCP_INFO, self._info, self._size_ref
        )
        return 0 if failed else self._size.value

    def _counter(self, offset: int) -> int:
        count: int = COUNTER.unpack_from(self._info, offset)[0]
        return count

    def _unread(self, descriptor: int) -> int:
        """Bytes that have come and were not read."""
        with suppress(OSError):
            unread = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
            return int.from_bytes(unread, sys.byteorder)
        return 0

    def read_by_owner(self, descriptor: int) -> tuple[int, int]:
        """Of those, how many the process has read: at least and at most, at one instant."""
        before = self.received(descriptor)
        unread = self._unread(descriptor)
        return before - unread, self.received(descriptor) - unread
