"""The server on real sockets, within a limit of real time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
import zmq

import trioreq
from trioreq._transport.zsocket import ZSocket

LIMIT = 30  # seconds of real time, for a test that got stuck


@asynccontextmanager
async def serving(
    handler: Callable[[trioreq.Request], Any],
    addr: str | Sequence[str] = "tcp://127.0.0.1:0",
    **options: Any,
) -> AsyncIterator[trioreq.Server]:
    """Serve, and cancel the server at the end."""
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:

            async def start(task_status: trio.TaskStatus[trioreq.Server]) -> None:
                await trioreq.serve(handler, addr, task_status=task_status, **options)

            yield await nursery.start(start)
            nursery.cancel_scope.cancel()


def poll(socket: ZSocket) -> bool:
    """Hold the loop up until there is something to read."""
    return bool(raw(socket).poll(5000))


def raw(socket: ZSocket) -> zmq.Socket[bytes]:
    """The socket of pyzmq."""
    found = socket.messages.raw  # type: ignore[attr-defined]
    assert isinstance(found, zmq.Socket)
    return found


def spy_on_sends(router: Any, handed_over: list[bytes], refused: list[bytes]) -> None:
    """Write down what a server's ROUTER is given.

    Args:
        router: A `ZSocket`.
        handed_over: Gets the last frames of all messages that it has taken.
        refused: Gets those of the messages that it has not.
    """
    send_to = router.send_to

    def spy(routing_id: bytes, frames: Sequence[bytes]) -> int:
        error: int = send_to(routing_id, frames)
        if error:
            refused.append(frames[-1])
        else:
            handed_over.append(frames[-1])
        return error

    router.send_to = spy


class _Watch(trio.abc.Instrument):
    def __init__(self, condition: Callable[[], bool]) -> None:
        self.condition = condition
        self.met = trio.Event()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if not self.met.is_set() and self.condition():
            self.met.set()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so that only a task of this loop can bring about.

    The condition is looked at after each step of any task: no sleep, and nothing is missed.
    """
    if condition():
        return
    watch = _Watch(condition)
    trio.lowlevel.add_instrument(watch)
    try:
        await watch.met.wait()
    finally:
        trio.lowlevel.remove_instrument(watch)
