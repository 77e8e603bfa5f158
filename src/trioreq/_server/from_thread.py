"""`trio.from_thread` in a worker thread.

A worker thread serves many requests within one long call of `trio.to_thread.run_sync`, and trio
knows only that call. So `trio.from_thread.run` would run in trio's system nursery and go on after
the client has disconnected, and `trio.from_thread.check_cancelled` would never detect a disconnect.
Here `run` and `run_sync` raise an error that names the alternative, and `check_cancelled` checks
the request. trio has no public hooks for this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trio._threads import PARENT_TASK_DATA

from .._request import check_cancelled


class _Token:
    """Replaces trio's token, with which a thread calls into the event loop."""

    def run_sync_soon(self, *_: object) -> None:
        """Raise an error."""
        raise RuntimeError(
            "trio.from_thread.run and run_sync cannot be used in a handler that is a plain "
            "function, since they would not be cancelled with its request: make the handler async, "
            "and call what blocks with trio.to_thread.run_sync"
        )


class _CancelRegister:
    """Replaces trio's register of the functions that raise `Cancelled`."""

    def __getitem__(self, _: int) -> Callable[[], None]:
        return check_cancelled


def adapt_thread() -> None:
    """Make `trio.from_thread` aware of requests, in this thread."""
    data: Any = PARENT_TASK_DATA
    data.token = _Token()
    data.cancel_register = _CancelRegister()
    data.abandon_on_cancel = True  # missing if trio did not start the thread
