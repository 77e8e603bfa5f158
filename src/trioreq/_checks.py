"""Checks of arguments. The errors say "X must be Y, got Z"."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Sequence

import trio

MOST = 2**31 - 1  # libzmq's options are ints, its times in milliseconds
BYTES_LIKE = (bytes, bytearray, memoryview)

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def shown(value: object) -> str:
    """A value in an error message: its repr, shortened."""
    try:
        return _short.repr(value)
    except Exception:  # noqa: BLE001  # a `__repr__` may raise anything
        return f"an instance of {type(value).__name__}"


def wrong(
    name: str, expected: str, value: object, hint: str = "", *, secret: bool = False
) -> TypeError:
    """The error for an argument of the wrong type; of a secret it shows only the type."""
    got = type(value).__name__ if secret else shown(value)
    return TypeError(f"{name} must be {expected}, got {got}{hint and ': ' + hint}")


def check_instance(
    name: str,
    value: object,
    kind: type | tuple[type, ...],
    expected: str,
    hint: str = "",
    *,
    secret: bool = False,
) -> None:
    """Check for an instance of a class; a bool is not an int."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise wrong(name, expected, value, hint, secret=secret)


def check_count(name: str, value: int, least: int, why: str = "") -> None:
    """Check for an int from `least` to libzmq's largest; `why` is the reason for `least`."""
    check_instance(name, value, int, "an int")
    if not least <= value <= MOST:
        raise ValueError(f"{name} must be from {least} to {MOST}{why}, got {shown(value)}")


def check_message_size(value: int, least: int, mechanism: str) -> None:
    """Check for a size of frames with which a handshake of a mechanism is possible."""
    check_count("max_message_size", value, least, f" with {mechanism}, for the handshake")


def check_limit(name: str, value: int | None) -> None:
    """Check for an int above 0, or None."""
    if value is not None:
        check_count(name, value, 1)


def check_seconds(name: str, value: float | None) -> None:
    """Check for seconds above 0, within libzmq's range, or None."""
    if value is None:
        return
    check_instance(name, value, (int, float), "a number of seconds or None")
    if not 0 < value < MOST / 1000:
        raise ValueError(
            f"{name} must be a number of seconds above 0, at most {MOST // 1000}, or None for no "
            f"limit, got {shown(value)}"
        )


def check_duration(name: str, value: float, most: float = MOST) -> None:
    """Check for seconds from 0 to `MOST`, or for `most`, which may be infinite."""
    expected = f"a number of seconds from 0 to {MOST}" + (f", or {most}" if most > MOST else "")
    check_instance(name, value, (int, float), expected)
    if not (0 <= value <= MOST or value == most):
        raise ValueError(f"{name} must be {expected}, got {shown(value)}")


def check_path(name: str, value: str | os.PathLike[str]) -> None:
    """Check for a path: a str or an `os.PathLike` of one."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise wrong(name, "a str or a path", value)


def check_endpoint(name: str, value: object) -> None:
    """Check for the address of one server."""
    if isinstance(value, str):
        return
    expected = "a str, such as 'tcp://127.0.0.1:5555'"
    raise wrong(name, expected, value, _address_hint(value))


def check_endpoints(name: str, value: object) -> tuple[str, ...]:
    """Check for one address to serve, or a sequence of them; returns all of them."""
    if isinstance(value, str):
        return (value,)
    expected = "a str, such as 'tcp://127.0.0.1:5555', or a sequence of them"
    if (
        not isinstance(value, Sequence)
        or isinstance(value, BYTES_LIKE)
        or not all(isinstance(one, str) for one in value)
    ):
        raise wrong(name, expected, value, _address_hint(value))
    return tuple(value)


def _address_hint(value: object) -> str:
    match value:
        case bytes():
            return "decode it, as in addr.decode()"
        case (str(host), int(port)):
            return f"write it as {f'tcp://{host}:{port}'!r}"
        case os.PathLike():
            return "write it as f'ipc://{path}'"
        case [str(), *_]:
            return "a client has one server; for more, open more clients"
    return ""


def check_frames(name: str, value: object) -> None:
    """Check for a sequence. The frames are not checked."""
    if not isinstance(value, Sequence) or isinstance(value, (*BYTES_LIKE, str)):
        raise wrong(name, "a sequence of bytes", value, "for one frame use request")


def check_bodies(name: str, value: object) -> None:
    """Check for an iterable. The bodies are not checked."""
    if not isinstance(value, Iterable) or isinstance(value, (*BYTES_LIKE, str)):
        raise wrong(name, "an iterable of bytes", value, "for one use request")


def check_in_trio(call: str) -> None:
    """Check that a coroutine runs in trio.

    Args:
        call: How to run it with trio.

    Raises:
        RuntimeError: It runs elsewhere, such as in asyncio.
    """
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        raise RuntimeError(
            f"the event loop must be trio's, got another one: use {call}, not asyncio.run(...)"
        ) from None


def check_task_status(value: object) -> None:
    """Check for the argument that `trio.Nursery.start` passes, or its default."""
    if not callable(getattr(value, "started", None)):
        hint = "use nursery.start(trioreq.serve, ...), which passes it"
        raise wrong("task_status", "trio's", value, hint)
