"""What happens to the reply when a ZeroMQ client crashes? Stock libzmq compared with trioreq.

    python examples/orphaned_replies.py [killed] [unread] [stranger] [blocked]

Each experiment runs with a ROUTER/DEALER proxy in front of REP workers, which is libzmq alone, and
then with trioreq. Clients and servers are processes of their own, and are killed with SIGKILL. Each
process reports its own events. All four experiments take 20 seconds.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import trio
import zmq

import trioreq

UNREAD = 5_000  # requests of a client that reads no reply
REPLY = bytes(10_000)  # the reply to each of them
CROWD = 20  # clients that send a request at once
NAP = 0.1  # seconds of work for each of them
IN_VAIN = 1.0  # seconds without an event after which a process is silent
PATIENCE = 60  # seconds that one experiment may take

# The servers. A request has the work and the client's name: "work" until the experiment ends it,
# "nap" for a short time, "large" for a large reply at once, "echo" for a small one. Servers and
# clients report events on standard output, and read orders from standard input.


def report(*words: object) -> None:
    """Report an event to the experiment."""
    line = " ".join(map(str, words))
    print(line + "\n", end="", flush=True)  # in one piece, whatever other threads report


def obey(release: Callable[[], object]) -> None:
    """Follow the orders of the experiment until it ends."""
    for order in sys.stdin:
        if order == "release\n":
            release()
        elif order == "memory\n":
            ctypes.CDLL(None).malloc_trim(0)
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            report("memory", pages * os.sysconf("SC_PAGESIZE") // 1_000_000)
    os._exit(0)


def serve_stock(workers: str, *options: str) -> None:
    """Be the classic server: zmq.proxy between a ROUTER and a DEALER, and REP workers behind it.

    Options are those of the ROUTER, which are set to 1, and LOW_HWM for the DEALER.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    for option in options:
        if option == "LOW_HWM":
            back.sndhwm = 1
        else:
            front.setsockopt(getattr(zmq, option), 1)
    disconnects = front.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    copies, copied = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    copied.rcvhwm = 0
    copied.bind("inproc://copies")
    copies.connect("inproc://copies")
    back.bind("inproc://workers")
    reps = [context.socket(zmq.REP) for _ in range(int(workers))]
    for rep in reps:
        rep.rcvhwm = back.sndhwm
        rep.connect("inproc://workers")
    report(f"tcp://127.0.0.1:{front.bind_to_random_port('tcp://127.0.0.1')}")

    released = threading.Event()
    large = itertools.count(1)

    def work(rep: zmq.Socket[bytes]) -> None:
        while True:
            what, name = rep.recv().decode().split()
            if what == "work":
                report("begins", name)
                released.wait()
            elif what == "nap":
                time.sleep(NAP)
            rep.send(REPLY if what == "large" else f"a reply for {name}".encode())
            if what == "work":
                report("has sent", name)
            elif what == "large" and next(large) % UNREAD == 0:
                report("has sent all")

    def watch_messages() -> None:
        while True:
            what, *name = copied.recv_multipart()[-1].decode(errors="replace").split()
            if what in ("work", "nap"):
                report("has taken", *name)

    def watch_disconnects() -> None:
        while disconnects.recv_multipart():
            report("disconnected")

    for rep in reps:
        threading.Thread(target=work, args=(rep,), daemon=True).start()
    for function in (watch_messages, watch_disconnects, lambda: obey(released.set)):
        threading.Thread(target=function, daemon=True).start()
    try:
        zmq.proxy(front, back, copies)
    except zmq.ZMQError as error:
        report(f"zmq.proxy raises {error!r}")
    threading.Event().wait()


async def serve_trioreq() -> None:
    """Be a server on trioreq, with one worker too, for all requests but "work"."""
    released = trio.Event()
    worker = trio.CapacityLimiter(1)

    async def handler(request: trioreq.Request) -> bytes:
        what, name = request.body.decode().split()
        try:
            if what == "work":
                report("begins", name)
                await released.wait()
            elif what != "large":
                report("has taken", name)
                async with worker:
                    await trio.sleep(NAP if what == "nap" else 0)
        except trio.Cancelled:
            report("cancelled", name, request.cancel_reason)
            raise
        return REPLY if what == "large" else f"a reply for {name}".encode()

    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    token = trio.lowlevel.current_trio_token()

    def release() -> None:
        trio.from_thread.run_sync(released.set, trio_token=token)

    async with trioreq.open_server(handler, "tcp://127.0.0.1:0") as server:
        report(*server.endpoints)
        threading.Thread(target=obey, args=(release,), daemon=True).start()
        await trio.sleep_forever()


# The clients: stock sockets, the same for both servers. They stay connected until they are killed.


