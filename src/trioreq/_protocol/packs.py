"""Packs, sans-IO: many short messages in one frame.

For a short message most of the work is done by libzmq and pyzmq, for each frame. So a client with
many requests in flight puts those that it sends together into one message, and the server does the
same with its replies. `docs/protocol.md` specifies it:

    [magic, largest size, number of messages, ([length of body, header, body])...]

Only messages of three frames fit: a header, the delimiter and a short body. Others are sent as they
are. Unpacking restores the frames, so no other module needs to know about packs.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from . import envelope as wire
from .envelope import Frames

MAGIC: Final = b"TRQ\x02"
HEAD: Final = struct.Struct("!4sIB")
"""Magic, largest size for its sender, number of messages; network order, 9 bytes."""
HEAD_SIZE: Final = 9
OVERHEAD: Final = 19
"""Bytes that a message takes beside its body: the body's length, and the header."""
MAX_MESSAGES: Final = 128
"""Maximum messages in a pack."""
MAX_SIZE: Final = 16 * 1024
"""Maximum bytes of a pack."""


def max_size(max_message_size: int) -> int:
    """The largest size of a pack for a receiver with this `max_message_size`."""
    return min(max_message_size, MAX_SIZE)


def pack(messages: Sequence[Frames], theirs: int, own: int) -> list[Frames]:
    """Put messages into packs, as far as they fit, in their order.

    Args:
        messages: The messages to send.
        theirs: Bytes of the largest pack that the receiver accepts.
        own: Bytes of the largest pack that the sender accepts, for the pack's head.
    """
    packed: list[Frames] = []
    together: list[Frames] = []
    size = HEAD_SIZE
    for frames in messages:
        fits = len(frames) == 3 and len(frames[0]) == wire.SIZE and not frames[1]
        needed = OVERHEAD + len(frames[-1])
        if together and (not fits or size + needed > theirs or len(together) == MAX_MESSAGES):
            packed.append(_joined(together, own))
            together = []
            size = HEAD_SIZE
        if fits and size + needed <= theirs:
            together.append(frames)
            size += needed
        else:
            packed.append(frames)
    if together:
        packed.append(_joined(together, own))
    return packed


def _joined(messages: list[Frames], own: int) -> Frames:
    if len(messages) == 1:
        return messages[0]
    parts = [HEAD.pack(MAGIC, own, len(messages))]
    for header, _, body in messages:
        parts.append(len(body).to_bytes(2, "big"))
        parts.append(header)
        parts.append(body)
    return (b"".join(parts),)


def unpack_untrusted(frame: bytes) -> tuple[int, list[list[bytes]]] | None:
    """The largest size for its sender, and the messages; None if the frame is not a pack."""
    if not HEAD_SIZE <= len(frame) <= MAX_SIZE or frame[:4] != MAGIC:
        return None
    _, largest, number = HEAD.unpack(frame[:HEAD_SIZE])
    if number > MAX_MESSAGES:
        return None
    messages: list[list[bytes]] = []
    at = HEAD_SIZE
    while at + OVERHEAD <= len(frame):
        body = at + OVERHEAD
        end = body + (frame[at] << 8) + frame[at + 1]
        messages.append([frame[at + 2 : body], wire.DELIMITER, frame[body:end]])
        at = end
    if at != len(frame) or len(messages) != number:
        return None
    return min(largest, MAX_SIZE), messages


def requests_untrusted(frames: list[bytes]) -> int:
    """How many requests are in a client's message, which may be a pack."""
    unpacked = unpack_untrusted(frames[0]) if len(frames) == 1 else None
    messages = [frames] if unpacked is None else unpacked[1]
    return sum(map(wire.is_request_untrusted, messages))


def messages_in(frames: Frames) -> int:
    """How many messages are in a message that `pack` has made."""
    return frames[0][HEAD_SIZE - 1] if len(frames) == 1 else 1
