"""Who may come in: CURVE with a directory of keys, from which one is removed. Run it, and watch.

    python examples/curve.py

A server with keys of its own lets in those whose public key is in a directory. alice is; mallory
is not, and is told so. Then, in the middle of alice's request, her key file is removed: the work
for her is cancelled, and her connection ends.

In earnest the keys come from trioreq-keygen, each is made where it is used, and only the public
one (NAME.key) is carried to the other side.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import trio

import trioreq


async def main(directory: Path) -> None:
    """Be the server, and its clients."""
    server_keys, alice, mallory = (trioreq.KeyPair.generate() for _ in range(3))
    alice.save(directory / "alice")  # alice.key is what counts here
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
                await trio.Path(directory, "alice.key").unlink()  # seen within a second

            async with trio.open_nursery() as nursery:
                nursery.start_soon(remove_her_key)
                try:
                    await client.request(b"work")
                except trioreq.ConnectionLost:
                    print("alice: thrown out")
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
