"""Whole messages from and to real sockets: both implementations do the same.

No test of threads depends on how fast one is. Python lets another thread run only where the one
that runs releases the GIL, since the switch interval is longer than the test. Where a test needs
another thread to have run, it repeats until it has.
"""

from __future__ import annotations

import codecs
import gc
import itertools
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from errno import EAGAIN, EBUSY, EHOSTUNREACH, EINVAL, ENOTSOCK
from functools import partial
from typing import Any

import psutil
import pytest
import zmq
from support import cmessages
from support.stock import readable

from harness.clients import Clients
from harness.zmtp import RawPeer, message
from trioreq._transport.messages import Messages, PyMessages

Way = Callable[[zmq.Socket[bytes]], Messages]
LARGE = 256 * 1024  # bytes of a frame that is copied without the GIL
NUMBERS = itertools.count()
FRAMES = [
    [b""],
    [b"", b""],
    [b"\0", b"x" * 100_000, b""],
    [bytes(LARGE - 1), bytes(LARGE), bytes(LARGE + 1)],
    [bytes([number]) for number in range(256)],
    # What is kept together in C ends within, with and after the message.
    *([bytes([length])] * length for length in (14, 15, 16, 17, 31, 32, 33, 47, 48, 49)),
]


@pytest.fixture(scope="session")
def in_c() -> Way:
    found: Way = cmessages.load(cmessages.library()).Messages
    return found


@pytest.fixture(params=["by_frame", "in_c"])
def way(request: pytest.FixtureRequest) -> Way:
    return PyMessages if request.param == "by_frame" else request.getfixturevalue("in_c")


class Sockets:
    """Makes sockets, which stay open until the end of the test."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.context.max_sockets = 4096
        self._held: list[zmq.Socket[bytes]] = []

    def open(self, kind: int) -> zmq.Socket[bytes]:
        raw = self.context.socket(kind)
        self._held.append(raw)
        return raw


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    sockets = Sockets()
    yield sockets
    sockets.context.destroy(linger=0)


class Router:
    """A ROUTER, and its endpoint."""

    def __init__(self, way: Way, sockets: Sockets) -> None:
        self.raw = sockets.open(zmq.ROUTER)
        self.raw.router_mandatory = True
        self.raw.sndhwm = 5
        self.raw.sndbuf = 4096
        port = self.raw.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self.messages = way(self.raw)

    def next(
        self, known: dict[bytes, Any] | None = None, names: tuple[str, ...] = ()
    ) -> tuple[bytes, list[bytes], tuple[int, tuple[str, ...]] | None]:
        """Wait for a message and receive it."""
        assert self.raw.poll(5000)
        received = self.messages.receive_from(known or {}, names)
        assert received is not None
        return received


@pytest.fixture
def router(way: Way, sockets: Sockets) -> Router:
    return Router(way, sockets)


class Pair:
    """Two connected sockets: what one sends has arrived when `send` returns."""

    def __init__(self, way: Way, sockets: Sockets) -> None:
        sender, receiver = sockets.open(zmq.PAIR), sockets.open(zmq.PAIR)
        sender.sndhwm = receiver.rcvhwm = 0
        endpoint = f"inproc://{next(NUMBERS)}"
        receiver.bind(endpoint)
        sender.connect(endpoint)
        self.sender = way(sender)
        self.receiver = way(receiver)
        self.raw_receiver = receiver


@pytest.fixture
def no_switching() -> Iterator[None]:
    """Let no thread run but where the one that runs releases the GIL."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(interval)


def ran_meanwhile(work: Callable[[], object], call: Callable[[], object]) -> bool:
    """Make a call; returns whether another thread has done its work meanwhile.

    For a test with `no_switching`.
    """
    start, done = threading.Lock(), threading.Event()
    waits = threading.Event()
    start.acquire()

    def run() -> None:
        waits.set()
        with start:
            work()
            done.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert waits.wait(5)
    start.release()  # the thread has to wait for the GIL
    before = done.is_set()
    try:
        call()
        return done.is_set() and not before
    finally:
        thread.join()


def repeat_until_it_ran(once: Callable[[], bool]) -> None:
    """Repeat what a thread may have been too slow for."""
    assert any(once() for _ in range(1000))


