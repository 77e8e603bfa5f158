"""Many clients in one process that send many requests each and do not wait for replies.

    python -m harness.programs.pipeline ENDPOINT CLIENTS REQUESTS BODY reads|deaf

It writes a line when all is sent. With ``reads`` the clients read from then on, until they are
stopped; with ``deaf`` they never read, and send one more request every second.
"""

from __future__ import annotations

import contextlib
import selectors
import sys
import time

from ..zmtp import RawPeer, message


def main() -> None:
    """Send, and then read or not, until killed."""
    endpoint, clients, requests, body, kind = sys.argv[1:]
    request = message(b"", body.encode())
    peers = [RawPeer(endpoint) for _ in range(int(clients))]
    waiting = selectors.DefaultSelector()
    for peer in peers:
        peer.shake_hands(b"DEALER")
        waiting.register(peer.socket, selectors.EVENT_READ, peer)
    for peer in peers:
        peer.send(request * int(requests))
    print("sent", flush=True)
    while kind == "reads":
        for key, _ in waiting.select():
            key.data.socket.recv(4096)
    while True:
        for peer in peers:
            time.sleep(1 / len(peers))
            with contextlib.suppress(TimeoutError, ConnectionError):  # or it is evicted
                peer.send(request)


if __name__ == "__main__":
    main()
