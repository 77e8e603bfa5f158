"""The client and the server over real sockets: cancels, deadlines, and broken connections.

Time is real; everything waits for events, under a limit.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import select
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
import trio.testing
import zmq
from support.handlers import Worker
from support.plain import plain_server
from support.serving import poll, raw, serving, until

import trioreq
from trioreq._client.multiplexer import Multiplexer
from trioreq._client.send_buffer import TOGETHER, SendBuffer
from trioreq._client.states import Connected, Connecting
from trioreq._protocol import envelope as wire
from trioreq._protocol import packs
from trioreq._protocol.envelope import Frames, Header
from trioreq._protocol.hello import hello_body
from trioreq._transport.dealer import Dealer
from trioreq._transport.dealer_sockets import NEVER, Connecter, DealerSockets
from trioreq._transport.line import (
    Accepted,
    Event,
    HandshakeFailed,
    HandshakeSucceeded,
    Lost,
)
from trioreq._transport.messages import messages_of
from trioreq._transport.zsocket import FileEdge, ZSocket

pytestmark = pytest.mark.slow


async def test_a_thousand_at_once_each_have_their_own_reply(addr: str) -> None:
    async with (
        serving(Worker(), addr, send_queue=1001) as server,  # room for all of them, and a hello
        trioreq.open_client(server.endpoints[0]) as client,
    ):
        wrong: list[int] = []

        async def ask(number: int) -> None:
            if await client.request(b"echo %d" % number) != b"re:echo %d" % number:
                wrong.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(ask, number)
        assert not wrong
        assert client.statistics().replied == server.statistics().replied == 1000


SERVER = """
import sys, trio, trioreq

async def handler(request):
    if request.body == b"wait":
        await trio.sleep_forever()
    return b"re:" + request.body

trio.run(trioreq.serve, handler, sys.argv[1])
"""


async def start_server(endpoint: str) -> trio.Process:
    return await trio.lowlevel.open_process([sys.executable, "-c", SERVER, endpoint])


@pytest.mark.parametrize("retries", [0, 1])
async def test_a_killed_server_fails_requests_in_flight_at_once(
    tmp_path: object, retries: int
) -> None:
    endpoint = f"ipc://{tmp_path}/socket"
    with trio.fail_after(30):
        process = await start_server(endpoint)
        try:
            async with trioreq.open_client(endpoint, retries=retries) as client:
                assert await client.request(b"echo") == b"re:echo"
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(fails, client, retries)
                    await until(lambda: client.statistics().in_flight == 1)
                    process.kill()
                    await process.wait()
                    if retries:
                        process = await start_server(endpoint)
                        await until(lambda: client.statistics().retried == 1)
                        await until(lambda: client.statistics().in_flight == 1)
                        process.kill()
                        await process.wait()
                process = await start_server(endpoint)
                assert await client.request(b"echo") == b"re:echo"  # waits for the connection
                assert client.statistics().connections == 2 + retries
        finally:
            if process.returncode is None:
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


async def fails(client: trioreq.Client, retries: int) -> None:
    with pytest.raises(trioreq.ConnectionLost):
        await client.request(b"wait")
    assert client.statistics().retried == retries


async def test_a_reply_counts_that_came_just_before_the_end() -> None:
    """The reply and the end of the connection are both there when the loop comes to look."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        with trio.fail_after(20):
            async with (
                trioreq.open_client(f"tcp://127.0.0.1:{port}") as client,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(client.request, b"x")
                await until(lambda: client.statistics().in_flight == 1)
                # From here the event loop is blocked.
                router.rcvtimeo = 5000
                router.send_multipart(router.recv_multipart())
                router.close(linger=5000)
                line = client._connections.current.line
                assert isinstance(line, Dealer)
                for event in read_monitor(line):  # as if its task were the first to wake
                    client._connections.current.take_event(event)
                assert client.statistics().replied == 1


async def test_libzmq_connects_once_and_the_client_again() -> None:
    """Else what is sent on libzmq's own next connection would be lost with the last, and untold."""
    with zmq.Context() as context, trio.fail_after(20):
        router = context.socket(zmq.ROUTER)
        endpoint = f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}"
        async with connected(endpoint) as dealer:
            sockets = sockets_of(dealer)
            # From here the event loop is blocked.
            router.close(linger=0)
            told: list[tuple[int, int]] = []
            while not told or told[-1][0] != zmq.EVENT_CONNECT_RETRIED:
                assert poll(sockets.monitor)
                if (event := sockets.next_event()) is not None:
                    told.append(event)
            assert [event for event, _ in told[:-1]] == [zmq.EVENT_DISCONNECTED]
            assert told[-1][1] >= NEVER


