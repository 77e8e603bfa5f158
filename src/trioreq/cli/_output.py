"""Formats of replies: unchanged for programs, readable for humans."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence

import click

ROW = 16  # bytes in a row of a hex dump
TOKEN = re.compile(
    r'(?P<key>"(?:[^"\\]|\\.)*"(?=:))|(?P<string>"(?:[^"\\]|\\.)*")'
    r"|(?P<number>-?\d[\d.eE+-]*)|(?P<word>true|false|null)"
)
COLOURS = {"key": "blue", "string": "green", "number": "cyan", "word": "magenta"}


def raw(frames: Sequence[bytes], *, lines: bool) -> bytes:
    """The bytes of one frame; of several, each with a newline."""
    if len(frames) == 1 and not lines:
        return frames[0]
    return b"".join(frame + b"\n" for frame in frames)


def readable(frames: Sequence[bytes]) -> bytes:
    """The lines of each frame; characters that are not printable are escaped."""
    texts = (printable(frame.decode(errors="backslashreplace")) for frame in frames)
    return "".join(text + "\n" for text in texts).encode()


def hex_dump(frames: Sequence[bytes]) -> bytes:
    """Offset, bytes, and printable characters; an empty line between frames."""
    return "\n".join(map(_dump, frames)).encode()


def pretty_json(frames: Sequence[bytes], *, colour: bool) -> bytes | None:
    """Each frame indented; None if one of them is not JSON."""
    try:
        values = [json.loads(frame) for frame in frames]
        texts = [json.dumps(value, indent=2, ensure_ascii=False) for value in values]
    except (ValueError, RecursionError):
        return None
    text = "".join(_escape_json(text) + "\n" for text in texts)
    return (TOKEN.sub(_colour_token, text) if colour else text).encode()


def printable(text: str) -> str:
    """The text; characters that control a terminal, or are not printable, are escaped."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1]
        for letter in text
    )


def colours_wanted() -> bool:
    """Whether to use colours on a terminal; see no-color.org."""
    return not os.environ.get("NO_COLOR")


def _escape_json(text: str) -> str:
    """Escape as JSON does; characters that are not printable are always in a string."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else json.dumps(letter)[1:-1]
        for letter in text
    )


def _colour_token(token: re.Match[str]) -> str:
    kind = str(token.lastgroup)
    return click.style(token[0], fg=COLOURS[kind], bold=True if kind == "key" else None)


def _dump(frame: bytes) -> str:
    rows = []
    for offset in range(0, len(frame), ROW):
        row = frame[offset : offset + ROW]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        rows.append(f"{offset:08x}  {row.hex(' '):{ROW * 3 - 1}}  {shown}\n")
    return "".join(rows) or "(empty)\n"
