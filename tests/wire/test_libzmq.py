"""What the server takes libzmq to do, each an assumption and a test that a newer one may fail.

Nothing of trioreq is used: a stock ROUTER, its monitor and a gate of the test's own. Time is
real. What makes it deterministic: nothing of the three happens by itself, a test takes events,
answers questions and reads messages when it is their turn; peers are written by hand where their
timing counts; and what must not come is waited for behind something that comes after it.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import zmq
from support.stock import (
    ACCEPTED,
    AUTH,
    DISCONNECTED,
    HANDSHAKES,
    NO_DETAIL,
    PROTOCOL,
    SUCCEEDED,
    TESTED,
    Stock,
    open_stock,
    readable,
    signalled,
)

from harness.clients import ClientProcess, Clients
from harness.zmtp import (
    COMMAND,
    GARBAGE,
    GREETING,
    LIMIT,
    SIGNATURE,
    RawPeer,
    frame,
    message,
    ready,
)

LIMIT_MS = round(LIMIT * 1000)
DEALER = [(b"Socket-Type", b"DEALER"), (b"Identity", b"")]


@pytest.fixture
def stock(addr: str) -> Iterator[Stock]:
    with open_stock(addr) as opened:
        yield opened


@pytest.fixture
def tcp() -> Iterator[Stock]:
    with open_stock() as opened:
        yield opened


def let_in(
    stock: Stock,
    peer: RawPeer,
    kind: bytes = b"DEALER",
    routing_id: bytes = b"",
    *more: tuple[bytes, bytes],
) -> None:
    """Let a peer in, and nothing else."""
    peer.ask(kind, routing_id, *more)
    assert stock.gate.poll(LIMIT_MS)
    [question] = stock.read_gate()
    stock.answer(question)
    peer.enter()


def wait_for_messages(stock: Stock, number: int) -> list[list[bytes]]:
    stock.serve_until(lambda: len(stock.messages) >= number)
    return [[part.bytes for part in frames] for frames in stock.messages]


def wait_until_gone(stock: Stock, routing_id: bytes) -> None:
    """Send to it until there is no such peer: its disconnect is reported before that."""
    stock.serve_until(lambda: stock.count(DISCONNECTED) == 1)
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        try:
            stock.router.send(routing_id, zmq.SNDMORE | zmq.NOBLOCK)
        except zmq.Again:
            stock.read_router()  # a full queue stays until all that its peer said was read
            continue
        except zmq.ZMQError as error:
            assert error.errno == zmq.EHOSTUNREACH  # noqa: PT017  # others end the test
            return
        stock.router.send(b"are you there?", zmq.NOBLOCK)
    pytest.fail("it is never gone")


# The peer


@pytest.mark.slow
def test_accepted_is_in_the_monitor_before_the_zap_request(stock: Stock) -> None:
    for number in range(1, 301):
        with RawPeer(stock.endpoint) as peer:
            peer.ask()
            assert stock.gate.poll(LIMIT_MS)
            stock.read_monitor()  # the first look since the connection came
            assert stock.count(ACCEPTED) == number
            [question] = stock.read_gate()
            stock.answer(question)
            peer.enter()
        stock.serve_until(lambda: stock.count(DISCONNECTED) == stock.count(ACCEPTED))


def _nothing(peer: RawPeer) -> None:
    pass


def _reset(peer: RawPeer) -> None:
    peer.reset()


def _half_a_greeting(peer: RawPeer) -> None:
    peer.send(GREETING[:20])


def _greeting(peer: RawPeer) -> None:
    peer.send(GREETING)


def _greeting_then_reset(peer: RawPeer) -> None:
    peer.send(GREETING)
    peer.reset()


def _greeting_then_silence(peer: RawPeer) -> None:
    peer.send(GREETING)
    peer.read_end()


def _half_a_ready(peer: RawPeer) -> None:
    peer.send((GREETING + ready(DEALER))[:-3])


def _garbage(peer: RawPeer) -> None:
    peer.send(GARBAGE)


def _garbage_for_ready(peer: RawPeer) -> None:
    peer.send(GREETING + GARBAGE)
    peer.read_end()


def _a_message_for_ready(peer: RawPeer) -> None:
    peer.send(GREETING + message(b"hello"))
    peer.read_end()


def _another_protocol(peer: RawPeer) -> None:
    peer.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    peer.read_end()


def _another_mechanism(peer: RawPeer) -> None:
    peer.send(GREETING.replace(b"NULL\0", b"CURVE") + ready(DEALER))
    peer.read_end()


def _a_socket_that_does_not_fit(peer: RawPeer) -> None:
    peer.send(GREETING + ready([(b"Socket-Type", b"PUB")]))
    peer.read_end()


def _gone_before_the_answer(peer: RawPeer) -> None:
    peer.ask()


def _reset_before_the_answer(peer: RawPeer) -> None:
    peer.ask()
    peer.reset()


def _gone_after_the_handshake(peer: RawPeer) -> None:
    peer.shake_hands()


def _reset_after_the_handshake(peer: RawPeer) -> None:
    peer.shake_hands()
    peer.reset()


def _garbage_after_a_message(peer: RawPeer) -> None:
    peer.shake_hands()
    peer.send(message(b"hello") + GARBAGE)
    peer.read_end()


def _half_a_message(peer: RawPeer) -> None:
    peer.shake_hands()
    peer.send(message(b"hello", b"world")[:-2])


def _a_frame_that_is_too_large(peer: RawPeer) -> None:
    peer.shake_hands()
    peer.send(message(bytes(1001)))
    peer.read_end()


LIVES = [
    _nothing,
    _reset,
    _half_a_greeting,
    _greeting,
    _greeting_then_reset,
    _greeting_then_silence,
    _half_a_ready,
    _garbage,
    _garbage_for_ready,
    _a_message_for_ready,
    _another_protocol,
    _another_mechanism,
    _a_socket_that_does_not_fit,
    _gone_before_the_answer,
    _reset_before_the_answer,
    _gone_after_the_handshake,
    _reset_after_the_handshake,
    _garbage_after_a_message,
    _half_a_message,
    _a_frame_that_is_too_large,
]


def live(life: Callable[[RawPeer], None], endpoint: str) -> None:
    # The other side may be quicker to end it.
    with RawPeer(endpoint) as peer, suppress(BrokenPipeError, ConnectionResetError):
        life(peer)


def live_once(stock: Stock, pool: ThreadPoolExecutor, life: Callable[[RawPeer], None]) -> None:
    lived = stock.count(DISCONNECTED)
    running = pool.submit(live, life, stock.endpoint)
    stock.serve_until(lambda: stock.count(DISCONNECTED) == lived + 1 and running.done())
    running.result()


@pytest.mark.parametrize("life", LIVES)
def test_each_accepted_has_one_disconnected(addr: str, life: Callable[[RawPeer], None]) -> None:
    with (
        open_stock(addr, HANDSHAKE_IVL=100, MAXMSGSIZE=1000) as stock,
        ThreadPoolExecutor() as pool,
    ):
        live_once(stock, pool, life)
        live_once(stock, pool, _gone_after_the_handshake)
        # The second life is here so that nothing can come late for the first.
        assert [event for event, _ in stock.events] == [ACCEPTED, DISCONNECTED] * 2
        assert stock.events[0][1] == stock.events[1][1]
        assert stock.events[2][1] == stock.events[3][1]


def test_a_refused_connection_has_one_disconnected_and_no_message(stock: Stock) -> None:
    with RawPeer(stock.endpoint) as peer:
        peer.ask()
        assert stock.gate.poll(LIMIT_MS)
        [question] = stock.read_gate()
        stock.answer(question, b"400")
        with suppress(BrokenPipeError):
            peer.send(message(b"hello"))
        peer.read_end()
    with RawPeer(stock.endpoint) as peer:
        let_in(stock, peer)
        peer.send(message(b"later"))
        assert wait_for_messages(stock, 1) == [[b"later"]]
    stock.serve_until(lambda: stock.count(DISCONNECTED) == 2)
    assert [event for event, _ in stock.events] == [ACCEPTED, DISCONNECTED] * 2


def test_a_postponed_client_is_sent_nothing_until_its_handshake_times_out(addr: str) -> None:
    """Status 300: neither an error nor an end, before the time for a handshake is over."""
    with open_stock(addr, HANDSHAKE_IVL=300) as stock, RawPeer(stock.endpoint) as peer:
        peer.ask()
        assert stock.gate.poll(LIMIT_MS)
        [question] = stock.read_gate()
        answered = time.monotonic()
        stock.answer(question, b"300")
        peer._read(len(GREETING))
        with pytest.raises(ConnectionResetError):
            peer.read_frame()
        assert time.monotonic() - answered > 0.1
        stock.serve_until(lambda: stock.count(DISCONNECTED) == 1)


def test_a_descriptor_that_is_shut_down_is_disconnected(stock: Stock) -> None:
    with RawPeer(stock.endpoint) as peer, RawPeer(stock.endpoint) as other:
        let_in(stock, peer)
        stock.serve_until(lambda: len(stock.events) >= 1)
        let_in(stock, other)
        _, descriptor = stock.events[0]
        with socket.socket(fileno=os.dup(descriptor)) as own:
            own.shutdown(socket.SHUT_RDWR)
        peer.read_end()
        stock.serve_until(lambda: stock.count(DISCONNECTED) == 1)
        assert stock.events[-1] == (DISCONNECTED, descriptor)
        other.send(message(b"hello"))
        assert wait_for_messages(stock, 1) == [[b"hello"]]


@pytest.mark.slow
def test_disconnected_is_in_the_monitor_before_the_descriptor_is_closed(addr: str) -> None:
    with open_stock(addr, MAXMSGSIZE=1000) as stock:
        for number in range(1, 301):
            with RawPeer(stock.endpoint) as peer:
                let_in(stock, peer)
                stock.serve_until(lambda: stock.count(ACCEPTED) == number)  # noqa: B023
                _, descriptor = stock.events[-1]
                if number % 2:
                    peer.send(GARBAGE)
            end = time.monotonic() + LIMIT
            while os.path.lexists(f"/proc/self/fd/{descriptor}"):
                assert time.monotonic() < end
            stock.read_monitor()  # the first look since the end
            assert stock.events[-1] == (DISCONNECTED, descriptor)
            stock.read_router()


@pytest.mark.slow
def test_a_descriptor_has_one_holder_at_a_time(addr: str) -> None:
    """DISCONNECTED comes before the next ACCEPTED on the same descriptor, and always comes."""
    connections = 2000
    with open_stock(addr, MAXMSGSIZE=1000) as stock, ThreadPoolExecutor(6) as pool:
        lives = [life for life in LIVES if life is not _greeting_then_silence]
        running = [
            pool.submit(live, lives[number % len(lives)], stock.endpoint)
            for number in range(connections)
        ]
        stock.serve_until(
            lambda: stock.count(DISCONNECTED) >= connections and all(r.done() for r in running)
        )
        for each in running:
            each.result()
        told: dict[int, list[int]] = defaultdict(list)
        for event, descriptor in stock.events:
            told[descriptor].append(event)
        assert len(told) < connections / 10  # they were used again and again
        for events in told.values():
            assert events == [ACCEPTED, DISCONNECTED] * (len(events) // 2)
        assert len(stock.events) == 2 * connections


def test_a_message_names_the_descriptor_of_its_connection(stock: Stock) -> None:
    with RawPeer(stock.endpoint) as first, RawPeer(stock.endpoint) as second:
        let_in(stock, first)
        stock.serve_until(lambda: len(stock.events) >= 1)
        let_in(stock, second)
        for number, peer in enumerate([first, second, second, first]):
            peer.send(message(b"", b"hello"))
            wait_for_messages(stock, number + 1)
    sources = [[part.get(zmq.SRCFD) for part in frames] for frames in stock.messages]
    stock.serve_until(lambda: len(stock.events) == 4)
    one, two = (descriptor for event, descriptor in stock.events if event == ACCEPTED)
    assert sources == [[one] * 2, [two] * 2, [two] * 2, [one] * 2]


@pytest.mark.slow
def test_every_frame_of_every_message_has_the_properties(stock: Stock, clients: Clients) -> None:
    """On the second frame of what the ROUTER reads, and on all after it."""
    senders = [clients.connect(stock.endpoint, zmq.DEALER).raw for _ in range(2)]
    stock.serve_until(lambda: stock.answered == 2)
    for each in range(0, 5000, 100):
        for number in range(each, each + 100):
            frames = [b"", b"%d" % number, b"x" * (number % 600)]
            senders[number % 2].send_multipart(frames)
        wait_for_messages(stock, each + 100)
    told: dict[bytes, set[tuple[object, ...]]] = defaultdict(set)
    for routing_id, parts in zip(stock.routing_ids, stock.messages, strict=True):
        for part in parts:
            names = (TESTED, "Socket-Type", "Peer-Address", "User-Id")
            properties = [part.get(name) for name in names]
            told[routing_id].add((part.get(zmq.SRCFD), *properties))
    assert [len(properties) for properties in told.values()] == [1, 1]
    both = sorted(properties.pop()[1:] for properties in told.values())
    assert [(stamp, kind, user) for stamp, kind, _, user in both] == [
        ("0", "DEALER", ""),
        ("1", "DEALER", ""),
    ]
    address = both[0][2]
    expected = f"localhost:{os.getuid()}:{os.getgid()}:{os.getpid()}"
    assert address == ("127.0.0.1" if stock.endpoint.startswith("tcp") else expected)


def test_a_peer_cannot_forge_the_properties_of_the_zap_handler(tcp: Stock) -> None:
    with RawPeer(tcp.endpoint) as peer:
        forged = [
            (TESTED.encode(), b"9"),
            (b"Peer-Address", b"x"),
            (b"User-Id", b"x"),
            (b"__fd", b"1"),
        ]
        let_in(tcp, peer, b"REQ", b"", *forged)
        peer.send(message(b"", b"hello"))
        wait_for_messages(tcp, 1)
    part = tcp.messages[0][0]
    assert [part.get(name) for name in (TESTED, "Peer-Address", "User-Id", "Socket-Type")] == [
        "0",
        "127.0.0.1",
        "",
        "REQ",
    ]
    assert part.get(zmq.SRCFD) == tcp.events[0][1]


def test_a_peer_need_not_announce_its_socket_type(tcp: Stock) -> None:
    """Then its messages have none; nor does libzmq take one that does not fit a ROUTER."""
    with RawPeer(tcp.endpoint) as peer:
        peer.send(GREETING + ready([]))
        tcp.serve_until(lambda: tcp.answered == 1)
        peer.enter()
        peer.send(message(b"", b"hello"))
        wait_for_messages(tcp, 1)
    with pytest.raises(zmq.ZMQError, match="Invalid argument"):
        tcp.messages[0][0].get("Socket-Type")


@pytest.mark.parametrize(
    "spoken",
    [
        pytest.param(b"\x01\x00" + b"\x06\x00hello", id="zmtp 1"),
        pytest.param(SIGNATURE + b"\x01\x05" + frame(b"") + frame(b"hello"), id="zmtp 2"),
        pytest.param(GREETING + ready(DEALER) + message(b"hello"), id="before the answer"),
    ],
)
def test_a_peer_sends_nothing_before_the_handshake_is_over(tcp: Stock, spoken: bytes) -> None:
    """Old protocols know no gate, and a peer may be too quick for it: both are cut off."""
    with RawPeer(tcp.endpoint) as early:
        early.send(spoken)
        early.read_end()
    tcp.serve_until(lambda: tcp.count(DISCONNECTED) == 1)
    with RawPeer(tcp.endpoint) as peer:
        let_in(tcp, peer)
        peer.send(message(b"later"))
        assert wait_for_messages(tcp, 1) == [[b"later"]]


@pytest.mark.slow
def test_automatic_routing_ids_start_with_zero_and_are_unique(
    stock: Stock, clients: Clients
) -> None:
    connections = 1000
    for number in range(connections):  # some at a time live, most have closed before the next
        peer = clients.connect(stock.endpoint, zmq.DEALER, LINGER=1000).raw
        peer.send(b"hello")
        wait_for_messages(stock, number + 1)
        if number % 100:
            peer.close()
    assert len(set(stock.routing_ids)) == len(stock.routing_ids) == connections
    assert {(routing_id[0], len(routing_id)) for routing_id in stock.routing_ids} == {(0, 5)}


async def test_ipc_reports_user_group_and_process_of_the_peer(
    peer: ClientProcess, tmp_path: Path
) -> None:
    with open_stock(f"ipc://{tmp_path}/socket") as stock:
        await peer.connect(stock.endpoint)
        await peer.send("hello")
        wait_for_messages(stock, 1)
        address = stock.messages[0][0].get("Peer-Address")
    assert address == f"localhost:{os.getuid()}:{os.getgid()}:{peer.pid}"
    assert peer.pid != os.getpid()


# The end of a connection


@pytest.mark.parametrize("end", [b"", GARBAGE], ids=["close", "garbage"])
def test_messages_are_delivered_after_disconnected(stock: Stock, end: bytes) -> None:
    with RawPeer(stock.endpoint) as peer:
        let_in(stock, peer)
        peer.send(b"".join(message(b"", b"%d" % number) for number in range(20)) + end)
    stock.serve_until(lambda: stock.count(DISCONNECTED) == 1, router=False)
    assert not stock.messages
    assert [last for _, last in wait_for_messages(stock, 20)] == [b"%d" % n for n in range(20)]


@pytest.mark.slow
async def test_a_stopped_peer_is_disconnected_by_the_heartbeat(
    addr: str, peer: ClientProcess, clients: Clients
) -> None:
    interval, timeout = 200, 200
    with open_stock(addr, HEARTBEAT_IVL=interval, HEARTBEAT_TIMEOUT=timeout) as stock:
        await peer.connect(stock.endpoint)
        await peer.send("hello")
        wait_for_messages(stock, 1)
        stopped = stock.events[0][1]
        healthy = clients.connect(stock.endpoint).raw
        healthy.send(b"hello")
        wait_for_messages(stock, 2)
        start = time.monotonic()
        peer.stop()
        stock.serve_until(lambda: stock.count(DISCONNECTED) > 0)
        assert time.monotonic() - start < (interval + timeout) / 1000 + 1  # for a busy machine
        assert stock.events[-1] == (DISCONNECTED, stopped)
        stock.router.send_multipart([stock.routing_ids[1], b"", b"still here"])
        assert healthy.poll(LIMIT_MS)
        assert healthy.recv() == b"still here"
        assert stock.count(DISCONNECTED) == 1


def test_a_send_to_a_closed_connection_fails_at_the_first_frame(stock: Stock) -> None:
    with RawPeer(stock.endpoint) as gone, RawPeer(stock.endpoint) as here:
        let_in(stock, gone)
        gone.send(message(b"", b"hello"))
        wait_for_messages(stock, 1)
        let_in(stock, here)
        here.send(message(b"", b"hello"))
        wait_for_messages(stock, 2)
        gone.close()
        wait_until_gone(stock, stock.routing_ids[0])
        # No part of a message is left behind: what is sent next is whole.
        stock.router.send_multipart([stock.routing_ids[1], b"whole"])
        assert here.read_frame() == b"whole"


def test_a_send_to_a_full_queue_fails_at_the_first_frame(addr: str) -> None:
    with open_stock(addr, SNDHWM=2) as stock, RawPeer(stock.endpoint) as full:
        let_in(stock, full)
        full.send(message(b"", b"hello"))
        wait_for_messages(stock, 1)
        for _ in range(10_000):
            try:
                stock.router.send(stock.routing_ids[0], zmq.SNDMORE | zmq.NOBLOCK)
            except zmq.Again:
                break
            stock.router.send(bytes(65536), zmq.NOBLOCK)  # never fails after the first
        else:
            pytest.fail("its queue is never full")
        with RawPeer(stock.endpoint) as other:
            let_in(stock, other)
            other.send(message(b"", b"hello"))
            wait_for_messages(stock, 2)
            stock.router.send_multipart([stock.routing_ids[1], b"whole"], zmq.NOBLOCK)
            assert other.read_frame() == b"whole"


def test_a_second_connection_with_a_routing_id_in_use_gets_no_messages_of_the_first(
    stock: Stock,
) -> None:
    """Nor is it heard, ever: libzmq ignores it."""
    name = b"the-same-id"
    with RawPeer(stock.endpoint) as first, RawPeer(stock.endpoint) as second:
        let_in(stock, first, b"DEALER", name)
        first.send(message(b"first"))
        assert wait_for_messages(stock, 1) == [[b"first"]]
        let_in(stock, second, b"DEALER", name)
        second.send(message(b"second"))
        with RawPeer(stock.endpoint) as fence:  # what it says comes after what the second said
            let_in(stock, fence)
            fence.send(message(b"fence"))
            assert wait_for_messages(stock, 2) == [[b"first"], [b"fence"]]
            for _ in range(5):
                stock.router.send_multipart([name, b"for the first"])
            for _ in range(5):
                assert first.read_frame() == b"for the first"
            first.close()
            wait_until_gone(stock, name)
            stock.router.send_multipart([stock.routing_ids[1], b"fence"])
            assert fence.read_frame() == b"fence"
        assert second.unread() == b""
        assert len(stock.messages) == 2


# How handshakes end


MISMATCH = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
UNEXPECTED = int(zmq.PROTOCOL_ERROR_ZMTP_UNEXPECTED_COMMAND)
CLOSED = {errno.EPIPE, errno.ECONNRESET}
TIMED_OUT = {0, errno.EAGAIN, errno.EINTR}


@pytest.fixture
def told(addr: str) -> Iterator[Stock]:
    """Its monitor reports handshakes, which have a tenth of a second."""
    with open_stock(addr, HANDSHAKES, HANDSHAKE_IVL=100) as opened:
        yield opened


@pytest.mark.parametrize(
    ("bytes_", "event", "values"),
    [
        (GREETING.replace(b"NULL\0", b"CURVE"), PROTOCOL, {MISMATCH}),
        (GREETING + frame(b"\x04PING", COMMAND), PROTOCOL, {UNEXPECTED}),
        (b"", NO_DETAIL, TIMED_OUT),
        (GREETING, NO_DETAIL, TIMED_OUT),
    ],
    ids=["mechanism", "command", "silence", "greeting"],
)
def test_the_reason_of_a_failed_handshake_is_reported_just_before_the_disconnect(
    told: Stock, bytes_: bytes, event: int, values: set[int]
) -> None:
    """Though others come and go at the same time, and fail otherwise."""
    peers = [RawPeer(told.endpoint) for _ in range(10)]
    for peer in peers:
        peer.send(bytes_)
        RawPeer(told.endpoint).close()
    told.serve_until(lambda: told.count(ACCEPTED) == told.count(DISCONNECTED) == 20)
    for peer in peers:
        peer.close()
    failures = [
        (kind, value, after)
        for (kind, value), (after, _) in pairwise(told.events)
        if kind in (NO_DETAIL, PROTOCOL)
    ]
    assert {after for _, _, after in failures} == {DISCONNECTED}
    mine = [value for kind, value, _ in failures if (kind, value in CLOSED) == (event, False)]
    assert len(mine) == 10
    assert set(mine) <= values
    assert told.count(SUCCEEDED) == told.count(AUTH) == 0


@pytest.mark.parametrize(
    "bytes_",
    [b"GET / HTTP/1.1\r\n\r\n", SIGNATURE + b"\x01", GREETING + ready([(b"Socket-Type", b"SUB")])],
    ids=["HTTP", "ZMTP 2", "SUB"],
)
def test_some_failed_handshakes_are_reported_only_by_the_disconnect(
    told: Stock, bytes_: bytes
) -> None:
    with RawPeer(told.endpoint) as peer:
        peer.send(bytes_ + bytes(64))
        told.serve_until(lambda: told.count(DISCONNECTED) == 1)
    assert [kind for kind, _ in told.events] == [ACCEPTED, DISCONNECTED]


def test_each_successful_handshake_is_reported_before_its_messages(told: Stock) -> None:
    for number in range(1, 101):
        with RawPeer(told.endpoint) as peer:
            let_in(told, peer)
            peer.send(message(b"hello"))
            assert told.router.poll(LIMIT_MS)
            told.read_router()
            told.read_monitor()
            assert told.count(SUCCEEDED) == number
    told.serve_until(lambda: told.count(DISCONNECTED) == 100)
    assert told.count(SUCCEEDED) == 100
    assert told.count(NO_DETAIL) == told.count(PROTOCOL) == 0


@pytest.mark.parametrize("code", [b"300", b"400", b"500"])
def test_each_refusal_is_reported_before_the_disconnect(told: Stock, code: bytes) -> None:
    with RawPeer(told.endpoint) as peer:
        peer.ask()
        assert told.gate.poll(LIMIT_MS)
        [question] = told.read_gate()
        told.answer(question, code)
        told.serve_until(lambda: told.count(AUTH) == 1)
    told.serve_until(lambda: told.count(DISCONNECTED) == 1)
    assert [kind for kind, _ in told.events] == [ACCEPTED, AUTH, DISCONNECTED]


# The sockets themselves


@pytest.mark.slow
def test_a_monitor_without_a_high_water_mark_never_stalls_libzmq(stock: Stock) -> None:
    connections = 3000
    for _ in range(connections):
        RawPeer(stock.endpoint).close()
    try:
        with RawPeer(stock.endpoint) as peer:
            let_in(stock, peer)
            peer.send(message(b"hello"))
            assert stock.router.poll(LIMIT_MS)
        assert not stock.events  # the monitor was not read so far
        stock.serve_until(lambda: stock.count(DISCONNECTED) == connections + 1)
        assert stock.count(ACCEPTED) == connections + 1
    finally:  # should it have stalled: let it go, or it could not be closed
        while stock.monitor.poll(100):
            stock.read_monitor()


def test_a_send_consumes_the_edge_and_events_still_reports_the_message(stock: Stock) -> None:
    """The descriptor signals a message once, and another call consumes that."""
    with RawPeer(stock.endpoint) as peer:
        let_in(stock, peer)
        peer.send(message(b"first"))
        wait_for_messages(stock, 1)
        stock.serve_until(lambda: not readable(stock.router) and not signalled(stock.router))
        peer.send(message(b"second"))
        assert signalled(stock.router, LIMIT)
        end = time.monotonic() + LIMIT
        while signalled(stock.router):  # not each send looks at what has come
            assert time.monotonic() < end, "a send no longer eats the edge"
            stock.router.send_multipart([stock.routing_ids[0], b"reply"])
        assert not signalled(stock.router, 0.01)
        assert readable(stock.router)
        assert stock.router.recv_multipart(zmq.NOBLOCK)[1:] == [b"second"]


def test_the_ipc_file_stays_when_its_socket_closes(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with open_stock(f"ipc://{path}"):
        assert path.is_socket()
    assert path.is_socket()


def test_a_bind_takes_over_the_ipc_path_of_a_live_server(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/socket"
    with open_stock(endpoint) as old, open_stock(endpoint) as new, RawPeer(endpoint) as peer:
        let_in(new, peer)
        peer.send(message(b"hello"))
        assert wait_for_messages(new, 1) == [[b"hello"]]
        old.read_monitor()
        assert not old.events
