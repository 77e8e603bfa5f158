"""Two machines with a cable between them, which can lose, delay and be cut.

The machines are network namespaces of Linux, each with a TUN device; what one's kernel sends is
read here and given to the other's. So the kernels' own TCP meets real loss and real silence, and
there is no need for `tc netem`, which not every kernel has. It takes root.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

TUN = "/dev/net/tun"
TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
ADDRESSES = ("10.231.0.1", "10.231.0.2")
PACKETS = 10_000  # that may be on their way in each direction
BIG = 65536


def why_not() -> str:
    """Why this machine cannot have a cable; empty if it can."""
    try:
        _ip("netns", "add", _name(9))
        _ip("netns", "delete", _name(9))
        os.close(os.open(TUN, os.O_RDWR))
    except subprocess.CalledProcessError as error:
        return f"no network namespaces: {error.stderr.strip()}"
    except OSError as error:
        return str(error)
    return ""


class Cable:
    """The cable.

    Attributes:
        near: Words before a command that runs on the one machine.
        far: The same for the other.
        address: The IP address of the near machine.
        loses: Whether the packet of this number is lost; numbers run from 0 in each direction.
        delay: Seconds that a packet takes.
        lost: Packets lost to `loses`.
        carried: Packets delivered.
    """

    address = ADDRESSES[0]

    def __init__(self, loses: Callable[[int], bool], delay: float) -> None:
        self.loses = loses
        self.delay = delay
        self.lost = self.carried = 0
        self._cut = False
        self.near, self.far = (["ip", "netns", "exec", _name(side)] for side in (0, 1))

    def cut(self) -> None:
        """Deliver nothing from now on: no FIN, no RST, no ACK."""
        self._cut = True

    def mend(self) -> None:
        """Deliver again."""
        self._cut = False

    async def carry(self, source: int, target: int) -> None:
        """Carry one direction, until cancelled."""
        send, receive = trio.open_memory_channel[tuple[float, bytes]](PACKETS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deliver, receive, target)
            number = 0
            while True:
                await trio.lowlevel.wait_readable(source)
                packet = os.read(source, BIG)
                number += 1
                if self.loses(number - 1):
                    self.lost += 1
                else:
                    send.send_nowait((trio.current_time() + self.delay, packet))

    async def _deliver(
        self, packets: trio.MemoryReceiveChannel[tuple[float, bytes]], target: int
    ) -> None:
        async for due, packet in packets:
            await trio.sleep_until(due)
            if not self._cut:
                os.write(target, packet)
                self.carried += 1


@asynccontextmanager
async def open_cable(
    *, loses: Callable[[int], bool] = lambda _: False, delay: float = 0.0
) -> AsyncIterator[Cable]:
    """Two machines and a cable, removed at the end."""
    cable = Cable(loses, delay)
    ends: list[int] = []
    try:
        for side, address in enumerate(ADDRESSES):
            ends.append(_machine(side, address))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cable.carry, ends[0], ends[1])
            nursery.start_soon(cable.carry, ends[1], ends[0])
            yield cable
            nursery.cancel_scope.cancel()
    finally:
        for side, end in enumerate(ends):
            os.close(end)
            _ip("netns", "delete", _name(side))


def _name(side: int) -> str:
    return f"trioreq-{os.getpid()}-{side}"


def _machine(side: int, address: str) -> int:
    """A namespace with a device; returns the descriptor of its packets."""
    name, device = _name(side), f"trq{os.getpid()}-{side}"
    end = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI))
    _ip("netns", "add", name)
    _ip("link", "set", device, "netns", name)
    _ip("-n", name, "address", "add", f"{address}/24", "dev", device)
    _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", name, "link", "set", device, "up")
    return end


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
