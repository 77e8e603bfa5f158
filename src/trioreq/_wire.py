"""What stands on the wire, sans-IO: frames in, values out.

A request, as a ROUTER socket reads it behind the routing id, and its reply (RFC 28, REQ/REP):

    [envelope frames...] [empty] [body frames...]

All up to the first empty frame comes back untouched; the body is ours to replace. A failure is
a body of three frames: ``trioreq-error``, a code, and a text for people.
"""

from __future__ import annotations

from collections.abc import Sequence

Frames = tuple[bytes, ...]

ERROR_MARK = b"trioreq-error"
DELIMITER = b""
BARE_ENVELOPE: Frames = (DELIMITER,)
"""The envelope of a plain REQ client: nothing but the delimiter."""


def split_untrusted(frames: Sequence[bytes]) -> tuple[Frames, Frames] | None:
    """Split a message into its envelope, delimiter included, and its body.

    Args:
        frames: What the peer sent, in order, without the routing id.

    Returns:
        The two parts, or None if there is no delimiter or nothing behind it.
    """
    if len(frames) == 2 and frames[0] == DELIMITER:  # what every REQ sends that has one frame
        return BARE_ENVELOPE, (frames[1],)
    try:
        end = frames.index(DELIMITER) + 1
    except ValueError:
        return None
    if end == len(frames):
        return None
    return tuple(frames[:end]), tuple(frames[end:])


def error_body(code: str, text: str) -> Frames:
    """The body of a reply that reports a failure."""
    return ERROR_MARK, code.encode(), text.encode(errors="replace")


def reply_body(result: object) -> Frames:
    """The body of the reply that a handler's result makes.

    Args:
        result: One frame (bytes, or an object with the buffer interface), or a sequence of
            them. What can change is copied.

    Raises:
        TypeError: It is neither, or an empty sequence: a REQ socket needs at least one frame.
    """
    if type(result) is bytes:
        return (result,)
    if isinstance(result, list | tuple):
        if not result:
            raise TypeError("the handler returned no frames; a reply has at least one, as in [b'']")
        return tuple(_frame(part) for part in result)
    return (_frame(result),)


def _frame(part: object) -> bytes:
    if isinstance(part, bytes):
        return part
    try:
        return bytes(memoryview(part))  # type: ignore[arg-type]  # the TypeError is the test
    except TypeError:
        hint = "; encode it first, as in text.encode()" if isinstance(part, str) else ""
        raise TypeError(
            f"the handler returned {type(part).__name__}, not bytes or a sequence of bytes{hint}"
        ) from None