def ask(endpoint: str, request: str, routing_id: str = "", *options: str) -> None:
    """Be a client: a REQ that sends one request, on the order of the experiment."""
    socket = zmq.Context().socket(zmq.REQ)
    if routing_id:
        socket.routing_id = routing_id.encode()
    for option in options:
        socket.setsockopt(getattr(zmq, option), 1)
    socket.connect(endpoint)
    report("is ready")
    sys.stdin.readline()
    asked = time.perf_counter()
    socket.send_string(request)
    report(f"gets {socket.recv_string()!r}")
    report(f"{time.perf_counter() - asked:.1f} s")
    signal.pause()


def ask_in_a_crowd(endpoint: str) -> None:
    """Be many clients: each a REQ that sends one request."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    poller = zmq.Poller()
    asked = time.perf_counter()
    for number in range(CROWD):
        socket = context.socket(zmq.REQ)
        socket.connect(endpoint)
        socket.send_string(f"nap {number}")
        poller.register(socket, zmq.POLLIN)
    poller.poll()
    report(f"{time.perf_counter() - asked:.1f} s")
    signal.pause()


def ask_and_hang(endpoint: str) -> None:
    """Be a client: a DEALER that sends many requests, and reads on the order of the experiment."""
    socket = zmq.Context().socket(zmq.DEALER)
    disconnects = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    socket.reconnect_ivl = -1  # never: one connection is tested
    socket.connect(endpoint)
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLOUT)
    poller.register(disconnects, zmq.POLLIN)
    poller.register(sys.stdin, zmq.POLLIN)
    left = UNREAD
    while left and dict(poller.poll()) == {socket: zmq.POLLOUT}:
        socket.send_multipart([b"", b"large carol"])
        left -= 1
    sys.stdin.readline()
    replies = 0
    while socket.poll(round(IN_VAIN * 1000)):
        socket.recv_multipart()
        replies += 1
    if disconnects.poll(0):
        report("was disconnected")
    else:
        report(f"reads {replies:,}, and no more arrive; the connection is open")
    signal.pause()


# The experiments.


class Process:
    """A client or a server, and the events that it reports. It is killed after the experiment."""

    started: ClassVar[list[Process]] = []

    def __init__(self, *words: str) -> None:
        command = [sys.executable, __file__, "as", *words]
        self.process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.started.append(self)

    def next_event(self) -> str:
        """Wait for the next event."""
        line = self.stdout.readline().rstrip("\n")
        assert line, f"{self.process.args!r} has ended too early"
        return line

    def event(self, beginning: str) -> str:
        """Wait for an event with this beginning, and skip others."""
        while not (event := self.next_event()).startswith(beginning):
            pass
        return event

    def is_silent(self) -> bool:
        """Whether there is no event for a time."""
        return not select.select([self.stdout], [], [], IN_VAIN)[0]

    def order(self, order: str) -> None:
        """Send it an order."""
        print(order, file=self.stdin, flush=True)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self.process.kill()
        self.process.wait()


class Server(Process):
    """A server of either kind."""

    def __init__(self, *words: str) -> None:
        super().__init__(*words)
        self.kind = words[0]
        self.endpoint = self.next_event()

    def client(self, role: str, *words: str) -> Process:
        """Start a client."""
        return Process(role, self.endpoint, *words)

    def ask(self, request: str, *arguments: str) -> Process:
        """Start a client, and let it send one request."""
        client = self.client("ask", request, *arguments)
        client.event("is ready")
        client.order("ask")
        return client

    def memory(self) -> int:
        """Its memory, in MB."""
        self.order("memory")
        return int(self.event("memory").split()[1])


def tell(kind: str, text: str) -> None:
    """Print an observation."""
    print(f"  {kind:7}  {text}", flush=True)


def killed() -> None:
    """A client is killed while a worker works for it."""
    server = Server("stock", "1")
    alice = server.ask("work alice")
    server.event("begins alice")
    alice.kill()
    server.event("disconnected")
    tell("stock", "the connection is closed; the worker continues")
    server.order("release")
    server.event("has sent alice")
    tell("stock", "the worker sends the reply, without an error; libzmq drops it")

    server = Server("trioreq")
    alice = server.ask("work alice")
    server.event("begins alice")
    since = time.perf_counter()
    alice.kill()
    reason = server.event("cancelled alice").split()[-1]
    after = (time.perf_counter() - since) * 1000
    tell("trioreq", f"the handler is cancelled {after:.1f} ms after SIGKILL: {reason}")


def unread() -> None:
    """A client asks for 5,000 replies of 10 kB, and hangs: it does not read them."""
    server = Server("stock", "1")
    before = server.memory()
    for end in ("killed", "read"):
        carol = server.client("ask_and_hang")
        server.event("has sent all")
        server.ask("echo bob").event("gets")
        tell(
            "stock",
            f"the worker has sent all, without an error; {server.memory() - before} MB are queued",
        )
        if end == "killed":
            carol.kill()
            server.ask("echo bob").event("gets")
            tell("stock", f"carol is killed: {server.memory() - before} MB are queued")
        else:
            carol.order("read")
            tell("stock", f"a second carol continues: carol {carol.event('reads')}")

    server = Server("trioreq")
    before = server.memory()
    carol = server.client("ask_and_hang")
    tell("trioreq", f"logs: {server.event('evicted')}")
    server.ask("echo bob").event("gets")
    tell("trioreq", f"{server.memory() - before} MB are queued")
    carol.order("read")
    tell("trioreq", f"carol continues: carol {carol.next_event()}")


def stranger() -> None:
    """A client is killed, and the next process has the same routing id, or identity."""
    for options in ([], ["REQ_CORRELATE"]):
        server = Server("stock", "1")
        alice = server.ask("work alice", "desk")
        server.event("begins alice")
        alice.kill()
        server.event("disconnected")
        bob = server.ask("work bob", "desk", *options)
        server.event("has taken bob")
        server.order("release")
        tell("stock", f"{'with REQ_CORRELATE: ' if options else ''}bob {bob.event('gets')}")

    server = Server("stock", "1", "ROUTER_HANDOVER")
    alice = server.ask("work alice", "desk")
    server.event("begins alice")
    bob = server.ask("work bob", "desk")
    server.event("has taken bob")
    server.order("release")
    tell("stock", f"with ROUTER_HANDOVER, and alice alive: bob {bob.event('gets')}, alice nothing")
    assert alice.is_silent()

    server = Server("trioreq")
    alice = server.ask("work alice", "desk")
    server.event("begins alice")
    alice.kill()
    server.event("cancelled alice")
    bob = server.ask("work bob", "desk")
    server.event("begins bob")
    server.order("release")
    tell("trioreq", f"bob {bob.event('gets')}")


def blocked() -> None:
    """What delays the other clients."""
    for server in (Server("stock", "1"), Server("trioreq")):
        bob = server.client("ask", "echo bob")
        bob.event("is ready")
        crowd = server.client("ask_in_a_crowd")
        for _ in range(CROWD):
            server.event("has taken")
        crowd.kill()
        bob.order("ask")
        bob.event("gets")
        tell(server.kind, f"{CROWD} clients are killed in the queue: bob waits {bob.next_event()}")

    for server in (Server("stock", "1", "LOW_HWM"), Server("trioreq")):
        crowd = server.client("ask_in_a_crowd")
        option = "with SNDHWM=1 for the workers, " if server.kind == "stock" else ""
        after = crowd.next_event()
        tell(server.kind, f"{option}{CROWD} clients live: the first reply comes after {after}")

    server = Server("stock", "1", "ROUTER_MANDATORY")
    carol = server.client("ask_and_hang")
    while not (bob := server.ask("echo bob")).is_silent():
        pass  # the queue for carol is not full yet
    tell("stock", "with ROUTER_MANDATORY, and carol hanging: bob gets nothing")
    carol.order("read")
    tell("stock", f"with ROUTER_MANDATORY, carol reads: bob {bob.event('gets')}")

    server = Server("stock", "2", "ROUTER_MANDATORY")
    alice = server.ask("work alice")
    server.event("begins alice")
    alice.kill()
    server.event("disconnected")
    server.ask("echo bob").event("gets")
    server.order("release")
    end = server.event("zmq.proxy raises")
    tell("stock", f"with ROUTER_MANDATORY, and alice killed: {end}")
    assert server.ask("echo bob").is_silent()
    tell("stock", "with ROUTER_MANDATORY, and alice killed: bob gets nothing")


def give_up(*_: object) -> None:
    raise TimeoutError(f"an experiment takes longer than {PATIENCE} s")


def experiment(names: list[str]) -> None:
    """Run the experiments of these names, or all."""
    signal.signal(signal.SIGALRM, give_up)
    for function in (killed, unread, stranger, blocked):
        if not names or function.__name__ in names:
            print(f"{function.__name__}: {function.__doc__}", flush=True)
            signal.alarm(PATIENCE)
            try:
                function()
            finally:
                for started in Process.started:
                    with started.process as process:  # waits for it, and closes its pipes
                        process.kill()
                Process.started.clear()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["as", "stock", *options]:
            serve_stock(*options)
        case ["as", "trioreq"]:
            trio.run(serve_trioreq)
        case ["as", "ask", *arguments]:
            ask(*arguments)
        case ["as", "ask_in_a_crowd", endpoint]:
            ask_in_a_crowd(endpoint)
        case ["as", "ask_and_hang", endpoint]:
            ask_and_hang(endpoint)
        case names:
            experiment(names)
