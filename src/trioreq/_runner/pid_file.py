"""The file with the number of the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from .settings import WrongSetting


def check_pid_file(path: Path | None) -> None:
    """Refuse a file that cannot be written, before anything is served. It is not changed.

    Raises:
        WrongSetting: It cannot be written.
    """
    if path is None:
        return
    with _explained(path):
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        except FileNotFoundError:
            TemporaryFile(dir=path.parent).close()


@contextmanager
def pid_file(path: Path | None) -> Iterator[None]:
    """Have the number of this process in a file, which another server may replace by its own.

    Raises:
        WrongSetting: It cannot be written.
    """
    if path is None:
        yield
        return
    text = f"{os.getpid()}\n"
    with _explained(path):
        path.write_text(text)
    try:
        yield
    finally:
        with suppress(OSError):  # it was removed
            if path.read_bytes() == text.encode():
                path.unlink()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WrongSetting(f"cannot write {str(path)!r}: {error.strerror}") from None
