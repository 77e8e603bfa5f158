"""Closes the cancel scopes and nurseries that a handler left open in its task.

An abandoned generator leaves them open: ``async for x in numbers(): return x`` with a cancel scope
in the generator. trio raises an error for it when the task or an outer scope ends, outside the
handler, and until then the deadline of such a scope cancels whatever runs in the task. So the state
that the task had before the handler is restored. trio has no public functions for this.
"""

from __future__ import annotations

import sys
from typing import Any

import trio
from trio._core._parking_lot import GLOBAL_PARKING_LOT_BREAKER

from .._log import log


class Baseline:
    """The state of the current task before a handler runs in it."""

    __slots__ = ("_references", "_status", "_task")

    def __init__(self) -> None:
        self._task: Any = trio.lowlevel.current_task()
        self._status = self._task._cancel_status  # noqa: SLF001
        self._references = sys.getrefcount(self._task)

    def is_clean(self) -> bool:
        """Whether nothing was left open, and nothing new refers to the task, as a held lock does.

        Otherwise no other request may run in the task.
        """
        return (
            self._task._cancel_status is self._status  # noqa: SLF001
            and sys.getrefcount(self._task) == self._references
            and self._task not in GLOBAL_PARKING_LOT_BREAKER  # it holds no trio.Lock
        )

    def is_running(self) -> bool:
        """Whether the task runs now."""
        try:
            return trio.lowlevel.current_task() is self._task
        except RuntimeError:  # no task runs
            return False

    @trio.lowlevel.enable_ki_protection
    def restore(self, client: object) -> None:
        """Leave scopes and cancel nurseries that were left open, and log it."""
        task = self._task
        if task._cancel_status is self._status:  # noqa: SLF001
            return
        left = "a nursery" if task.child_nurseries else "a cancel scope"
        for nursery in task.child_nurseries:
            nursery.cancel_scope.cancel(reason="its task has ended")
            nursery._closed = True  # noqa: SLF001
        task._child_nurseries.clear()  # noqa: SLF001
        while task._cancel_status is not self._status:  # noqa: SLF001
            # Otherwise the outer scope would keep it, and its deadline, until it is closed itself.
            task._cancel_status._scope.__exit__(None, None, None)  # noqa: SLF001
        log.error(
            "%s: the handler left %s open, as an abandoned generator does: close generators, for "
            "example with contextlib.aclosing",
            client,
            left,
        )
