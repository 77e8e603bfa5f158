"""The memory of this process."""

from __future__ import annotations

import ctypes
import os

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_memory() -> int:
    """Bytes that this process has resident, after malloc has given back what is free."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:  # noqa: PTH123  # Path would allocate more
        return int(file.read().split()[1]) * PAGE
