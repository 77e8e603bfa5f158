"""Where one message ends and the next begins, whatever frames their senders choose.

The router does not ask each frame of a message whether more follow, so the frames of messages that
wait together must not be taken for each other's. In memory, each example in a run of its own.
"""

from __future__ import annotations

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

import trioreq
from trioreq.testing import MemoryClient, open_memory_server

CLIENTS = 3
EXPLICIT = b"chosen"

frames = st.one_of(
    st.sampled_from([b"", b"x", EXPLICIT]),
    st.integers(0, CLIENTS - 1),  # that client's routing id
)
messages = st.lists(
    st.tuples(st.integers(0, CLIENTS - 1), st.lists(frames, min_size=1, max_size=4)), max_size=8
)


@settings(max_examples=300, deadline=None)
@given(messages)
def test_frames_stay_with_their_message(sent: list[tuple[int, list[bytes | int]]]) -> None:
    seen: list[tuple[int, tuple[bytes, ...]]] = []

    async def handler(request: trioreq.Request) -> bytes:
        seen.append((request.client.id, request.frames))
        return b""

    async def main() -> None:
        async with open_memory_server(handler) as net:
            clients = [
                net.connect(socket_type="DEALER", routing_id=EXPLICIT if number == 0 else None)
                for number in range(CLIENTS)
            ]
            for client in clients:  # they are known from here on
                await client.request(b"hello")
            ids = [request_id for request_id, _ in seen]
            seen.clear()
            expected, malformed = [], 0
            for number, parts in sent:
                message = [
                    routing_id(clients[part]) if isinstance(part, int) else part for part in parts
                ]
                clients[number].send_raw(*message)
                if b"" not in message[:-1]:
                    malformed += 1
                else:
                    expected.append((ids[number], tuple(message[message.index(b"") + 1 :])))
            await wait_all_tasks_blocked()
            # One who knew its own automatic routing id could mislead the router about its own
            # messages, and about nobody else's.
            own = {
                ids[number]
                for number, parts in sent
                if number != 0 and len(parts) > 1 and parts[1] == number
            }
            assert sorted(call for call in seen if call[0] not in own) == sorted(
                call for call in expected if call[0] not in own
            )
            if not own:
                assert net.server.statistics().malformed == malformed

    trio.run(main, clock=MockClock(autojump_threshold=0))


def routing_id(client: MemoryClient) -> bytes:
    assert client.connection.routing_id is not None
    return client.connection.routing_id
