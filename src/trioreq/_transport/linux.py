"""What only the Linux kernel knows: whose connection a descriptor is, and what it has counted.

libzmq cannot close one connection of a bound ROUTER. The kernel can: after a shutdown(2), libzmq
reads the end of the stream and closes the connection as if the peer had. What must be certain is
whose descriptor it is; docs/design.md has the order of steps that makes it so.

On other systems connections are closed all the same. What only Linux tells is then not known.
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

LINUX: bool = sys.platform == "linux"  # elsewhere the calls are missing, or give something else
PEER_CREDENTIALS = struct.Struct("3i")  # process, user, group
BYTES_RECEIVED = 128  # its offset in struct tcp_info
COUNTER = struct.Struct("=Q")
TCP_INFO_SIZE = BYTES_RECEIVED + COUNTER.size

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
            if not LINUX:
                return "unknown uid"
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
        self._size.value = TCP_INFO_SIZE
        failed = _getsockopt(
            descriptor, socket.IPPROTO_TCP, socket.TCP_INFO, self._info, self._size_ref
        )
        if failed or self._size.value < TCP_INFO_SIZE:
            return 0
        count: int = COUNTER.unpack_from(self._info, BYTES_RECEIVED)[0]
        return count

    def read_by_owner(self, descriptor: int) -> tuple[int, int]:
        """Of those, how many the process has read: at least and at most, at one instant."""
        before = self.received(descriptor)
        unread = 0
        with suppress(OSError):
            unread = int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), "little")
        return before - unread, self.received(descriptor) - unread
