"""A server that echoes each request, and the two ways to shut it down.

    python examples/echo.py [ADDRESS]

SIGTERM drains it: running requests may finish, and new ones are refused. Ctrl-C ends it at once,
with exit code 130.
"""

from __future__ import annotations

import signal
import sys

import trio

import trioreq

GRACE = 5.0  # seconds for running requests after SIGTERM


async def echo(request: trioreq.Request) -> tuple[bytes, ...]:
    """Reply with all the frames of the request."""
    return request.frames


async def main(addr: str) -> None:
    """Serve until SIGTERM."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trioreq.open_server(echo, addr) as server:
            print("serving at", *server.endpoints, flush=True)
            await anext(signals)
            await server.drain(GRACE)


if __name__ == "__main__":
    status: int | str = 0
    try:
        trio.run(main, sys.argv[1] if sys.argv[1:] else "tcp://127.0.0.1:5555")
    except trioreq.EndpointError as error:
        status = str(error)
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
