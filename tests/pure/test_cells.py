"""The shared memory in which it is written that a request has ended. No process is started."""

from __future__ import annotations

from multiprocessing.shared_memory import SharedMemory

import pytest

import trioreq
from trioreq._server.worker import CELL_SIZE, Cell, WorkerRequest

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
