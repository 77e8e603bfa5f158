"""How a reply is shown: as it came to a program, and readable to a person."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

from rich.console import Console

ROW = 16  # bytes in a row of a hex dump


def as_it_came(frames: Sequence[bytes], *, lines: bool) -> bytes:
    """Raw bytes: of one frame exactly, of several each with a newline."""
    if len(frames) == 1 and not lines:
        return frames[0]
    return b"".join(frame + b"\n" for frame in frames)


def readable(frames: Sequence[bytes]) -> bytes:
    """One line for each line of each frame; what cannot be shown is escaped."""
    return "".join(_escape(frame) + "\n" for frame in frames).encode()


def hex_dump(frames: Sequence[bytes]) -> bytes:
    """Offset, bytes, and what is printable of them; an empty line between frames."""
    return "\n".join(map(_dump, frames)).encode()


def pretty_json(frames: Sequence[bytes], *, colour: bool) -> bytes | None:
    """Each frame indented; None if one of them is not JSON."""
    try:
        values = [json.loads(frame) for frame in frames]
    except ValueError:
        return None
    texts = [json.dumps(value, indent=2, ensure_ascii=False) for value in values]
    if not colour:
        return "".join(text + "\n" for text in texts).encode()
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", soft_wrap=True)
    for text in texts:
        console.print_json(text, indent=2, ensure_ascii=False)
    return out.getvalue().encode()


def _escape(frame: bytes) -> str:
    text = frame.decode(errors="backslashreplace")
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1]
        for letter in text
    )


def _dump(frame: bytes) -> str:
    rows = []
    for offset in range(0, len(frame), ROW):
        row = frame[offset : offset + ROW]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        rows.append(f"{offset:08x}  {row.hex(' '):{ROW * 3 - 1}}  {shown}\n")
    return "".join(rows) or "(empty)\n"
