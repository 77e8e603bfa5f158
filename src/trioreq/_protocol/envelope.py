"""Requests and replies on the wire, sans-IO: frames in, values out.

A request, as a ROUTER socket reads it behind the routing id, and its reply (RFC 28, REQ/REP):

    [envelope frames...] [empty] [body frames...]

The reply has the same frames up to the first empty one, and another body. An error is a body of
three frames: ``trioreq-error``, a code, and a text for humans. A stream is any number of replies;
for a client without a header its end is a body of one frame, ``trioreq-end``.

A client with several requests in flight, with deadlines, or that cancels requests, adds a header as
the last frame of its envelope. `docs/protocol.md` specifies it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, NamedTuple

from .._checks import wrong

Frames = tuple[bytes, ...]
ErrorReply = Callable[[str, str], bytes | Sequence[bytes]]
"""Makes the body of an error reply of a code and a text."""

ERROR_MARK: Final = b"trioreq-error"
END_MARK: Final = b"trioreq-end"
DELIMITER: Final = b""
BARE_ENVELOPE: Final[Frames] = (DELIMITER,)
"""The envelope of a plain REQ client: nothing but the delimiter."""

MOST_IN_ENVELOPE: Final = 64
"""Frames that the envelope of a request may have, with the delimiter."""
LARGEST_ENVELOPE: Final = 4096
"""Bytes that they may have."""

HEADER: Final = struct.Struct("!4sBQI")
"""Magic, kind or status, correlation, milliseconds left; network order, 17 bytes."""
FIELDS: Final = struct.Struct("!4xBQI")
"""The same without the magic."""
SIZE: Final = 17
"""Bytes of a header."""
MAGIC: Final = b"TRQ\x01"
REQUEST: Final = 0
CANCEL: Final = 1
CREDIT: Final = 2
STREAM: Final = 3
OK: Final = 0
NOT_STARTED: Final = 8
"""The status of an error: the server shuts down, and has not started the request."""
MORE: Final = 16
"""The status of a reply that is not the last of its stream."""
END: Final = 17
GO_AWAY: Final = 32
"""The status of a go-away: requests are to be sent on another connection from now on."""
WANTS_HELLO: Final = 1 << 63
"""The correlation's top bit: the client asks whether the server speaks the header."""
CORRELATION: Final = WANTS_HELLO - 1
"""The correlation without that bit."""
SPEAKS: Final = 0xFFFFFFFF
"""Instead of the milliseconds: the reply's header was made by a server, and is not an echo."""
MOST_MILLISECONDS: Final = 0xFFFFFFFE


class Header(NamedTuple):
    """The last frame of an envelope, decoded.

    Attributes:
        kind: Of a message to the server, `REQUEST`, `CANCEL`, `CREDIT` or `STREAM`; of a reply
            its status, 0 for a reply that is not an error.
        correlation: The request's name, unique among those of its sender.
        left: Of a request, the milliseconds until its deadline, 0 for no deadline; of a reply,
            `SPEAKS`.
    """

    kind: int
    correlation: int
    left: int = 0

    def pack(self) -> bytes:
        """The frame."""
        return HEADER.pack(MAGIC, self.kind, self.correlation, self.left)


def request_untrusted(frames: Sequence[bytes]) -> tuple[Frames, Header | None, Frames]:
    """The envelope, the header if there is one, and the body of a request.

    A malformed request has an empty body.
    """
    if len(frames) > 2 and frames[0] and not frames[1]:  # a header before the delimiter
        envelope: Frames = (frames[0], DELIMITER)
        body = tuple(frames[2:])
    else:
        parts = split_untrusted(frames)
        if parts is None:
            return BARE_ENVELOPE, None, ()
        envelope, body = parts
        if len(envelope) > MOST_IN_ENVELOPE:
            body = ()
    if sum(map(len, envelope)) > LARGEST_ENVELOPE:  # each reply of a stream repeats it
        body = ()
    return envelope, header_untrusted(envelope), body


def is_request_untrusted(frames: Sequence[bytes]) -> bool:
    """Whether a client's message is a request, and not a cancellation or credit of one."""
    header = request_untrusted(frames)[1]
    return header is None or header.kind not in (CANCEL, CREDIT)