async def test_ctrl_c_does_not_come_while_sockets_are_opened_and_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that is left open would delay the end forever."""
    protected: list[tuple[str, bool]] = []

    def watch(name: str, function: Any) -> Any:
        def watched(*args: Any, **options: Any) -> Any:
            protected.append((name, trio.lowlevel.currently_ki_protected()))
            return function(*args, **options)

        return watched

    monkeypatch.setattr(ZSocket, "of", watch("open", ZSocket.of))
    disable_monitor = watch("close", zmq.Socket.disable_monitor)
    monkeypatch.setattr(zmq.Socket, "disable_monitor", disable_monitor)
    run_sync = watch("end", trio.to_thread.run_sync)
    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    with plain_server(zmq.ROUTER) as (endpoint, _):
        async with connected(endpoint):
            pass
    names = ["open", "open", "close", "end"]
    assert protected == [(name, True) for name in names]


async def test_a_connection_that_is_accepted_as_the_client_is_closed_is_closed_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that is left open would delay the end forever."""
    opened: list[DealerSockets] = []
    scope = trio.CancelScope()
    wait_accepted = DealerSockets.wait_accepted

    async def cancelled_meanwhile(sockets: DealerSockets) -> bool:
        opened.append(sockets)
        accepted = await wait_accepted(sockets)
        scope.cancel()
        return accepted

    monkeypatch.setattr(DealerSockets, "wait_accepted", cancelled_meanwhile)
    with plain_server(zmq.ROUTER) as (endpoint, _), trio.fail_after(10):
        dealer = Dealer(endpoint, heartbeat=None, max_message_size=1000)
        with scope:
            await dealer.events()
        assert scope.cancelled_caught
        (sockets,) = opened
        closed = sockets.raw.closed
        if not closed:
            sockets.close()
        await dealer.aclose()
        assert closed


async def test_ctrl_c_does_not_come_while_a_dealer_uses_its_sockets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rest of a message would begin the next one."""
    seen: set[tuple[str, bool]] = set()

    def watch(name: str, use: Any) -> Any:
        def watched(*args: Any) -> Any:
            seen.add((name, trio.lowlevel.currently_ki_protected()))
            return use(*args)

        return watched

    def of(raw: zmq.Socket[bytes]) -> ZSocket:
        socket = ZSocket(messages_of(raw), FileEdge(raw.fileno()))
        kind = "DEALER" if raw.get(zmq.TYPE) == zmq.DEALER else "PAIR"
        for name in ("receive", "send"):
            setattr(socket, name, watch(f"{kind} {name}", getattr(socket, name)))
        return socket

    monkeypatch.setattr(ZSocket, "of", of)
    with plain_server(zmq.ROUTER) as (endpoint, server):
        async with connected(endpoint) as dealer:
            assert not trio.lowlevel.currently_ki_protected()
            dealer.send([(b"", b"x")])
            await server.send(*await server.receive())
            assert await dealer.receive() == [[b"", b"x"]]
    assert seen == {("PAIR receive", True), ("DEALER send", True), ("DEALER receive", True)}


async def test_ctrl_c_does_not_interrupt_the_client_while_it_handles_events_and_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rest of it would be lost."""
    seen: set[tuple[str, bool]] = set()
    for name in ("take_event", "take_message"):

        def watched(
            self: Multiplexer,
            what: Any,
            name: str = name,
            take: Any = getattr(Multiplexer, name),  # noqa: B008
        ) -> None:
            seen.add((name, trio.lowlevel.currently_ki_protected()))
            take(self, what)

        monkeypatch.setattr(Multiplexer, name, watched)
    async with (
        serving(Worker()) as server,
        trioreq.open_client(server.endpoints[0]) as client,
    ):
        assert await client.request(b"echo") == b"re:echo"
    assert seen == {("take_event", True), ("take_message", True)}


