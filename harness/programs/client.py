"""A client with any number of sockets, which does what its standard input says.

    python -m harness.programs.client

Each line in is a JSON list, each line out the answer to one. Only pyzmq is used: this is a stock
client, and not trioreq's.
"""

from __future__ import annotations

import json
import sys

import zmq


def main() -> None:
    """Do what each line says, until the input ends."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sockets: dict[int, zmq.Socket[bytes]] = {}
    for line in sys.stdin:
        verb, number, *arguments = json.loads(line)
        answer: object = None
        match verb:
            case "connect":
                kind, endpoint, routing_id, options = arguments
                socket = sockets[number] = context.socket(getattr(zmq, kind))
                socket.linger = 0
                if routing_id:
                    socket.routing_id = routing_id.encode()
                for name, value in options.items():
                    socket.setsockopt(getattr(zmq, name), value)
                socket.connect(endpoint)
            case "bind":
                kind, endpoint = arguments
                socket = sockets[number] = context.socket(getattr(zmq, kind))
                socket.linger = 0
                socket.bind(endpoint)
                answer = [socket.getsockopt_string(zmq.LAST_ENDPOINT)]
            case "send":
                sockets[number].send_multipart(
                    [part.encode(errors="surrogateescape") for part in arguments]
                )
            case "receive":
                message = sockets[number].recv_multipart()
                answer = [part.decode(errors="surrogateescape") for part in message]
            case "close":
                sockets.pop(number).close()
        print(json.dumps(answer), flush=True)
    context.destroy(linger=0)


if __name__ == "__main__":
    main()
