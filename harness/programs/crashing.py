"""Clients that connect in groups, ask, and die: killed with their process, or by a reset.

    python -m harness.programs.crashing PROCESSES CONNECTIONS

Each line of the input is a JSON list: a way to die, ``killed`` or ``reset``, the number of the
first client, and for each kind of request an endpoint and a body; clients take the kinds in turn.
A group of so many processes is forked, each with so many connections. Once all have asked, they
die, and a line is written: how many have asked. Every fourth process of those that are killed has
REQ sockets of libzmq, the others are peers that speak ZMTP by hand.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import zmq

from ..zmtp import RawPeer, message

ASKED = b"."
LONGEST = 60  # seconds after which a process dies in any case
LIMIT = 10_000  # milliseconds in which a client must be connected


def live(way: str, process: int, requests: list[tuple[str, bytes]], asked: int) -> None:
    """Be one process of a group: connect all clients, and then send all requests at once."""
    signal.alarm(LONGEST)
    if way == "killed" and process % 4 == 0:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        sockets = [context.socket(zmq.REQ) for _ in requests]
        for socket, (endpoint, _) in zip(sockets, requests, strict=True):
            socket.immediate = True  # then a send waits for the connection
            socket.sndtimeo = LIMIT
            socket.connect(endpoint)
        for socket, (_, body) in zip(sockets, requests, strict=True):
            socket.send(body)
    else:
        peers = [RawPeer(endpoint) for endpoint, _ in requests]
        for peer in peers:
            peer.shake_hands(b"REQ")
        for peer, (_, body) in zip(peers, requests, strict=True):
            peer.send(message(b"", body))
            if way == "reset":
                peer.reset()
    os.write(asked, ASKED)
    signal.pause()


def group(way: str, first: int, kinds: list[tuple[str, str]], size: int, each: int) -> int:
    """Let a group connect, ask and die; returns how many have asked."""
    read, write = os.pipe()
    children: list[int] = []
    for process in range(size):
        numbers = range(first + process * each, first + (process + 1) * each)
        chosen = [kinds[number % len(kinds)] for number in numbers]
        child = os.fork()
        if not child:
            try:
                os.close(read)
                os.setpgid(0, children[0] if children else 0)
                live(way, process, [(end, body.encode()) for end, body in chosen], write)
            finally:
                os._exit(1)
        if not children:
            os.setpgid(child, child)  # the child does the same: either may be first
        children.append(child)
    os.close(write)
    asked = 0
    while asked < size and os.read(read, 1):
        asked += 1
    os.killpg(children[0], signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)
    os.close(read)
    return asked * each


def main() -> None:
    """Do what each line says, until the input ends."""
    size, each = int(sys.argv[1]), int(sys.argv[2])
    for line in sys.stdin:
        way, first, kinds = json.loads(line)
        print(group(way, first, kinds, size, each), flush=True)


if __name__ == "__main__":
    main()