def test_a_message_arrives_as_it_was_sent(router: Router, clients: Clients) -> None:
    dealer = clients.connect(router.endpoint, zmq.DEALER).raw
    for frames in FRAMES:
        dealer.send_multipart(frames)
        routing_id, received, _ = router.next()
        assert received == frames
        assert router.messages.send_to(routing_id, tuple(frames)) == 0
        assert dealer.recv_multipart() == frames
        assert router.messages.send([routing_id, *frames]) == 0
        assert dealer.recv_multipart() == frames
    assert router.messages.receive_from({}, ()) is None
    assert router.messages.receive() is None
    dealer.send_multipart(FRAMES[2])
    assert router.raw.poll(5000)
    assert router.messages.receive() == [routing_id, *FRAMES[2]]


def test_frames_stay_with_their_message(router: Router, clients: Clients) -> None:
    """Also if others send at the same time, and if the frames are routing ids."""
    dealers = [clients.connect(router.endpoint, zmq.DEALER).raw for _ in range(3)]
    ids = []
    for dealer in dealers:
        dealer.send(b"")
        ids.append(router.next()[0])
    sent = {
        routing_id: [[ids[number]] * length + [b""] for length in range(5) for number in range(3)]
        for routing_id in ids
    }
    for routing_id, dealer in zip(ids, dealers, strict=True):
        for frames in sent[routing_id]:
            dealer.send_multipart(frames)
    received: dict[bytes, list[list[bytes]]] = {routing_id: [] for routing_id in ids}
    for _ in range(45):
        routing_id, frames, _ = router.next(dict.fromkeys(ids))
        received[routing_id].append(frames)
    assert received == sent


def test_a_message_has_its_origin(router: Router, clients: Clients) -> None:
    names = ("Peer-Address", "X-None", "Socket-Type")
    dealer = clients.connect(router.endpoint, zmq.DEALER).raw
    dealer.send_multipart([b"a", b"b"])
    routing_id, _, origin = router.next({b"another": None}, names)
    assert origin is not None
    descriptor, properties = origin
    assert properties == ("127.0.0.1", "", "DEALER")
    port = int(router.endpoint.rpartition(":")[2])
    inside = [
        connection.fd
        for connection in psutil.Process().net_connections("tcp")
        if connection.laddr.port == port and connection.raddr
    ]
    assert inside == [descriptor]
    dealer.send(b"again")
    assert router.next({routing_id: None}, names) == (routing_id, [b"again"], None)
    dealer.send(b"and again")
    assert router.next({}, ()) == (routing_id, [b"and again"], (descriptor, ()))


def test_a_property_may_be_anything(router: Router) -> None:
    """Without a ZAP handler, the client alone decides on most of them."""
    with RawPeer(router.endpoint) as peer:
        odd = [(b"X-Bytes", b"a\xffb"), (b"X-Zero", b"a\0b"), (b"X-Empty", b"")]
        odd += [(b"X-Long", b"x" * 10_000)]
        peer.shake_hands(b"DEALER", b"", *odd)
        peer.send(message(b"x"))
        _, _, origin = router.next({}, ("X-Bytes", "X-Zero", "X-Empty", "X-Long", "", "\xff"))
    assert origin is not None
    assert origin[1] == ("a\\xffb", "a", "", "x" * 10_000, "", "")


def test_a_message_that_cannot_be_sent_leaves_nothing_behind(
    router: Router, clients: Clients
) -> None:
    dealer = clients.connect(router.endpoint, zmq.DEALER, RCVHWM=1, RCVBUF=4096).raw
    dealer.send(b"hello")
    routing_id = router.next()[0]
    assert router.messages.send_to(b"nobody", [b"a", b"b"]) == EHOSTUNREACH
    large = [b"a", bytes(1_000_000), b"b"]
    sent = 0
    while (error := router.messages.send_to(routing_id, large)) == 0:
        sent += 1
    assert error == EAGAIN
    assert router.messages.send([routing_id, *large]) == EAGAIN
    assert router.messages.send_to(routing_id, [b"x"] * 100) == EAGAIN
    for _ in range(sent):
        assert dealer.recv_multipart() == large
    while router.messages.send_to(routing_id, [b"the", b"end"]):
        router.raw.poll(10, zmq.POLLOUT)  # libzmq makes room some time after it has read
    assert dealer.recv_multipart() == [b"the", b"end"]