def header_untrusted(envelope: Frames) -> Header | None:
    """The header of an envelope, if its last frame before the delimiter is one."""
    if len(envelope) < 2:
        return None
    frame = envelope[-2]
    if len(frame) != SIZE or not frame.startswith(MAGIC):
        return None
    return tuple.__new__(Header, FIELDS.unpack(frame))  # as `_make`, but faster


def milliseconds(seconds: float) -> int:
    """The time until a request's deadline, as in its header; infinity for no deadline."""
    if seconds == math.inf:
        return 0
    return min(max(math.ceil(seconds * 1000), 1), MOST_MILLISECONDS)


def answer(envelope: Frames, header: Header | None, status: int, body: Frames) -> Frames:
    """A reply: its envelope is the request's, with the server's own header if it had one."""
    if header is None:
        return envelope + body
    own = HEADER.pack(MAGIC, status, header.correlation, SPEAKS)
    return (*envelope[:-2], own, DELIMITER, *body)


def go_away(reason: str) -> Frames:
    """A go-away; its correlation is the hello's, since it does not answer a request either."""
    return Header(GO_AWAY, WANTS_HELLO, SPEAKS).pack(), DELIMITER, reason.encode()


def reason_untrusted(body: Frames) -> str:
    """The reason that a go-away gives."""
    return body[0].decode(errors="replace")


def error_untrusted(body: Frames) -> tuple[str, str] | None:
    """The code and the text of an error reply's body; None if it is not one."""
    if len(body) != 3 or body[0] != ERROR_MARK:
        return None
    return body[1].decode(errors="replace"), body[2].decode(errors="replace")


def split_untrusted(frames: Sequence[bytes]) -> tuple[Frames, Frames] | None:
    """Split a message into its envelope, delimiter included, and its body.

    Args:
        frames: What the peer sent, in order, without the routing id.

    Returns:
        The two parts; None if there is no delimiter, or nothing after it.
    """
    try:
        end = frames.index(DELIMITER) + 1
    except ValueError:
        return None
    if end == len(frames):
        return None
    return tuple(frames[:end]), tuple(frames[end:])


def error_body(code: str, text: str) -> Frames:
    """The body of an error reply."""
    return ERROR_MARK, code.encode(), text.encode(errors="replace")


def body(name: str, content: object, *, secret: bool = False) -> Frames:
    """The frames of a body, from a handler's result or a caller's argument.

    Args:
        name: Its name in errors.
        content: One frame (bytes, or an object with the buffer interface), or a list or tuple of
            them. Mutable objects are copied.
        secret: Whether the error shows only the type of a wrong value.

    Raises:
        TypeError: The content is neither, or has no frame: a REQ socket needs at least one.
    """
    if type(content) is bytes:
        return (content,)
    if not isinstance(content, list | tuple):
        return (frame(name, content, "bytes or a list of bytes", secret=secret),)
    if not content:
        raise TypeError(f"{name} must have at least one frame, as in [b''], got {content!r}")
    return tuple(
        [
            part if type(part) is bytes else frame(f"{name}[{i}]", part, secret=secret)
            for i, part in enumerate(content)
        ]
    )


def frame(name: str, part: object, expected: str = "bytes", *, secret: bool = False) -> bytes:
    """One frame of a body; arguments and errors are those of `body`."""
    if type(part) is bytes:  # a subclass may override len()
        return part
    try:
        return bytes(memoryview(part))  # type: ignore[arg-type]  # or a TypeError
    except TypeError:
        raise wrong(name, expected, part, _hint(part), secret=secret) from None


def _hint(part: object) -> str:
    """How to convert a wrong value to bytes."""
    match part:
        case str():
            return "encode it first, as in text.encode()"
        case None:
            return "use b'' for an empty frame"
        case dict() | list() | tuple() | int() | float():
            return "encode it first, as in json.dumps(x).encode()"
        case Awaitable():
            return "an await is missing"
        case Iterable():
            return "make a list of its frames, or join them, as in b''.join(x)"
    return "encode it first"
