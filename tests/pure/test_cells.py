"""The shared memory in which it is written that a request has ended. No process is started."""

from __future__ import annotations

from multiprocessing.shared_memory import SharedMemory

import pytest

import trioreq
from trioreq._server.worker import CELL, Cell, WorkerRequest, write_cell

PEER = trioreq.Peer(1, "127.0.0.1", "DEALER")


@pytest.mark.parametrize("reason", trioreq.CancelReason)
def test_a_request_knows_its_own_end_and_no_other(reason: trioreq.CancelReason) -> None:
    memory = SharedMemory(create=True, size=2 * CELL.size)
    try:
        first, second, neighbour = (
            WorkerRequest(PEER, (b"",), 0, number, Cell(memory.name, index))
            for number, index in ((1, 0), (2, 0), (1, 1))
        )
        for request in (first, second, neighbour):
            request.check_cancelled()
            assert request.cancel_reason is None
        write_cell(memory, 0, 1, reason)
        assert first.cancel_reason is reason
        with pytest.raises(trioreq.RequestCancelled) as caught:
            first.check_cancelled()
        assert caught.value.reason is reason
        for request in (second, neighbour):
            request.check_cancelled()
            assert request.cancel_reason is None
    finally:
        memory.close()
        memory.unlink()