@pytest.mark.parametrize("routing_id", [b"", b"nobody", b"x" * 1000])
def test_send_expects_that_there_is_a_receiver(router: Router, routing_id: bytes) -> None:
    """Unlike `send_to`, which reports it."""
    assert router.messages.send_to(routing_id, [b"x"]) == EHOSTUNREACH
    with pytest.raises(zmq.ZMQError) as caught:
        router.messages.send([routing_id, b"x"])
    assert caught.value.errno == EHOSTUNREACH


def test_a_connection_may_break_in_the_middle_of_a_message(way: Way, sockets: Sockets) -> None:
    router, dealer = sockets.open(zmq.ROUTER), sockets.open(zmq.DEALER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    dealer.maxmsgsize = 100
    dealer.connect(f"tcp://127.0.0.1:{port}")
    dealer.send(b"hello")
    routing_id, _ = router.recv_multipart()
    messages = way(dealer)
    router.send_multipart([routing_id, bytes(1000)])  # more than the DEALER accepts
    while (error := messages.send([b"x"] * 200_000)) == 0:
        pass
    assert error == EAGAIN


def test_a_socket_is_readable_while_it_has_a_message(router: Router, clients: Clients) -> None:
    assert not router.messages.readable()
    clients.connect(router.endpoint, zmq.DEALER).raw.send(b"x")
    assert router.raw.poll(5000)
    assert router.messages.readable()
    router.next()
    assert not router.messages.readable()


def calls_of(messages: Messages) -> list[Callable[[], object]]:
    """A call of each function that uses the socket."""
    return [
        messages.receive,
        lambda: messages.receive_from({}, ()),
        lambda: messages.send([b"x"]),
        lambda: messages.send([bytes(LARGE)] * 40),
        lambda: messages.send_to(b"x", [b"x"]),
        messages.readable,
    ]


@pytest.mark.parametrize("how", ["messages", "socket", "context"])
def test_a_closed_socket_is_an_error(router: Router, sockets: Sockets, how: str) -> None:
    messages = router.messages
    assert messages.raw is router.raw  # type: ignore[attr-defined]
    if how == "messages":
        messages.close()
    elif how == "socket":
        router.raw.close()
    else:
        sockets.context.destroy(linger=0)
    assert router.raw.closed
    for call in calls_of(messages):
        with pytest.raises(zmq.ZMQError) as caught:
            call()
        assert caught.value.errno == ENOTSOCK
    messages.close()


def test_an_ended_context_is_an_error(way: Way) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    messages = way(socket)
    ending = threading.Thread(target=context.term)
    ending.start()
    try:
        with pytest.raises(zmq.ContextTerminated):
            socket.poll(5000)  # until the other thread has begun
        for call in calls_of(messages):
            with pytest.raises(zmq.ContextTerminated):
                call()
    finally:
        messages.close()
        ending.join()


def test_in_c_arguments_are_checked_before_anything_is_sent(in_c: Way, sockets: Sockets) -> None:
    pair = Pair(in_c, sockets)
    messages: Any = pair.sender
    wrong: dict[str, list[Any]] = {
        "send": [
            ([b"x", "text"],),
            ([],),
            (b"",),
            (b"x",),
            (1,),
            ([b"x", None],),
            ([bytearray(b"x")],),
            ([memoryview(b"x")],),
            ([b"x"] * 40 + [1],),
        ],
        "send_to": [
            ("text", [b"x"]),
            (bytearray(b"x"), [b"x"]),
            (b"x", []),
            (b"x", ["x"]),
            (b"x", None),
            (b"x",),
            (b"x", [b"y"], 1),
        ],
        "receive_from": [(), ({},), ([], ()), ({}, []), ({}, (), 1)],
    }
    for name, calls in wrong.items():
        for arguments in calls:
            with pytest.raises(TypeError):
                getattr(messages, name)(*arguments)

    def broken() -> Iterator[bytes]:
        yield b"x"
        raise LookupError

    with pytest.raises(LookupError):
        messages.send(broken())
    assert not readable(pair.raw_receiver)


def test_in_c_only_an_open_socket_of_pyzmq_is_accepted(in_c: Way, sockets: Sockets) -> None:
    class Lookalike:
        underlying = 4096

    anything: Any = in_c
    for arguments in [(), (None,), (Lookalike(),), (sockets.open(zmq.PAIR), 1)]:
        with pytest.raises(TypeError):
            anything(*arguments)
    with pytest.raises(TypeError):
        anything(raw=sockets.open(zmq.PAIR))
    closed = sockets.open(zmq.PAIR)
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        in_c(closed)


def test_in_c_an_error_while_a_message_becomes_python_objects_costs_that_message_alone(
    in_c: Way, clients: Clients, sockets: Sockets
) -> None:
    class Unequal(bytes):
        __hash__ = bytes.__hash__

        def __eq__(self, other: object) -> bool:
            raise LookupError

    router = Router(in_c, sockets)
    dealer = clients.connect(router.endpoint, zmq.DEALER).raw
    dealer.send(b"hello")
    routing_id = router.next()[0]
    cases: list[tuple[dict[bytes, Any], Any, type[Exception]]] = [
        ({Unequal(routing_id): None}, (), LookupError),
        ({}, (1,), TypeError),
        ({}, ("\udcff",), UnicodeEncodeError),
    ]
    for known, names, error in cases:
        dealer.send_multipart([b"lost"] * 40)
        dealer.send(b"next")
        with pytest.raises(error):
            router.next(known, names)
        assert router.next()[:2] == (routing_id, [b"next"])


def test_in_c_receive_from_refuses_messages_that_are_not_from_a_router(
    in_c: Way, sockets: Sockets
) -> None:
    pair = Pair(in_c, sockets)
    pair.sender.send([b"x"])
    with pytest.raises(zmq.ZMQError) as caught:
        pair.receiver.receive_from({}, ())
    assert caught.value.errno == EINVAL


def test_in_c_no_memory_is_kept(in_c: Way, clients: Clients, sockets: Sockets) -> None:
    router = Router(in_c, sockets)
    dealer = clients.connect(router.endpoint, zmq.DEALER).raw

    def use(times: int, size: int) -> None:
        for _ in range(times):
            dealer.send_multipart([bytes(size), *[b"y"] * 40])
            routing_id, frames, _ = router.next({}, ("Peer-Address", "X-None"))
            assert router.messages.send_to(routing_id, frames[1:]) == 0
            assert router.messages.send_to(b"nobody", frames) == EHOSTUNREACH
            dealer.recv_multipart()
            with pytest.raises(TypeError):
                router.messages.send([b"x", "text"])  # type: ignore[list-item]
        gc.collect()

    use(10, 1000)
    tracemalloc.start()  # for Python's memory
    try:
        use(10, 1000)
        before = tracemalloc.get_traced_memory()[0]
        use(300, 1000)
        assert tracemalloc.get_traced_memory()[0] - before < 300 * 20
    finally:
        tracemalloc.stop()
    use(10, 1_000_000)
    resident = psutil.Process().memory_info().rss  # for libzmq's, and the extension's own
    use(100, 1_000_000)
    assert psutil.Process().memory_info().rss - resident < 50_000_000


def test_in_c_the_garbage_collector_finds_a_cycle(in_c: Way) -> None:
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.__dict__["messages"] = in_c(socket)
        gone = weakref.ref(socket)
    del socket
    gc.collect()
    assert gone() is None


@pytest.mark.usefixtures("no_switching")
def test_in_c_other_threads_run_while_a_large_frame_is_copied(in_c: Way, sockets: Sockets) -> None:
    def send() -> bool:
        return ran_meanwhile(int, lambda: Pair(in_c, sockets).sender.send([bytes(8 * LARGE)]))

    def receive() -> bool:
        pair = Pair(in_c, sockets)
        pair.sender.send([b"x", bytes(8 * LARGE), b"x"])
        return ran_meanwhile(int, pair.receiver.receive)

    repeat_until_it_ran(send)
    repeat_until_it_ran(receive)


@pytest.mark.usefixtures("no_switching")
def test_in_c_other_threads_do_not_run_while_small_frames_are_copied(
    in_c: Way, sockets: Sockets
) -> None:
    """To release the GIL would cost more than the message."""
    frames = [bytes(LARGE - 1)] * 20
    pair = Pair(in_c, sockets)
    for _ in range(20):
        assert not ran_meanwhile(int, lambda: pair.sender.send(frames))
        assert not ran_meanwhile(int, pair.receiver.receive)


@pytest.mark.usefixtures("no_switching")
def test_in_c_other_threads_run_while_many_frames_are_copied(in_c: Way, sockets: Sockets) -> None:
    def receive() -> bool:
        pair = Pair(in_c, sockets)
        pair.sender.send([b""] * 100_000)
        return ran_meanwhile(int, pair.receiver.receive)

    repeat_until_it_ran(receive)


def in_garbage_collector(kind: type[list[bytes] | tuple[str, ...]], length: int) -> int:
    """How many containers the garbage collector shows, without a look at their items."""
    return sum(type(one) is kind and len(one) == length for one in gc.get_objects())


@pytest.mark.usefixtures("no_switching")
@pytest.mark.parametrize(
    "frames",
    [
        pytest.param((b"",) * 100_000, id="many_frames"),
        pytest.param((b"", bytes(8 * LARGE), *[b""] * 1_000), id="large"),
    ],
)
def test_in_c_a_list_of_frames_is_hidden_until_it_is_complete(
    in_c: Way, sockets: Sockets, frames: tuple[bytes, ...]
) -> None:
    """The garbage collector shows its objects to other threads, and NULL items crash them."""

    def receive() -> bool:
        pair = Pair(in_c, sockets)
        pair.sender.send(frames)
        received: list[list[bytes] | None] = []
        seen: list[int] = []

        def look() -> None:
            seen.append(in_garbage_collector(list, len(frames)))

        before = in_garbage_collector(list, len(frames))
        ran = ran_meanwhile(look, lambda: received.append(pair.receiver.receive()))
        assert received == [list(frames)]
        assert gc.is_tracked(received[0])
        assert not ran or seen == [before]
        return ran

    repeat_until_it_ran(receive)


def test_in_c_the_properties_are_hidden_until_they_are_complete(
    in_c: Way, sockets: Sockets
) -> None:
    """An error handler in Python runs while they are decoded."""
    names = ("X-Bytes", *["X-None"] * 100)
    seen: list[int] = []

    def look(error: UnicodeError) -> tuple[str | bytes, int]:
        seen.append(in_garbage_collector(tuple, len(names)))
        return escape(error)

    router = Router(in_c, sockets)
    gc.collect()  # after this the garbage collector does not track the names
    before = in_garbage_collector(tuple, len(names))
    escape = codecs.lookup_error("backslashreplace")
    codecs.register_error("backslashreplace", look)
    try:
        with RawPeer(router.endpoint) as peer:
            peer.shake_hands(b"DEALER", b"", (b"X-Bytes", b"a\xffb"))
            peer.send(message(b"x"))
            _, _, origin = router.next({}, names)
    finally:
        codecs.register_error("backslashreplace", escape)
    assert origin is not None
    assert origin[1][0] == "a\\xffb"
    assert seen == [before]


@pytest.mark.usefixtures("no_switching")
def test_in_c_another_thread_may_close_the_socket_while_a_frame_is_copied(
    in_c: Way, sockets: Sockets
) -> None:
    frames = [b"x", bytes(8 * LARGE), b"y" * LARGE, *[b"z"] * 40]

    def receive() -> bool:
        pair = Pair(in_c, sockets)
        pair.sender.send(frames)
        received: list[list[bytes] | None] = []
        ran = ran_meanwhile(pair.receiver.close, lambda: received.append(pair.receiver.receive()))
        assert received == [frames]
        with pytest.raises(zmq.ZMQError):
            pair.receiver.receive()
        return ran

    def send() -> bool:
        pair = Pair(in_c, sockets)
        errors: list[int | None] = []

        def call() -> None:
            try:
                pair.sender.send(frames)
            except zmq.ZMQError as error:
                errors.append(error.errno)

        ran = ran_meanwhile(pair.sender.close, call)
        assert errors == ([ENOTSOCK] if ran else [])
        assert (pair.receiver.receive() is None) is ran  # the whole message, or nothing
        return ran

    repeat_until_it_ran(receive)
    repeat_until_it_ran(send)


class Routed:
    """A ROUTER and a DEALER that is connected: what is sent has arrived when `send_to` returns."""

    def __init__(self, way: Way, sockets: Sockets) -> None:
        self.router, self.dealer = sockets.open(zmq.ROUTER), sockets.open(zmq.DEALER)
        self.router.router_mandatory = True
        endpoint = f"inproc://{next(NUMBERS)}"
        self.router.bind(endpoint)
        self.dealer.connect(endpoint)
        self.dealer.send(b"hello")
        self.routing_id = self.router.recv_multipart()[0]
        self.messages = way(self.router)


@pytest.mark.usefixtures("no_switching")
def test_in_c_another_thread_cannot_send_into_a_message_that_a_router_has_begun(
    in_c: Way, sockets: Sockets
) -> None:
    """The frames would go to the client of the first, whatever their routing id."""
    frames = [b"x", bytes(8 * LARGE), b"y"]

    def send() -> bool:
        routed = Routed(in_c, sockets)
        send_to, routing_id = routed.messages.send_to, routed.routing_id
        errors: list[int | None] = []

        def disturb() -> None:
            other: list[Callable[[], int]] = [
                lambda: send_to(routing_id, [b"other"]),
                lambda: routed.messages.send([routing_id, b"other"]),
            ]
            for call in other:
                try:
                    call()
                except zmq.ZMQError as error:
                    errors.append(error.errno)

        ran = ran_meanwhile(disturb, lambda: send_to(routing_id, frames))
        assert errors == ([EBUSY, EBUSY] if ran else [])
        received = [routed.dealer.recv_multipart() for _ in range(1 if ran else 3)]
        assert frames in received
        assert not readable(routed.dealer)
        assert send_to(routing_id, [b"next"]) == 0
        assert routed.dealer.recv_multipart() == [b"next"]
        return ran

    repeat_until_it_ran(send)


@pytest.mark.usefixtures("no_switching")
def test_in_c_another_thread_may_close_a_router_that_has_begun_a_message(
    in_c: Way, sockets: Sockets
) -> None:
    def send() -> bool:
        routed = Routed(in_c, sockets)
        errors: list[int | None] = []

        def call() -> None:
            try:
                routed.messages.send_to(routed.routing_id, [b"x", bytes(8 * LARGE)])
            except zmq.ZMQError as error:
                errors.append(error.errno)

        ran = ran_meanwhile(routed.messages.close, call)
        assert errors == ([ENOTSOCK] if ran else [])
        assert readable(routed.dealer) is not ran  # the whole message, or nothing
        return ran

    repeat_until_it_ran(send)


@pytest.mark.usefixtures("no_switching")
def test_in_c_another_thread_may_change_the_frames_while_one_is_copied(
    in_c: Way, sockets: Sockets
) -> None:
    def send() -> bool:
        pair = Pair(in_c, sockets)
        frames = [bytes(8 * LARGE), b"%d" % id(pair) * 1000, *[b"x" * 1000] * 40]
        expected = list(map(len, frames))
        ran = ran_meanwhile(frames.clear, lambda: pair.sender.send(frames))
        received = pair.receiver.receive()
        assert received is not None
        assert list(map(len, received)) == expected
        return ran

    repeat_until_it_ran(send)


def test_in_c_threads_that_share_a_socket_get_whole_messages(in_c: Way, sockets: Sockets) -> None:
    """Threads should not share one, but memory stays sound."""
    pair = Pair(in_c, sockets)
    per_thread = 20
    received: list[list[bytes]] = []
    problems: list[BaseException] = []

    def check(step: Callable[[], None]) -> None:
        try:
            for _ in range(per_thread):
                step()
        except BaseException as error:
            problems.append(error)
            raise

    def send(name: bytes) -> None:
        pair.sender.send([name, name * LARGE, name, name * LARGE, *[name] * 40])

    def receive() -> None:
        while (frames := pair.receiver.receive()) is None:
            pair.raw_receiver.poll(1)
        received.append(frames)

    senders = [partial(send, name) for name in (b"a", b"b")]
    threads = [threading.Thread(target=check, args=(step,)) for step in senders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    threads = [threading.Thread(target=check, args=(receive,)) for _ in senders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert sorted(frames[0] for frames in received) == [b"a"] * per_thread + [b"b"] * per_thread
    for frames in received:
        name = frames[0]
        assert frames == [name, name * LARGE, name, name * LARGE, *[name] * 40]
