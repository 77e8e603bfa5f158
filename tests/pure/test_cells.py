"""The shared memory in which it is written that a request has ended. No process is started."""

from __future__ import annotations

from multiprocessing.shared_memory import SharedMemory

import pytest

import trioreq
from trioreq._server.worker import CELL_SIZE, Cell, WorkerRequest

PEER = trioreq.Peer(1, "127.0.0.1", "DEALER")


@pytest.mark.parametrize("reason", trioreq.CancelReason)
def test_a_request_knows_its_own_end_and_no_other(reason: trioreq.CancelReason) -> None:
    memory = SharedMemory(create=True, size=2 * CELL_SIZE)
    try:
        first, second, neighbour = (
            WorkerRequest(PEER, (b"",), 0, number, Cell(memory, index))
            for number, index in ((1, 0), (2, 0), (1, 1))
        )
        for request in (first, second, neighbour):
            request.check_cancelled()
            assert request.cancel_reason is None
        Cell(memory, 0).end(1, reason, 5.0)
        assert first.cancel_reason is reason
        with pytest.raises(trioreq.RequestCancelled) as caught:
            first.check_cancelled()
        assert caught.value.reason is reason
        for request in (second, neighbour):
            request.check_cancelled()
            assert request.cancel_reason is None
        assert Cell(memory, 0).ended_at() == 5.0
    finally:
        memory.close()
        memory.unlink()


def test_a_finishing_block_is_that_of_one_request() -> None:
    memory = SharedMemory(create=True, size=2 * CELL_SIZE)
    try:
        cell, neighbour = Cell(memory, 0), Cell(memory, 1)
        cell.begin_block(1, 2.5)
        cell.end(1, trioreq.CancelReason.DISCONNECTED, 5.0)
        assert (cell.limit(1), cell.limit(2), neighbour.limit(1)) == (2.5, None, None)
        cell.end_block()
        assert cell.limit(1) is None
        assert cell.reason(1) is trioreq.CancelReason.DISCONNECTED
    finally:
        memory.close()
        memory.unlink()
