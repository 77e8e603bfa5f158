"""The file with the number of the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .settings import WrongSetting


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
    try:
        path.write_text(text)
    except OSError as error:
        raise WrongSetting(f"cannot write {str(path)!r}: {error.strerror}") from None
    try:
        yield
    finally:
        with suppress(OSError):  # it was removed
            if path.read_bytes() == text.encode():
                path.unlink()
