"""`trio.from_thread` in a worker thread.

A worker thread is one long call of `trio.to_thread.run_sync`, in which many requests are served. To
trio all of them are that one call. So `trio.from_thread.run` would run in trio's system nursery and
go on after the client has disconnected, and `trio.from_thread.check_cancelled` would never notice a
disconnect. Here the first is refused, with an error that names the alternative, and the second
looks at the request. trio has no public hooks for this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trio._threads import PARENT_TASK_DATA

from .._request import check_cancelled


class _Token:
    """In the place of trio's token, by which a thread calls into the event loop."""

    def run_sync_soon(self, *_: object) -> None:
        """Refuse."""
        raise RuntimeError(
            "trio.from_thread.run and run_sync cannot be used in a handler that is a plain "
            "function, since they would not be cancelled with its request: make the handler async, "
            "and call what blocks with trio.to_thread.run_sync"
        )


class _CancelRegister:
    """In the place of trio's register of the function that raises `Cancelled`."""

    def __getitem__(self, _: int) -> Callable[[], None]:
        return check_cancelled


def adapt_thread() -> None:
    """Make `trio.from_thread` know requests, in this thread."""
    data: Any = PARENT_TASK_DATA
    data.token = _Token()
    data.cancel_register = _CancelRegister()
    data.abandon_on_cancel = True  # where trio has not started the thread
