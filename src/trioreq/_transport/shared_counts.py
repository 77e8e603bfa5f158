"""The connections of the processes of one server: counted in shared memory, and shared out.

Each process counts its own connections in a cell that it alone writes. So nothing is locked, and a
process that is killed or stopped holds up no other.

With a listener for each process at one address (SO_REUSEPORT), a program in the kernel chooses the
listener of a new connection. It draws among the processes, and those with fewer connections have a
larger share, so that all have as many soon. It is a classic BPF program, which needs no privilege.
Where the system does not allow it, the kernel chooses by a hash of the addresses.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import socket
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

SO_ATTACH_REUSEPORT_CBPF: Final = 51
WHOLE: Final = 2**16  # what all shares add up to
LOAD_RANDOM: Final = (0x20, 0, 0, 0xFFFFF000 + 56)  # BPF_LD | BPF_W | BPF_ABS, SKF_AD_RANDOM
CUT: Final = (0x54, 0, 0, WHOLE - 1)  # BPF_ALU | BPF_AND
IF_AT_LEAST, RETURN = 0x35, 0x06
INSTRUCTION: Final = struct.Struct("=HBBI")
PROGRAM: Final = struct.Struct("@HP")
NONE: Final = -1
RECENT: Final = 0.2  # seconds
BURST: Final = 32  # connections that come recently, above which parts differ less
CHANGE: Final = WHOLE // 20  # what a share must change by, since a new program takes 0.2 ms


class SharedCounts:
    """The cells of all processes, as one of them or their supervisor has them.

    Args:
        memory: A descriptor of the memory; see `open_memory`.
        places: How many processes there are at a time.
        own: The cell of this process.
        listeners: One socket of each address that has a listener for each process.
    """

    def __init__(
        self, memory: int, places: int, own: int, listeners: Sequence[socket.socket]
    ) -> None:
        cells = memoryview(mmap.mmap(memory, 0)).cast("q")
        number = (len(cells) - 2 * places) // 2
        self._shares = cells[:places]  # of new connections, by place
        self._serving = cells[places : 2 * places]  # the cell of the process at a place
        self._counts = cells[2 * places : 2 * places + number]  # connections, by cell
        self._accepted = cells[2 * places + number :]  # all that there were, by cell
        self._own = own
        self._listeners = listeners
        self._recent = 0.0
        self._seen = (time.monotonic(), 0)

    def add(self, change: int) -> int:
        """Count a change of this process; returns how many connections there are in all."""
        self._counts[self._own] += change
        self._accepted[self._own] += max(change, 0)
        self.steer()
        return sum(self._counts)

    def clear(self, cell: int) -> None:
        """The process of a cell has ended."""
        self._counts[cell] = 0

    def choose(self, place: int, cell: int = NONE) -> None:
        """Have new connections go to the process of a cell at a place, or to none there."""
        self._serving[place] = cell
        self.steer()

    def steer(self) -> None:
        """Share out new connections."""
        if not self._listeners:
            return
        counts = {
            place: self._counts[cell] for place, cell in enumerate(self._serving) if cell != NONE
        }
        if not counts:
            return
        found = shares(counts, self._accepted_recently())
        new = [found.get(place, 0) for place in range(len(self._serving))]
        if any(
            abs(one - before) > CHANGE or (one == 0) != (before == 0)
            for one, before in zip(new, self._shares, strict=True)
        ):
            for place, share in enumerate(new):
                self._shares[place] = share
            self._attach(program(found))

    def _accepted_recently(self) -> float:
        """How many connections all processes have accepted; the longer ago, the less it counts."""
        now, accepted = time.monotonic(), sum(self._accepted)
        then, before = self._seen
        self._seen = now, accepted
        self._recent = self._recent * math.exp((then - now) / RECENT) + accepted - before
        return self._recent

    def _attach(self, code: bytes) -> None:
        buffer = ctypes.create_string_buffer(code)
        value = PROGRAM.pack(len(code) // INSTRUCTION.size, ctypes.addressof(buffer))
        try:
            for listener in self._listeners:
                listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, value)
        except OSError:  # the kernel chooses by itself
            self._listeners = ()


def shares(counts: Mapping[int, int], recent: float) -> dict[int, int]:
    """What part of the new connections each process gets.

    After as many as have come recently, all processes are to have as many. In a burst a process
    is late in counting, and seems to have fewer than it has: so the more connections come, the less
    the parts differ.

    Args:
        counts: The connections of each.
        recent: How many connections have come recently.

    Returns:
        The parts of `WHOLE`.
    """
    fair = 1 / len(counts)
    mean = sum(counts.values()) * fair
    recent = max(recent, 1.0)
    most = fair * min(BURST / recent, 1)
    wanted = {
        place: fair + min(max((mean - count) / recent, -most), most)
        for place, count in counts.items()
    }
    total = sum(wanted.values())
    return {place: round(WHOLE * share / total) for place, share in wanted.items()}


def program(found: Mapping[int, int]) -> bytes:
    """A program that draws a place; each is drawn as often as its share says."""
    code: list[Iterable[int]] = [LOAD_RANDOM, CUT]
    limit = 0
    last = 0
    for place, share in found.items():
        if share:
            limit += share
            last = place
            code += [(IF_AT_LEAST, 1, 0, limit), (RETURN, 0, 0, place)]
    code.append((RETURN, 0, 0, last))  # what was rounded off
    return b"".join(INSTRUCTION.pack(*one) for one in code)


def open_memory(places: int, cells: int) -> int:
    """Make the memory that the processes share; returns a descriptor of it."""
    memory = os.memfd_create("trioreq")
    values = [0] * places + [NONE] * places + [0] * 2 * cells
    os.write(memory, struct.pack(f"={len(values)}q", *values))
    return memory