async def test_a_failure_after_the_handshake_is_the_loss_of_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As libzmq reports a message of CURVE that was tampered with, and then of the end."""
    told: list[tuple[int, int]] = [
        (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC),
        (zmq.EVENT_DISCONNECTED, 0),
    ]
    with plain_server(zmq.ROUTER) as (endpoint, _):
        async with connected(endpoint) as dealer:
            replay(monkeypatch, told)
            dealer._read_monitor()
            assert await dealer.events() == [Lost([])]


async def test_the_end_of_a_connection_in_its_handshake_is_a_failure_whatever_libzmq_reports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No task would connect again."""
    with plain_server(zmq.ROUTER) as (endpoint, _):
        async with connected(endpoint, Accepted) as dealer:
            replay(monkeypatch, [(zmq.EVENT_DISCONNECTED, 0)])
            dealer._read_monitor()
            assert await dealer.events() == [HandshakeFailed()]


def replay(monkeypatch: pytest.MonkeyPatch, told: list[tuple[int, int]]) -> None:
    """Let monitors report this, and no more."""
    monkeypatch.setattr(DealerSockets, "next_event", lambda _: told.pop(0) if told else None)


def sockets_of(dealer: Dealer) -> DealerSockets:
    """Those of its connection."""
    assert dealer._sockets is not None
    return dealer._sockets


def read_monitor(dealer: Dealer) -> list[Event]:
    """What has happened, as `events` returns it."""
    assert poll(sockets_of(dealer).monitor)
    dealer._read_monitor()
    events, dealer._events = dealer._events, []
    return events


@asynccontextmanager
async def connected(endpoint: str, last: type[Event] = HandshakeSucceeded) -> AsyncIterator[Dealer]:
    """A dealer with a connection, of which there has been an event."""
    dealer = Dealer(endpoint, heartbeat=None, max_message_size=1000)
    try:
        with trio.fail_after(10):
            events: list[Event] = []
            while not events or type(events[-1]) is not last:
                events += await dealer.events()
            yield dealer
    finally:
        await dealer.aclose()


@asynccontextmanager
async def buffered(dealer: Dealer) -> AsyncIterator[tuple[SendBuffer, trio.Nursery]]:
    """A buffer before it, and the nursery in which that runs, to the end of the block."""
    buffer = SendBuffer(dealer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buffer.keep_flushing)
        await trio.testing.wait_all_tasks_blocked()
        yield buffer, nursery
        nursery.cancel_scope.cancel()


async def test_messages_of_one_pass_are_sent_in_order_and_together() -> None:
    bodies = [b"%d" % number for number in range(100)]
    with plain_server(zmq.ROUTER) as (endpoint, server):
        async with connected(endpoint) as dealer, buffered(dealer) as (buffer, _):
            for body in bodies:
                buffer.append((b"", body), 0)
            assert len(buffer._messages) == 99 % TOGETHER  # the rest in the next pass
            assert [(await server.receive())[-1] for _ in bodies] == bodies


