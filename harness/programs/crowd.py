"""Many DEALER clients in one process, which all send the same requests.

    python -m harness.programs.crowd ENDPOINT CLIENTS

It writes a line when all are connecting. Each line of the input is a body that all of them send as
a request; if it begins with ``echo``, they wait for their replies. Then a line is written.
"""

from __future__ import annotations

import sys

import zmq

LIMIT = 60_000  # milliseconds


def main() -> None:
    """Connect, and send what each line says, until the input ends."""
    endpoint, count = sys.argv[1:]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.max_sockets = int(count) + 10
    clients = []
    for _ in range(int(count)):
        client = context.socket(zmq.DEALER)
        client.immediate = True
        client.sndtimeo = client.rcvtimeo = LIMIT
        client.linger = 0
        client.connect(endpoint)
        clients.append(client)
    print("connecting", flush=True)
    for line in sys.stdin:
        body = line.strip().encode()
        for client in clients:
            client.send_multipart([b"", body])
        if body.startswith(b"echo"):
            for client in clients:
                client.recv_multipart()
        print("done", flush=True)


if __name__ == "__main__":
    main()
