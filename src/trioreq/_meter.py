"""What the kernel counts: the memory of this process, and the bytes of a tcp connection.

Linux alone has these. Nothing here fails: what cannot be counted is 0.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import socket
import struct
import termios
from contextlib import suppress

BYTES_RECEIVED = 128  # its offset in struct tcp_info
COUNTER = struct.Struct("=Q")
TCP_INFO_SIZE = BYTES_RECEIVED + COUNTER.size

# By the number of the descriptor, which is not ours to wrap in an object; and with Python's lock
# kept, since this takes a microsecond, and to get the lock back can take thousands.
_getsockopt = ctypes.PyDLL(None).getsockopt


class Meter:
    """Reads the counters."""

    def __init__(self) -> None:
        self._info = ctypes.create_string_buffer(TCP_INFO_SIZE)
        self._size = ctypes.c_uint32()
        self._size_ref = ctypes.byref(self._size)

    def memory(self) -> int:
        """Bytes that this process has in memory."""
        with suppress(OSError), open("/proc/self/statm", "rb", buffering=0) as file:  # noqa: PTH123
            return int(file.read().split()[1]) * mmap.PAGESIZE
        return 0

    def received(self, descriptor: int) -> int:
        """Bytes that the kernel has received on a connection; 0 if it has no tcp connection."""
        self._size.value = TCP_INFO_SIZE
        failed = _getsockopt(
            descriptor, socket.IPPROTO_TCP, socket.TCP_INFO, self._info, self._size_ref
        )
        if failed or self._size.value < TCP_INFO_SIZE:
            return 0
        count: int = COUNTER.unpack_from(self._info, BYTES_RECEIVED)[0]
        return count

    def taken(self, descriptor: int) -> tuple[int, int]:
        """Of those, how many its owner has read: at the least and at the most, at one instant."""
        before = self.received(descriptor)
        unread = 0
        with suppress(OSError):
            unread = int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), "little")
        return before - unread, self.received(descriptor) - unread