async def test_a_server_that_takes_packs_is_sent_them_and_its_own_are_read() -> None:
    replies: list[bytes] = []

    def max_pack_size() -> int:
        state = client._connections.current.state
        return state.negotiation.max_pack_size if isinstance(state, Connected) else 0

    async def ask(number: int) -> None:
        replies.append(await client.request(b"%d" % number))

    with ExitStack() as stack, trio.fail_after(20):
        endpoint, server = stack.enter_context(plain_server(zmq.ROUTER))
        async with (
            trioreq.open_client(endpoint, max_message_size=2000) as client,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(ask, 0)
            routing_id, *first = await server.receive()
            hello = Header(wire.OK, wire.WANTS_HELLO, wire.SPEAKS).pack()
            await server.send(routing_id, hello, b"", hello_body(3000))
            await server.send(routing_id, *reply_to(first))
            await until(lambda: len(replies) == 1)
            assert max_pack_size() == 3000
            for number in range(1, 10):
                nursery.start_soon(ask, number)
            asked = [tuple((await server.receive())[1:])]
            assert len(asked[0]) == 3  # the first in a pass goes out at once
            size, others = unpack((await server.receive())[1:])
            assert size == 2000
            asked += map(tuple, others)
            assert len(asked) == 9
            await server.send(
                routing_id, *packs.pack([reply_to(frames) for frames in asked], 2000, 3000)[0]
            )
            await until(lambda: len(replies) == 10)
            assert sorted(replies) == [b"%d" % number for number in range(10)]
            stack.close()  # the next one may take none
            await until(lambda: max_pack_size() == 0)


def reply_to(frames: Sequence[bytes]) -> Frames:
    """The echo of a server that speaks the header."""
    header = wire.header_untrusted(tuple(frames[:2]))
    assert header is not None
    return Header(wire.OK, header.correlation, wire.SPEAKS).pack(), *frames[1:]


def unpack(frames: Sequence[bytes]) -> tuple[int, list[list[bytes]]]:
    (frame,) = frames
    pack = packs.unpack_untrusted(frame)
    assert pack is not None
    return pack


async def test_messages_are_sent_although_the_client_does_not_run_any_more() -> None:
    """As in a `finally` that is shielded: what runs the client was cancelled with its caller."""
    with plain_server(zmq.ROUTER) as (endpoint, server):
        async with connected(endpoint) as dealer, buffered(dealer) as (buffer, nursery):
            buffer.append((b"", b"first"), 0)
            buffer.append((b"", b"second"), 0)  # which the flusher has in hand
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True), trio.fail_after(10):
                await trio.testing.wait_all_tasks_blocked()
                assert not buffer._messages
                buffer.append((b"", b"third"), 0)
                assert not buffer._messages
                received = [(await server.receive())[-1] for _ in range(3)]
            assert received == [b"first", b"second", b"third"]


async def test_a_send_does_not_put_the_reader_to_sleep_on_a_reply() -> None:
    """It looks at the socket, and eats the edge of what has come."""
    received: list[list[bytes]] = []
    with plain_server(zmq.ROUTER) as (endpoint, server):
        async with connected(endpoint) as dealer:
            dealer.send([(b"", b"request")])
            routing_id, *_ = await server.receive()
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def receive() -> None:
                    received.extend(await dealer.receive())

                await trio.testing.wait_all_tasks_blocked()
                await server.send(routing_id, b"", b"reply")
                assert not received
                descriptor: Any = raw(sockets_of(dealer).dealer).get(zmq.FD)
                assert select.select([descriptor], [], [], 5)[0]
                time.sleep(0.01)  # noqa: ASYNC251  # libzmq looks no more than once in a millisecond
                dealer.send([(b"", b"another")])
            assert received == [[b"", b"reply"]]


