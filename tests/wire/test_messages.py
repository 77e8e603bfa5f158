"""Whole messages, from and to real sockets: both ways do the same."""

from __future__ import annotations

import gc
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from errno import EAGAIN, EHOSTUNREACH, ENOTSOCK
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from support.clients import Clients
from support.stock import readable

import trioreq
from benchmarks.shared.compiler import compiled
from trioreq._transport.messages import Messages, PyMessages

SOURCE = Path(trioreq.__file__).with_name("_cmessages.c")
Way = Callable[[zmq.Socket[bytes]], Messages]
FRAMES = [
    [b""],
    [b"", b""],
    [b"\0", b"x" * 100_000, b""],
    [bytes([number]) for number in range(256)],
]


def load(path: str) -> Any:
    """Import a compiled `_cmessages`; each path is a module of its own."""
    loader = importlib.machinery.ExtensionFileLoader("_cmessages", path)
    spec = importlib.util.spec_from_loader("_cmessages", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def library() -> str:
    """`_cmessages`, compiled so that a warning is an error."""
    include = f"-I{sysconfig.get_path('include')}"
    options = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", include]
    if shutil.which(os.environ.get("CC", "cc")) is None and not os.environ.get("CI"):
        pytest.skip("there is no C compiler")
    return compiled(SOURCE, *options)


@pytest.fixture(scope="session")
def in_c(library: str) -> Way:
    found: Way = load(library).Messages
    return found


@pytest.fixture(params=["by frame", "in C"])
def way(request: pytest.FixtureRequest) -> Way:
    return PyMessages if request.param == "by frame" else request.getfixturevalue("in_c")


class Router:
    """A ROUTER that is read that way, and where it is."""

    def __init__(self, way: Way, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.raw = context.socket(zmq.ROUTER)
        self.raw.router_mandatory = True
        self.raw.sndhwm = 5
        self.raw.sndbuf = 4096
        port = self.raw.bind_to_random_port("tcp://127.0.0.1")
        self.endpoint = f"tcp://127.0.0.1:{port}"
        self.messages = way(self.raw)

    def next(
        self, known: dict[bytes, Any] | None = None, names: tuple[str, ...] = ()
    ) -> tuple[bytes, list[bytes], tuple[int, tuple[str, ...]] | None]:
        assert self.raw.poll(5000)
        message = self.messages.receive_from(known or {}, names)
        assert message is not None
        return message


@pytest.fixture
def router(way: Way) -> Iterator[Router]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield Router(way, context)
    context.destroy(linger=0)


def test_messages_come_and_go_as_they_are(router: Router, clients: Clients) -> None:
    dealer = clients.connect(router.endpoint, zmq.DEALER).raw
    for frames in FRAMES:
        dealer.send_multipart(frames)
    for frames in FRAMES:
        routing_id, came, _ = router.next()
        assert came == frames
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
    """Whatever they are, and whoever else speaks: here they are routing ids."""
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
    came: dict[bytes, list[list[bytes]]] = {routing_id: [] for routing_id in ids}
    for _ in range(45):
        routing_id, frames, _ = router.next(dict.fromkeys(ids))
        came[routing_id].append(frames)
    assert came == sent


def test_it_is_told_where_a_message_came_from(router: Router, clients: Clients) -> None:
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


def test_what_cannot_be_sent_leaves_nothing_behind(router: Router, clients: Clients) -> None:
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
    for _ in range(sent):
        assert dealer.recv_multipart() == large
    while router.messages.send_to(routing_id, [b"the", b"end"]):
        router.raw.poll(10, zmq.POLLOUT)  # libzmq gives the room back in its own time
    assert dealer.recv_multipart() == [b"the", b"end"]


def test_a_connection_that_breaks_in_mid_message_is_no_error(way: Way) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    dealer.maxmsgsize = 100
    dealer.connect(f"tcp://127.0.0.1:{port}")
    dealer.send(b"hello")
    routing_id, _ = router.recv_multipart()
    messages = way(dealer)
    router.send_multipart([routing_id, bytes(1000)])  # more than it takes
    while (error := messages.send([b"x"] * 200_000)) == 0:
        pass
    assert error == EAGAIN
    context.destroy(linger=0)


def test_it_tells_whether_there_is_something_to_read(router: Router, clients: Clients) -> None:
    assert not router.messages.readable()
    clients.connect(router.endpoint, zmq.DEALER).raw.send(b"x")
    assert router.raw.poll(5000)
    assert router.messages.readable()
    router.next()
    assert not router.messages.readable()


def test_a_closed_socket_is_an_error(router: Router) -> None:
    messages = router.messages
    assert messages.raw is router.raw  # type: ignore[attr-defined]
    messages.close()
    assert router.raw.closed
    calls: list[Callable[[], object]] = [
        messages.receive,
        lambda: messages.receive_from({}, ()),
        lambda: messages.send([b"x"]),
        lambda: messages.send_to(b"x", [b"x"]),
        messages.readable,
    ]
    for call in calls:
        with pytest.raises(zmq.ZMQError) as caught:
            call()
        assert caught.value.errno == ENOTSOCK
    messages.close()


def test_in_c_what_is_no_message_is_refused_as_a_whole(in_c: Way) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sender, receiver = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    sender.bind("inproc://pair")
    receiver.connect("inproc://pair")
    messages: Any = in_c(sender)
    wrong: dict[str, list[Any]] = {
        "send": [([b"x", "text"],), ([],), (b"",), (1,), ([b"x", None],)],
        "send_to": [("text", [b"x"]), (b"x", []), (b"x",), (b"x", [b"y"], 1)],
        "receive_from": [(), ({},), ([], ()), ({}, [])],
    }
    for name, calls in wrong.items():
        for arguments in calls:
            with pytest.raises(TypeError):
                getattr(messages, name)(*arguments)
    assert not readable(receiver)
    sender.close()
    with pytest.raises(ValueError, match="closed"):
        in_c(sender)
    context.destroy(linger=0)


def test_in_c_nothing_is_kept(in_c: Way, clients: Clients) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = Router(in_c, context)
    dealer = clients.connect(router.endpoint, zmq.DEALER).raw

    def use(times: int, size: int) -> None:
        for _ in range(times):
            dealer.send_multipart([bytes(size), b"y"])
            routing_id, frames, _ = router.next({}, ("Peer-Address", "X-None"))
            assert router.messages.send_to(routing_id, frames[1:]) == 0
            assert router.messages.send_to(b"nobody", frames) == EHOSTUNREACH
            dealer.recv_multipart()
            with pytest.raises(TypeError):
                router.messages.send([b"x", "text"])  # type: ignore[list-item]
        gc.collect()

    use(10, 1000)
    tracemalloc.start()  # for what is Python's
    try:
        use(10, 1000)
        before = tracemalloc.get_traced_memory()[0]
        use(300, 1000)
        assert tracemalloc.get_traced_memory()[0] - before < 300 * 20
    finally:
        tracemalloc.stop()
    use(10, 1_000_000)
    resident = psutil.Process().memory_info().rss  # for what is libzmq's
    use(100, 1_000_000)
    assert psutil.Process().memory_info().rss - resident < 50_000_000
    context.destroy(linger=0)


def test_in_c_other_threads_run_while_a_message_of_many_frames_is_read(
    in_c: Way, clients: Clients, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(0.0001)  # after which a thread that waits asks for Python's lock
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = Router(in_c, context)
    clients.connect(router.endpoint, zmq.DEALER).raw.send_multipart([b""] * 300_000)
    assert router.raw.poll(20_000)
    turns = 0
    over = threading.Event()

    def take_turns() -> None:
        nonlocal turns
        while not over.wait(0.0001):
            turns += 1

    thread = threading.Thread(target=take_turns)
    thread.start()
    before = turns
    assert len(router.next()[1]) == 300_000
    turns_taken = turns - before
    over.set()
    thread.join()
    assert turns_taken > 5
    context.destroy(linger=0)


@pytest.mark.parametrize("how", ["another version", "another place", "another backend"])
def test_in_c_another_libzmq_than_pyzmqs_is_not_called(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """What one has made would go into the other's code."""
    if how == "another version":
        monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 3, 4))
    elif how == "another place":
        monkeypatch.setattr(sys.modules["zmq.backend.cython._zmq"], "__file__", "/\udcff.so")
    else:
        monkeypatch.setitem(sys.modules, "zmq.backend.cython._zmq", None)
    one, another = str(tmp_path / "one"), str(tmp_path / "another")
    shutil.copy(library, one)
    shutil.copy(library, another)
    with pytest.raises(ImportError, match="not to be found") as caught:
        load(one)
    assert caught.type is ImportError  # so that the log says so
    monkeypatch.undo()
    assert load(another).Messages


BROKEN = """
import importlib.abc, logging, sys

class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "trioreq._transport._cmessages":
            raise ImportError("libzmq is nowhere")

sys.meta_path.insert(0, Broken())
logging.basicConfig()
import trioreq
assert not trioreq.__compiled__
"""


def test_where_it_cannot_be_used_the_log_says_so() -> None:
    command = [sys.executable, "-c", BROKEN]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == "WARNING:trioreq:trioreq is slower than it might be: libzmq is nowhere\n"
