"""HAProxy before some servers, with the configuration of docs/scaling.md."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from .processes import ROOT, ChildFailed

PAGE = ROOT / "docs/scaling.md"
BACKLOG = 4096  # HAProxy does not change that of a listener which it is given
SERVERS = re.compile(r"(?:^    server .*\n)+", re.MULTILINE)


def find_haproxy() -> str | None:
    """The program; None if it is not installed."""
    return shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")


def configuration(listener: int, endpoints: Sequence[str]) -> str:
    """That of the page, with a listening descriptor and some servers in place of its addresses."""
    found = re.search(r"^```text\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    text, bound = re.subn(r"\bbind :5555$", f"bind fd@{listener}", found[1], flags=re.MULTILINE)
    addresses = [endpoint.removeprefix("tcp://") for endpoint in endpoints]
    lines = [f"    server s{number} {address}\n" for number, address in enumerate(addresses)]
    text, listed = SERVERS.subn("".join(lines), text)
    assert (bound, listed) == (1, 1)
    return text


@asynccontextmanager
async def open_balancer(folder: Path, endpoints: Sequence[str]) -> AsyncIterator[str]:
    """Run HAProxy before some servers; yields the endpoint that clients connect to.

    Args:
        folder: Where the configuration is written.
        endpoints: Those of the servers.

    Raises:
        ChildFailed: HAProxy is not installed.
    """
    haproxy = find_haproxy()
    if haproxy is None:
        raise ChildFailed("there is no HAProxy: apt-get install haproxy")
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listener:
        port = listener.getsockname()[1]
        file = folder / "haproxy.cfg"
        file.write_text(configuration(listener.fileno(), endpoints))
        process = await trio.lowlevel.open_process(
            [haproxy, "-db", "-f", str(file)], pass_fds=[listener.fileno()]
        )
    try:
        yield f"tcp://127.0.0.1:{port}"
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