async def test_sending_on_a_connection_that_was_just_lost_is_not_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The socket may know it before the monitor has reported it: it takes nothing more."""
    tried: list[Frames] = []

    def send(frames: Frames) -> int:
        tried.append(frames)
        return zmq.EAGAIN

    with plain_server(zmq.ROUTER) as (endpoint, _):
        async with connected(endpoint) as dealer:
            monkeypatch.setattr(sockets_of(dealer).dealer, "send", send)
            dealer.send([(b"", b"first"), (b"", b"second")])
    assert tried == [(b"", b"first")]


async def test_the_reader_goes_on_with_the_next_socket(tmp_path: object) -> None:
    """It waits on the descriptor of one that is closed."""
    endpoint = f"ipc://{tmp_path}/socket"
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    server = context.socket(zmq.ROUTER)
    server.bind(endpoint)
    received: list[list[bytes]] = []
    events: list[Event] = []
    try:
        async with connected(endpoint) as dealer, trio.open_nursery() as nursery:

            @nursery.start_soon
            async def receive() -> None:
                received.extend(await dealer.receive())

            await trio.testing.wait_all_tasks_blocked()
            context.destroy(linger=0)
            while Lost([]) not in events:
                events += await dealer.events()
            context = zmq.Context()
            server = context.socket(zmq.ROUTER)
            server.bind(endpoint)
            while HandshakeSucceeded() not in events:
                events += await dealer.events()
            dealer.send([(b"", b"request")])
            await trio.to_thread.run_sync(lambda: server.send_multipart(server.recv_multipart()))
        assert received == [[b"", b"request"]]
    finally:
        context.destroy(linger=0)


@contextmanager
def no_free_descriptors() -> Iterator[None]:
    """Let this process open none, whatever it closes: only the standard streams are allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.open(os.devnull, os.O_RDONLY)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("127.0.0.1", "no socket can be opened: Too many open files"),
        ("localhost", "'localhost' (cannot be looked up|does not exist)"),
    ],
)
async def test_a_client_without_a_free_descriptor_connects_again_when_there_is_one(
    host: str, says: str
) -> None:
    def has_failed() -> bool:
        state = client._connections.current.state
        return isinstance(state, Connecting) and re.search(says, state.hint) is not None

    async with serving(Worker()) as first:
        endpoint = first.endpoints[0]
        port = endpoint.rpartition(":")[2]
        async with trioreq.open_client(f"tcp://{host}:{port}") as client:
            await client.request(b"echo")
            with no_free_descriptors():
                await first.drain(0)
                await until(has_failed)
                with pytest.raises(trioreq.NotConnected, match=says):
                    await client.request(b"echo", timeout=1e-3)
            async with serving(Worker(), endpoint):
                assert await client.request(b"echo") == b"re:echo"


async def test_an_address_for_which_no_socket_can_be_opened_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: Connecter, endpoint: str) -> DealerSockets:
        if endpoint == "tcp://127.0.0.1:1":
            raise zmq.ZMQError(errno.EMFILE)
        return opened(self, endpoint)

    opened = Connecter.open
    monkeypatch.setattr(Connecter, "open", fail)
    connecter = Connecter(heartbeat=None, max_message_size=1000, curve=None)
    try:
        with plain_server(zmq.ROUTER) as (endpoint, _), trio.fail_after(20):
            sockets = await connecter.connect_first(["tcp://127.0.0.1:1", endpoint])
            assert sockets is not None
            assert sockets.endpoint == endpoint
            sockets.close()
        with pytest.raises(zmq.ZMQError, match="Too many open files"):
            await connecter.connect_first(["tcp://127.0.0.1:1", "tcp://127.0.0.1:2"])
    finally:
        await connecter.aclose()


async def test_a_plain_rep_server_answers_and_is_never_sent_a_cancel() -> None:
    seen: list[bytes] = []

    def serve(context: zmq.Context[zmq.Socket[bytes]]) -> None:
        with context.socket(zmq.REP) as rep:
            ports.append(rep.bind_to_random_port("tcp://127.0.0.1"))
            bound.set()
            while (body := rep.recv()) != b"end":
                seen.append(body)
                rep.send(b"re:" + body)
            rep.send(b"")

    ports: list[int] = []
    bound = threading.Event()
    with zmq.Context() as context:
        thread = threading.Thread(target=serve, args=[context])
        thread.start()
        assert bound.wait(5)
        with trio.fail_after(20):
            async with trioreq.open_client(f"tcp://127.0.0.1:{ports[0]}") as client:
                assert await client.request(b"one") == b"re:one"
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await client.request(b"never sent")
                async with trio.open_nursery() as nursery:
                    for number in range(20):
                        nursery.start_soon(client.request, b"%d" % number)
                await client.request(b"end")
        thread.join(5)
    assert sorted(seen) == sorted([b"one", *(b"%d" % number for number in range(20))])


