"""Messages between the server and a worker process. No process is started."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from trioreq._server.channel import SIZE, Incoming, WorkerEnd

MESSAGES = [b"", b"1", b"x" * 9, b"y" * 300]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, WorkerEnd]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, WorkerEnd(theirs)


def framed(*messages: bytes) -> bytes:
    return b"".join(SIZE.pack(len(message)) + message for message in messages)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 8, 9, 100, 1000])
def test_messages_are_whole_wherever_their_bytes_are_cut(step: int) -> None:
    incoming, found = Incoming(), []
    stream = framed(*MESSAGES)
    for start in range(0, len(stream), step):
        incoming.add(stream[start : start + step])
        while (message := incoming.next()) is not None:
            found.append(message)
    assert found == MESSAGES


def test_the_end_of_the_stream_is_none(pair: tuple[socket.socket, WorkerEnd]) -> None:
    ours, worker = pair
    ours.sendall(framed(b"last") + b"half")
    ours.shutdown(socket.SHUT_WR)
    assert worker.receive() == b"last"
    assert worker.receive() is None


def read_all(connection: socket.socket, into: bytearray) -> None:
    while more := connection.recv(65536):
        into.extend(more)


def test_a_signal_handler_that_sends_cuts_no_message(
    pair: tuple[socket.socket, WorkerEnd],
) -> None:
    """The signal comes while a large message waits for room."""
    ours, worker = pair
    large, stream = b"z" * 4_000_000, bytearray()
    reader = threading.Thread(target=read_all, args=(ours, stream))

    def interrupt(*_: object) -> None:
        reader.start()  # nothing was read until then
        worker.send(b"from the handler")

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        worker.send(large)
    finally:
        signal.signal(signal.SIGALRM, before)
    worker._socket.shutdown(socket.SHUT_WR)
    reader.join()
    assert bytes(stream) == framed(large, b"from the handler")


def test_half_a_message_is_the_last_one(pair: tuple[socket.socket, WorkerEnd]) -> None:
    """A signal handler may raise, and the code of a handler may catch that."""
    ours, worker = pair

    def interrupt(*_: object) -> None:
        raise LookupError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(LookupError):
            worker.send(b"z" * 4_000_000)
    finally:
        signal.signal(signal.SIGALRM, before)
    stream = bytearray()
    read_all(ours, stream)  # it has an end
    assert 0 < len(stream) < 4_000_000


def test_there_is_no_room_when_nothing_is_read(pair: tuple[socket.socket, WorkerEnd]) -> None:
    ours, worker = pair
    assert worker.wait_for_room(0)
    ours.setblocking(False)
    worker.send(b"z" * 150_000)
    assert not worker.wait_for_room(0.01)
    assert len(ours.recv(200_000)) > 0
