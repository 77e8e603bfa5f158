"""Access control: CURVE with a directory of keys, from which one is removed.

    python examples/curve.py

The server accepts the clients whose public key is in a directory. alice's key is in it. mallory's
is not, so the server refuses mallory. Then, while a request of alice runs, her key file is removed:
the server cancels the request, and evicts her connection.

In production, make each pair of keys with trioreq-keygen on the machine that uses it, and copy only
the public one (NAME.key) to the other side.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import trio

import trioreq


async def main(directory: Path) -> None:
    """Run the server and its clients."""
    server_keys, alice, mallory = (trioreq.KeyPair.generate() for _ in range(3))
    alice.save(directory / "alice")  # writes alice.key, which allows her
    curve = trioreq.CurveServer(server_keys, allow=directory)
    working = trio.Event()

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"work":
            try:
                working.set()
                await trio.sleep_forever()
            finally:
                print(f"the work for {request.client.user_id}: cancelled, {request.cancel_reason}")
        return f"hello, {request.client.user_id}".encode()

    async with trioreq.open_server(handler, "tcp://127.0.0.1:0", curve=curve) as server:
        (endpoint,) = server.endpoints

        async with trioreq.open_client(
            endpoint, curve=trioreq.CurveClient(server_keys.public, mallory)
        ) as client:
            try:
                await client.request(b"hello")
            except trioreq.Refused:
                print("mallory: refused")

        async with trioreq.open_client(
            endpoint, curve=trioreq.CurveClient(server_keys.public, alice)
        ) as client:
            print("alice:", (await client.request(b"hello")).decode())

            async def remove_her_key() -> None:
                await working.wait()
                await trio.Path(directory, "alice.key").unlink()  # read within a second

            async with trio.open_nursery() as nursery:
                nursery.start_soon(remove_her_key)
                try:
                    await client.request(b"work")
                except trioreq.ConnectionLost:
                    print("alice: evicted")
            try:
                await client.request(b"hello")
            except trioreq.Refused:
                print("alice: refused")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        try:
            trio.run(main, Path(folder))
        except KeyboardInterrupt:
            sys.exit(130)
