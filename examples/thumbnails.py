"""A server that makes thumbnails with Pillow: a plain function, which runs in threads.

    pip install "trioreq[examples]"
    python examples/thumbnails.py [ADDRESS]
    python examples/thumbnails.py client ENDPOINT IN OUT [SIZE]

A request is an image, PNG or JPEG. A second frame may have the maximum width and height of the
thumbnail in pixels. The reply is a PNG, or an error with the code bad-image or bad-size.

Python cannot stop a thread. So the function checks between two steps whether its request was
cancelled; if it was, the check raises an exception.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import trio
import zmq
from PIL import Image, ImageOps

import trioreq

SIZES = range(1, 2049)
Image.MAX_IMAGE_PIXELS = 25_000_000  # Pillow refuses twice that: a small file may be a huge image


def thumbnail(request: trioreq.Request) -> bytes:
    """Make a thumbnail, in a worker thread."""
    digits = request.frames[1] if len(request.frames) > 1 else b"256"
    size = int(digits) if digits.isdigit() and len(digits) <= 4 else 0
    if size not in SIZES:
        raise trioreq.ReplyError("bad-size", f"must be a number from {SIZES[0]} to {SIZES[-1]}")
    try:
        image: Image.Image = Image.open(io.BytesIO(request.body), formats=["PNG", "JPEG"])
        image.draft(None, (size, size))  # a large JPEG need not be decoded in full
        trioreq.check_cancelled()
        image = ImageOps.exif_transpose(image)
        if image.mode in ("1", "P", "CMYK"):  # these do not resize well, or cannot be PNG
            image = image.convert("RGBA")
    except Exception as error:  # Pillow raises many types; RequestCancelled is not an Exception
        raise trioreq.ReplyError("bad-image", f"must be a valid PNG or JPEG: {error}") from error
    trioreq.check_cancelled()
    image.thumbnail((size, size), reducing_gap=None)  # the gap is not for 16-bit greys
    trioreq.check_cancelled()
    output = io.BytesIO()
    image.save(output, "PNG")
    return output.getvalue()


async def main(addr: str) -> None:
    """Serve, with a thread for each processor."""
    workers = os.cpu_count() or 1
    async with trioreq.open_server(thumbnail, addr, workers=workers, timeout=30) as server:
        print("serving at", *server.endpoints, flush=True)
        await trio.sleep_forever()


def ask(endpoint: str, source: str, target: str, *size: str) -> str | None:
    """Be a client that uses only pyzmq; returns an error message."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.REQ)
    socket.linger, socket.rcvtimeo = 0, 10_000  # milliseconds
    try:
        socket.connect(endpoint)
        socket.send_multipart([Path(source).read_bytes(), *map(str.encode, size)])
        match socket.recv_multipart():
            case [b"trioreq-error", code, text]:
                return f"{code.decode()}: {text.decode()}"
            case [image]:
                Path(target).write_bytes(image)
    except zmq.Again:
        return f"no reply from {endpoint} in 10 s"
    except (OSError, zmq.ZMQError) as error:
        return str(error)
    finally:
        context.destroy()
    return None


if __name__ == "__main__":
    outcome: int | str | None = None
    try:
        match sys.argv[1:]:
            case ["client", endpoint, source, target, *size]:
                outcome = ask(endpoint, source, target, *size)
            case ["client", *_]:
                outcome = __doc__
            case arguments:
                trio.run(main, arguments[0] if arguments else "tcp://127.0.0.1:5555")
    except trioreq.EndpointError as error:
        outcome = str(error)
    except KeyboardInterrupt:
        outcome = 130
    sys.exit(outcome)
