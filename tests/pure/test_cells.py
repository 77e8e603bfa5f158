"""The shared memory in which it is written that a request has ended. No process is started."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from contextvars import copy_context
from multiprocessing.shared_memory import SharedMemory

import pytest

import trioreq
from trioreq._finishing import current_place
from trioreq._request import current_request
from trioreq._server.worker import CELL_SIZE, Cell, WorkerPlace, WorkerRequest

PEER = trioreq.Peer(1, "127.0.0.1", "DEALER")


@pytest.mark.parametrize("reason", trioreq.CancelReason)
def test_a_request_knows_its_own_end_and_no_other(reason: trioreq.CancelReason) -> None:
    memory = SharedMemory(create=True, size=CELL_SIZE)
    try:
        cell = Cell(memory)
        first, second = (WorkerRequest(PEER, (b"",), 0, number, cell) for number in (1, 2))
        for request in (first, second):
            request.check_cancelled()
            assert request.cancel_reason is None
        cell.end(1, reason, 5.0)
        assert first.cancel_reason is reason
        with pytest.raises(trioreq.RequestCancelled) as caught:
            first.check_cancelled()
        assert caught.value.reason is reason
        second.check_cancelled()
        assert second.cancel_reason is None
        assert cell.ended_at() == 5.0
    finally:
        memory.close()
        memory.unlink()


def test_a_finishing_block_is_that_of_one_request() -> None:
    memory = SharedMemory(create=True, size=CELL_SIZE)
    try:
        cell = Cell(memory)
        cell.begin_block(1, 2.5)
        cell.end(1, trioreq.CancelReason.DISCONNECTED, 5.0)
        assert (cell.limit(1), cell.limit(2)) == (2.5, None)
        cell.end_block()
        assert cell.limit(1) is None
        assert cell.reason(1) is trioreq.CancelReason.DISCONNECTED
    finally:
        memory.close()
        memory.unlink()


@pytest.mark.parametrize("ended", ["never", "before", "inside", "inside, long ago"])
@pytest.mark.parametrize("grace", [0.0, 1000.0])
def test_a_block_in_a_worker(monkeypatch: pytest.MonkeyPatch, ended: str, grace: float) -> None:
    kills = []
    monkeypatch.setattr(os, "killpg", lambda *killed: kills.append(killed))
    memory = SharedMemory(create=True, size=CELL_SIZE)
    entered = checked = False

    def end(ago: float = 0.0) -> None:
        cell.end(1, trioreq.CancelReason.DISCONNECTED, time.monotonic() - ago)

    def handler() -> None:
        nonlocal entered, checked
        current_request.set(WorkerRequest(PEER, (b"",), 0, 1, cell))
        current_place.set(WorkerPlace(cell, grace, 1))
        with trioreq.finishing(limit=500):
            entered = True
            assert cell.limit(1) == 500
            if "inside" in ended:
                end(600 if "ago" in ended else 0)
            trioreq.check_cancelled()
            checked = True

    try:
        cell = Cell(memory)
        if ended == "before":
            end()
        raises = ended == "before" or (ended == "inside, long ago" and grace > 0)
        if not raises:
            copy_context().run(handler)
        else:
            with pytest.raises(trioreq.RequestCancelled):
                copy_context().run(handler)
        assert entered == (ended != "before")
        assert checked == (not raises)
        assert cell.limit(1) is None
        # Where the block ends, it is killed at last, unless it has a grace.
        assert kills == ([] if ended == "never" or grace else [(0, signal.SIGKILL)])
    finally:
        memory.close()
        memory.unlink()


def test_an_abandoned_generator_does_not_end_the_block_of_a_later_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "killpg")  # the process goes on
    memory = SharedMemory(create=True, size=CELL_SIZE)

    def numbers() -> Generator[int]:
        with trioreq.finishing(limit=500):
            yield 1

    abandoned = numbers()

    def process(number: int) -> None:
        current_request.set(WorkerRequest(PEER, (b"",), 0, number, cell))
        current_place.set(WorkerPlace(cell, 0.0, number))
        if number == 1:
            next(abandoned)
            cell.end(1, trioreq.CancelReason.DISCONNECTED, time.monotonic())
        else:
            with trioreq.finishing(limit=500):
                abandoned.close()
                assert cell.limit(number) == 500

    try:
        cell = Cell(memory)
        copy_context().run(process, 1)
        copy_context().run(process, 2)
    finally:
        memory.close()
        memory.unlink()
