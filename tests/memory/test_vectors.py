"""The conversations of docs/protocol-vectors.json, with the server on the memory transport.

An autojump clock: what the server does is all done before the next step is taken.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from support.memory import serving
from trio.testing import MockClock, wait_all_tasks_blocked

import trioreq

VECTORS = json.loads((Path(__file__).parents[2] / "docs/protocol-vectors.json").read_text())
CEILING = 30.0


async def handler(request: trioreq.Request) -> list[bytes]:
    """What docs/protocol.md says of the handler in the conversations."""
    match request.body:
        case b"wait":
            await trio.sleep_forever()
        case b"slow":
            await trio.sleep(1)
        case b"refuse":
            raise trioreq.ReplyError("not-found", "there is none")
        case b"fail":
            raise LookupError
    return list(request.frames)


async def streaming_handler(request: trioreq.Request) -> AsyncIterator[bytes]:
    """What it says of the handler that makes streams."""
    for frame in request.frames[1:]:
        yield frame
    match request.body:
        case b"wait":
            await trio.sleep_forever()
        case b"refuse":
            raise trioreq.ReplyError("not-found", "there is none")
        case b"fail":
            raise LookupError
        case b"fill":
            for _ in range(256):
                yield b""


def hex_of(word: Any) -> Any:
    """What stands for a frame; None for any."""
    return word["repeat"] * word["times"] if isinstance(word, dict) else word


@pytest.mark.parametrize("vector", VECTORS["conversations"], ids=lambda vector: vector["name"])
async def test_a_conversation(vector: dict[str, Any], autojump_clock: MockClock) -> None:
    made = streaming_handler if vector.get("streams", False) else handler
    async with serving(made, timeout=CEILING) as net, trio.open_nursery() as nursery:
        client = net.connect(socket_type=vector["socket"])
        heard = 0
        steps = [step for step in vector["steps"] for _ in range(step.get("times", 1))]
        for step in steps:
            if "send" in step:
                client.send_raw(*(bytes.fromhex(hex_of(word)) for word in step["send"]))
                await wait_all_tasks_blocked()
                continue
            if "drain" in step:
                nursery.start_soon(net.server.drain, math.inf)
                await wait_all_tasks_blocked()
                continue
            frames, expected = await client.receive_raw(), step["receive"]
            heard += 1
            assert len(frames) == len(expected)
            for frame, word in zip(frames, expected, strict=True):
                assert hex_of(word) in (None, frame.hex())
        await wait_all_tasks_blocked()
        assert len(net.sent_to(client)) == heard
        nursery.cancel_scope.cancel()
