"""The connections of the processes of one server: counted in shared memory, and shared out.

Each process counts its own connections in a cell that it alone writes. So nothing is locked, and a
process that is killed or stopped holds up no other.

With a listener for each process at one address (SO_REUSEPORT), a program in the kernel chooses the
listener of a new connection. It chooses at random among the processes with the fewest connections,
and is replaced when others have the fewest. It is a classic BPF program, which needs no privilege.
Where the system does not allow it, the kernel chooses by a hash of the address.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from typing import Final

SO_ATTACH_REUSEPORT_CBPF: Final = 51
LOAD_RANDOM: Final = (0x20, 0, 0, 0xFFFFF000 + 56)  # BPF_LD | BPF_W | BPF_ABS, SKF_AD_RANDOM
MODULO, IF_EQUAL, RETURN = 0x94, 0x15, 0x06
INSTRUCTION: Final = struct.Struct("=HBBI")
PROGRAM: Final = struct.Struct("@HP")
CELL: Final = 8  # bytes
NOBODY: Final = -1
SLACK: Final = 50  # one part in so many by which processes may differ


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
        self._cells = memoryview(mmap.mmap(memory, 0)).cast("q")
        self._places = places
        self._own = self._cell(own)
        self._listeners = listeners

    def _cell(self, cell: int) -> int:
        """Where a cell is: behind the set that was chosen last, and the cell of each place."""
        return 1 + self._places + cell

    def add(self, change: int) -> int:
        """Count a change of this process; returns how many connections there are in all."""
        self._cells[self._own] += change
        self.steer()
        return sum(self._cells[1 + self._places :])

    def clear(self, cell: int) -> None:
        """The process of a cell has ended."""
        self._cells[self._cell(cell)] = 0

    def count(self, cell: int) -> int:
        """The connections of a process."""
        return self._cells[self._cell(cell)]

    def choose(self, place: int, cell: int = NOBODY) -> None:
        """Have new connections go to the process of a cell at a place, or to none there."""
        self._cells[1 + place] = cell
        self.steer()

    def steer(self) -> None:
        """Let new connections go to the processes that have the fewest."""
        counts = {}
        for place, cell in enumerate(self._cells[1 : 1 + self._places]):
            if cell != NOBODY:
                counts[place] = self._cells[self._cell(cell)]
        if not counts or not self._listeners:
            return
        least = min(counts.values())
        most = least + 1 + least // SLACK
        fewest = [place for place, count in counts.items() if count <= most]
        chosen = sum(1 << place for place in fewest)
        if chosen != self._cells[0]:
            self._cells[0] = chosen
            self._attach(fewest)

    def _attach(self, places: Sequence[int]) -> None:
        code = program(places)
        buffer = ctypes.create_string_buffer(code)
        length = len(code) // INSTRUCTION.size
        for listener in self._listeners:
            try:
                listener.setsockopt(
                    socket.SOL_SOCKET,
                    SO_ATTACH_REUSEPORT_CBPF,
                    PROGRAM.pack(length, ctypes.addressof(buffer)),
                )
            except OSError:  # the kernel chooses by itself
                self._listeners = ()
                return


def program(places: Sequence[int]) -> bytes:
    """A program that returns one of some numbers, at random."""
    code = [LOAD_RANDOM, (MODULO, 0, 0, len(places))]
    for number, place in enumerate(places):
        code += [(IF_EQUAL, 0, 1, number), (RETURN, 0, 0, place)]
    code.append((RETURN, 0, 0, places[0]))
    return b"".join(INSTRUCTION.pack(*one) for one in code)


def open_memory(places: int, cells: int) -> int:
    """Make the memory that the processes share; returns a descriptor of it."""
    memory = os.memfd_create("trioreq")
    os.truncate(memory, CELL * (1 + places + cells))
    for place in range(places):
        os.pwrite(memory, NOBODY.to_bytes(CELL, "little", signed=True), CELL * (1 + place))
    return memory
