"""A cut cable, and a bad one: lost clients are detected in time, and others stay connected.

Time is real. What makes it deterministic: the cable loses every twentieth packet, not one by
chance, and bounds on time are those that are promised, with room for a machine that is busy.
"""

from __future__ import annotations

import time

import pytest
import trio
from support.relay import open_relay

from harness import cable
from harness.clients import open_client_process
from harness.servers import open_server

pytestmark = pytest.mark.slow

LIMIT = 40  # seconds of real time for a test that got stuck
HEARTBEAT = 1.5  # seconds
ROOM = 1.0  # seconds for a busy machine


@pytest.fixture
def machines() -> None:
    """Skips where the machine cannot have a cable; the relays stand in for it there."""
    if reason := cable.why_not():
        pytest.skip(reason)


@pytest.mark.usefixtures("machines")
async def test_a_cut_cable_ends_the_work_within_the_heartbeat() -> None:
    with trio.fail_after(LIMIT):
        async with (
            cable.open_cable() as line,
            open_server(f"tcp://{line.address}:0", inside=line.near, heartbeat=HEARTBEAT) as server,
            open_client_process(line.far) as peer,
        ):
            await peer.connect(server.endpoint)
            await peer.send("wait for the cut")
            await server.wait("started", "for the cut")
            line.cut()
            cut = time.monotonic()
            assert await server.wait("disconnected", "for the cut") - cut < HEARTBEAT + ROOM
            state = await server.state()
            assert state["statistics"][0]["connections"] == 0


@pytest.mark.usefixtures("machines")
async def test_a_connection_that_is_restored_in_time_stays_open() -> None:
    with trio.fail_after(LIMIT):
        async with (
            cable.open_cable() as line,
            open_server(f"tcp://{line.address}:0", inside=line.near, heartbeat=8.0) as server,
            open_client_process(line.far) as peer,
        ):
            await peer.connect(server.endpoint)
            await peer.send("work 1.5")
            while not (await server.state())["statistics"][0]["in_flight"]:
                pass
            line.cut()
            await trio.sleep(1)  # the fault, not a wait for something
            line.mend()
            assert await peer.receive() == ["work 1.5"]


@pytest.mark.usefixtures("machines")
async def test_packet_loss_and_delay_disconnect_no_client() -> None:
    """Every twentieth packet is lost, each takes 200 ms; heartbeats get through."""
    clients = range(5)
    with trio.fail_after(LIMIT):
        async with (
            cable.open_cable(loses=lambda number: number % 20 == 19, delay=0.2) as line,
            # A PONG has 5 s, as by default, but PINGs are more frequent.
            open_server(f"tcp://{line.address}:0", inside=line.near, heartbeat=10.0) as server,
            open_client_process(line.far) as peer,
        ):
            for number in clients:
                await peer.connect(server.endpoint, number=number)
                await peer.send("work 11", number=number)  # two PINGs
            for number in clients:
                assert await peer.receive(number) == ["work 11"]
            statistics = (await server.state())["statistics"][0]
            assert statistics["replied"] == statistics["connections"] == len(clients)
            assert statistics["cancelled_by_disconnect"] == 0
            assert line.lost > 0


async def test_a_relay_that_falls_silent_is_a_cut_cable() -> None:
    with trio.fail_after(LIMIT):
        async with (
            open_server(heartbeat=HEARTBEAT) as server,
            open_relay(server.endpoint) as relay,
            open_client_process() as peer,
        ):
            await peer.connect(relay.endpoint)
            await peer.send("wait for the silence")
            await server.wait("started", "for the silence")
            relay.fall_silent()
            cut = time.monotonic()
            assert await server.wait("disconnected", "for the silence") - cut < HEARTBEAT + ROOM