async def test_nothing_stays_behind(addr: str) -> None:
    process = psutil.Process()
    async with serving(Worker(), addr) as server:

        async def once() -> None:
            async with trioreq.open_client(server.endpoints[0]) as client:
                await client.request(b"echo")
            await until(lambda: server.statistics().connections == 0)

        await once()
        tasks = trio.lowlevel.current_statistics().tasks_living
        descriptors = process.num_fds()
        for _ in range(5):
            await once()
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        assert process.num_fds() == descriptors


@pytest.mark.parametrize(
    "endpoint",
    ["", "tcp://", "tcp://*:5555", "tcp://127.0.0.1", "tcp://127.0.0.1:0", "inproc://x", "udp://x"],
)
async def test_an_invalid_address_of_a_server_is_refused(endpoint: str) -> None:
    with pytest.raises(trioreq.EndpointError, match="write it as"):
        async with trioreq.open_client(endpoint):
            pass


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("tcp://::1:5555", r"needs brackets: write it as 'tcp://\[::1\]:5555'"),
        ("tcp://[localhost]:5555", "'localhost' is not an IPv6 address"),
        ("tcp://[::1%]:5555", "'::1%' is not an IPv6 address"),
        ("tcp://a host:5555", "'a host' is not the name of a host"),
        ("tcp://-host:5555", "'-host' is not the name of a host"),
        ("tcp://a..host:5555", "'a..host' is not the name of a host"),
        (f"tcp://{'x' * 64}.test:5555", "is not the name of a host"),
        ("tcp://host\0:5555", "write it as"),
        ("tcp://;host:5555", "'' is not an address to connect from"),
        ("tcp://here ;host:5555", "'here ' is not an address to connect from"),
        ("tcp://192.0.2.1:99999;host:1", "to connect from: give one .* as in 'tcp://192.0.2.1:0;"),
        ("tcp://192.0.2.1;host:1", "'192.0.2.1' is not an address to connect from"),
        ("tcp://192.0.2.1:;host:1", "'192.0.2.1:' is not an address to connect from"),
        ("tcp://h\udcff:1", "is not UTF-8: choose another"),
        ("ipc:///\udcff", "is not UTF-8: choose another"),
        (f"ipc:///{'x' * 107}", "the path is too long"),
        ("ipc:///a\0b", "write it as"),
        ("ipc://@", "needs a path"),
        ("ipc://*", "needs a path"),
    ],
)
async def test_an_address_that_can_never_be_connected_to_is_refused_at_once(
    endpoint: str, says: str
) -> None:
    with pytest.raises(trioreq.EndpointError, match=says) as caught:
        async with trioreq.open_client(endpoint):
            pass
    assert repr(endpoint) in str(caught.value)


async def test_the_longest_path_can_be_connected_to(tmp_path: Path) -> None:
    path = f"{tmp_path}/".ljust(107, "x")
    async with (
        serving(Worker(), f"ipc://{path}"),
        trioreq.open_client(f"ipc://{path}") as client,
    ):
        assert await client.request(b"echo") == b"re:echo"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout": 0}, ValueError),
        ({"retries": -1}, ValueError),
        ({"retries": 0.5}, TypeError),
        ({"connect_timeout": "1"}, TypeError),
        ({"heartbeat": -1}, ValueError),
        ({"max_message_size": 0}, ValueError),
    ],
)
async def test_options_are_checked(options: dict[str, object], error: type[Exception]) -> None:
    (name,) = options
    with pytest.raises(error, match=name):
        async with trioreq.open_client("tcp://127.0.0.1:1", **options):  # type: ignore[arg-type]
            pass


def test_the_process_can_end_with_a_client_that_was_never_closed() -> None:
    """A Context that is not terminated must not hang the interpreter."""
    code = (
        "import trio, trioreq\n"
        "async def main():\n"
        "    async with trioreq.open_client('tcp://127.0.0.1:1') as client:\n"
        "        raise SystemExit(3)\n"
        "trio.run(main)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=20, capture_output=True, check=False
    )
    assert done.returncode == 3, done.stderr
