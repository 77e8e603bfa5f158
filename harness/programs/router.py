"""A stock ROUTER of libzmq that echoes, without trioreq.

    python -m harness.programs.router ADDRESS

It writes ``["serving", endpoint]``, a JSON line, and echoes until it is killed.
"""

from __future__ import annotations

import json
import sys

import zmq


def main() -> None:
    """Echo each message."""
    router = zmq.Context().socket(zmq.ROUTER)
    router.bind(sys.argv[1])
    print(json.dumps(["serving", router.getsockopt_string(zmq.LAST_ENDPOINT)]), flush=True)
    while True:
        router.send_multipart(router.recv_multipart())


if __name__ == "__main__":
    main()
