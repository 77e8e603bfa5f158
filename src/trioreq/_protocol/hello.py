"""The body of a hello, sans-IO: what a server can do. `docs/protocol.md` specifies it."""

from __future__ import annotations

import struct
from typing import Final

from .envelope import Frames
from .packs import MAX_SIZE

BODY: Final = struct.Struct("!II")
"""The largest size of a pack, and capability bits; network order, 8 bytes."""
MAX_PACK_SIZE: Final = struct.Struct("!I")
STREAMS: Final = 1
"""The capability to serve streams."""


def hello_body(max_pack_size: int) -> bytes:
    """The body of this server's hello."""
    return BODY.pack(max_pack_size, STREAMS)


def unpack_untrusted(body: Frames) -> tuple[int, int]:
    """The largest size of a pack, and the capability bits; 0 for a field that is missing.

    A later version may append fields.
    """
    content = body[0] if len(body) == 1 else b""
    if len(content) >= BODY.size:
        max_pack_size, capabilities = BODY.unpack_from(content)
    elif len(content) >= MAX_PACK_SIZE.size:
        max_pack_size, capabilities = *MAX_PACK_SIZE.unpack_from(content), 0
    else:
        return 0, 0
    return min(max_pack_size, MAX_SIZE), capabilities
