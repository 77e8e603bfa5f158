"""One message without end: what libzmq does with it, and what ends it (docs/hostile.md).

Nothing of trioreq is used: a stock ROUTER of the test's own. Time is real; what the kernel says it
has received is waited for.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct

import psutil
import pytest
from support.stock import ACCEPTED, DISCONNECTED, Stock, open_stock, readable
from support.zmtp import MORE, RawPeer, frame

MIB = 2**20
BYTES_RECEIVED = 128  # its offset in the kernel's struct tcp_info


def memory() -> int:
    """What this process has, once C has given back what it can."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def received(descriptor: int) -> int:
    """How much the kernel has received on a connection."""
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("Q", info, BYTES_RECEIVED)[0])


def descriptor_of_the_only(stock: Stock) -> int:
    [descriptor] = [told for event, told in stock.events if event == ACCEPTED]
    return descriptor


@pytest.mark.slow
def test_libzmq_gathers_one_message_without_end_and_a_shutdown_gives_it_back() -> None:
    with open_stock(MAXMSGSIZE=MIB, RCVHWM=1) as stock, RawPeer(stock.endpoint) as peer:
        peer.ask()
        stock.serve_until(lambda: stock.answered == 1)
        peer.enter()
        before = memory()
        part = frame(bytes(MIB), MORE)
        for _ in range(64):
            peer.send(part)
        descriptor = descriptor_of_the_only(stock)
        stock.serve_until(lambda: received(descriptor) > 64 * MIB)
        stock.serve_until(lambda: memory() - before > 48 * MIB)  # the kernel may hold the rest
        assert stock.messages == []  # and nobody is told

        with socket.socket(fileno=os.dup(descriptor)) as connection:
            connection.shutdown(socket.SHUT_RDWR)
        stock.serve_until(lambda: stock.count(DISCONNECTED) == 1)
        stock.serve_until(lambda: not readable(stock.router) and memory() - before < 8 * MIB)
        assert stock.messages == []
