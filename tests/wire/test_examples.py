"""The examples, run as a user runs them: each in a process of its own.

Deterministic: every wait is for an event (a line, a reply, an end), under a limit that only a
broken example reaches. Ports are the kernel's choice, and read from what the example prints.
"""

from __future__ import annotations

import io
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import trio
from PIL import Image

import trioreq
from harness.clients import Clients

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 20.0  # seconds


pytestmark = pytest.mark.usefixtures("interruptible")


class Example:
    """An example that runs."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._out = self._err = b""

    async def endpoint(self) -> str:
        """Wait until it serves; returns where."""
        assert self.process.stdout is not None
        while b"\n" not in self._out:
            more = await self.process.stdout.receive_some()
            assert more, "it ended before it served"
            self._out += more
        return self._out.decode().split()[-1]

    async def end(self) -> tuple[int, str, str]:
        """Wait for its end; returns its exit code, and all that it has printed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_errors)
            assert self.process.stdout is not None
            async for some in self.process.stdout:
                self._out += some
        return await self.process.wait(), self._out.decode(), self._err.decode()

    async def _read_errors(self) -> None:
        assert self.process.stderr is not None
        async for some in self.process.stderr:
            self._err += some


@asynccontextmanager
async def example(
    name: str, *arguments: str | Path, patience: float = PATIENCE
) -> AsyncIterator[Example]:
    """Start an example, in a session of its own, and see that nothing of it outlives the test."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with process.stdout, process.stderr:
            with trio.fail_after(patience):
                yield Example(process)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await process.wait()


async def run(name: str, *arguments: str | Path) -> tuple[int, str, str]:
    async with example(name, *arguments) as started:
        return await started.end()


def picture(width: int, height: int, kind: str) -> bytes:
    output = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(output, kind)
    return output.getvalue()


def without_figures(output: str) -> list[str]:
    """The lines without times and ports, in an order that does not depend on the run."""
    return sorted(
        " ".join(re.sub(r"\d+\.\d+ |:\d+", "", line).split()) for line in output.splitlines()
    )


@pytest.mark.slow
async def test_client_crash_keeps_its_promises() -> None:
    async with example("client_crash.py") as demo:
        code, out, err = await demo.end()
        with pytest.raises(ProcessLookupError):  # all of its processes have ended
            os.killpg(demo.process.pid, 0)
    assert (code, err) == (0, "")

    bob = re.search(r"bob +server +handler cancelled: disconnected, ([\d.]+) ms after SIGKILL", out)
    carol = re.search(r"carol +server +handler cancelled: \w+, ([\d.]+) ms after SIGSTOP", out)
    assert bob is not None
    assert carol is not None
    assert float(bob[1]) < float(carol[1])
    assert "alice   process  has printed 'a report for alice', exit code 0" in out
    assert "dave    process  has printed 'a report for dave', exit code 0" in out
    for name in ("bob", "carol"):
        assert re.search(rf"{name} +process +has printed nothing, exit code -9", out)

    counts = dict(re.findall(r"^(\w+) +(\d+) +\d", out, re.MULTILINE))
    assert counts == {
        "requests": "4",
        "replied": "2",
        "cancelled_by_disconnect": "2",
        "replies_sent": "2",
        "running": "0",
    }
    assert len(re.findall(r" yes$", out, re.MULTILINE)) == 5
    assert "NO" not in out
    assert "\x1b" not in out  # colours are for terminals

    readme = (EXAMPLES.parent / "README.md").read_text()
    (shown,) = re.findall(r"^```text\n(A server at .*?)^```$", readme, re.DOTALL | re.MULTILINE)
    assert without_figures(out) == without_figures(shown)


async def test_client_crash_reports_a_broken_guarantee(
    capsys: pytest.CaptureFixture[str],
) -> None:
    demo = runpy.run_path(str(EXAMPLES / "client_crash.py"))["Demo"]()
    counts: dict[str, Any] = {field.name: 0 for field in fields(trioreq.Statistics)}
    nothing = trioreq.Statistics(**counts)
    assert demo.judge(nothing) is False
    out = capsys.readouterr().out
    assert re.search(r"^alice and dave have their reports +NO$", out, re.MULTILINE)


async def test_echo_answers_and_ends_well_on_sigterm(clients: Clients) -> None:
    async with example("echo.py", "tcp://127.0.0.1:0") as echo:
        endpoint = await echo.endpoint()
        client = clients.connect(endpoint)
        assert await client.request(b"hello") == [b"hello"]
        assert await client.request(b"two", b"", b"frames") == [b"two", b"", b"frames"]
        echo.process.send_signal(signal.SIGTERM)
        assert await echo.end() == (0, f"serving at {endpoint}\n", "")


async def test_echo_ends_quietly_on_ctrl_c(clients: Clients) -> None:
    async with example("echo.py", "tcp://127.0.0.1:0") as echo:
        endpoint = await echo.endpoint()
        assert await clients.connect(endpoint).request(b"hello") == [b"hello"]
        echo.process.send_signal(signal.SIGINT)
        assert await echo.end() == (130, f"serving at {endpoint}\n", "")


async def test_progress_runs_to_its_end_or_until_the_client_leaves() -> None:
    code, out, err = await run("progress.py", "tcp://127.0.0.1:0")
    assert (code, err) == (0, "")
    lines = out.splitlines()[1:]
    steps = ["25%", "50%", "75%", "100%"]
    assert [line for line in lines if line.startswith("client")] == [
        *(f"client: first {step}" for step in steps),
        *(f"client: second {step}" for step in steps[:2]),
        *(f"client: third {step}" for step in steps),
    ]
    assert [line for line in lines if line.startswith("server")] == [
        "server: first is done",
        "server: second is cancelled: cancelled",
        "server: third is done",
    ]


@pytest.mark.slow
async def test_echo_says_why_it_cannot_serve() -> None:
    async with example("echo.py", "tcp://127.0.0.1:0") as echo:
        endpoint = await echo.endpoint()
        code, out, err = await run("echo.py", endpoint)
    assert (code, out) == (1, "")
    assert err.startswith(f"cannot bind '{endpoint}': the address is in use")
    assert "Traceback" not in err


@pytest.mark.slow
async def test_freed_processor_saves_processor_time() -> None:
    code, out, err = await run("freed_processor.py")
    assert (code, err) == (0, "")
    assert [line[9:] for line in out.splitlines()[:2]] == ["alice's job runs", "alice is killed"]
    assert re.search(r"at least \d\.\d\d s were saved$", out)


async def test_thumbnails_makes_thumbnails(clients: Clients) -> None:
    async with example("thumbnails.py", "tcp://127.0.0.1:0") as server:
        client = clients.connect(await server.endpoint())
        for kind in ("PNG", "JPEG"):
            (reply,) = await client.request(picture(400, 300, kind), b"64")
            with Image.open(io.BytesIO(reply)) as image:
                assert (image.format, image.size) == ("PNG", (64, 48))
        (reply,) = await client.request(picture(300, 600, "PNG"))
        with Image.open(io.BytesIO(reply)) as image:
            assert (image.format, image.size) == ("PNG", (128, 256))
        server.process.send_signal(signal.SIGINT)
        code, _, err = await server.end()
    assert (code, err) == (130, "")


async def test_thumbnails_refuses_what_it_cannot_do(clients: Clients) -> None:
    good = picture(40, 30, "PNG")
    async with example("thumbnails.py", "tcp://127.0.0.1:0") as server:
        client = clients.connect(await server.endpoint())
        for bad in (b"", b"garbage", good[: len(good) // 2], b"GIF89a" + good):
            mark, code, text = await client.request(bad)
            assert (mark, code) == (b"trioreq-error", b"bad-image")
            assert text
        for size in (b"", b"0", b"-1", b"1e3", b"9" * 5000):
            mark, code, text = await client.request(good, size)
            assert (mark, code) == (b"trioreq-error", b"bad-size")
            assert text
        assert len(await client.request(good, b"8")) == 1


@pytest.mark.slow
async def test_the_client_of_thumbnails(tmp_path: Path) -> None:
    source, garbage, target = (tmp_path / name for name in ("in.png", "garbage.png", "out.png"))
    source.write_bytes(picture(400, 300, "PNG"))
    garbage.write_bytes(b"garbage")
    async with example("thumbnails.py", "tcp://127.0.0.1:0") as server:
        endpoint = await server.endpoint()

        code, out, err = await run("thumbnails.py", "client", endpoint, garbage, target)
        assert (code, out) == (1, "")
        assert err.startswith("bad-image: ")
        assert not target.exists()

        assert await run("thumbnails.py", "client", endpoint, source, target, "64") == (0, "", "")
        with Image.open(target) as image:
            assert (image.format, image.size) == ("PNG", (64, 48))


FIGURE = r"\d[\d.,]*\d|\d"


def crashed_client(language: str) -> list[str]:
    page = (EXAMPLES.parent / "docs/crashed-client.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def figures(text: str, out: str) -> list[float]:
    """The numbers in the places of # in each occurrence of a text."""
    before, after = map(re.escape, text.split("#"))
    found = re.findall(rf"{before}({FIGURE}){after}", out)
    return [float(number.replace(",", "")) for number in found]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["killed", "unread", "stranger", "blocked"])
async def test_orphaned_replies_prints_the_output_on_the_page(name: str) -> None:
    """The page has the output, but for the figures, to the letter."""
    (shown,) = (block for block in crashed_client("text") if block.startswith(f"{name}: "))
    async with example("orphaned_replies.py", name, patience=60) as program:
        code, out, err = await program.end()
        with pytest.raises(ProcessLookupError):  # all of its processes have ended
            os.killpg(program.process.pid, 0)
    assert (code, err) == (0, "")
    assert re.sub(FIGURE, "#", out) == re.sub(FIGURE, "#", shown)
    for text in (shown, out):
        if name == "killed":
            (after,) = figures("cancelled # ms after SIGKILL", text)
            assert after < 2000
        elif name == "unread":
            held, _ = figures("without an error; # MB are queued", text)
            (left,) = figures("carol is killed: # MB are queued", text)
            assert left < held / 2
            (read,) = figures("carol reads #, and no more arrive", text)
            assert read < 5000
        elif name == "blocked":
            for line in (
                "are killed in the queue: bob waits # s",
                "the first reply comes after # s",
            ):
                stock, ours = figures(line, text)
                assert ours < stock / 2


def test_orphaned_replies_is_run_as_the_page_says() -> None:
    assert crashed_client("sh") == ["python examples/orphaned_replies.py\n"]
    experiments = [block.partition(":")[0] for block in crashed_client("text")]
    usage = runpy.run_path(str(EXAMPLES / "orphaned_replies.py"))["__doc__"]
    assert f"orphaned_replies.py [{'] ['.join(experiments)}]\n" in usage


@pytest.mark.slow
async def test_curve_accepts_clients_whose_key_is_there() -> None:
    code, out, err = await run("curve.py")
    assert code == 0
    refused_mallory, evicted_alice, *refused_alice = err.splitlines()  # the server's warnings
    for line in (refused_mallory, *refused_alice):
        assert line.startswith("refused 127.0.0.1: its key is not on the allow-list: ")
    assert re.fullmatch(
        r"evicted connection \d+ from 127\.0\.0\.1: its key is no longer on the allow-list",
        evicted_alice,
    )
    mallory, hello, *both, refused = out.splitlines()
    assert (mallory, hello, refused) == (
        "mallory: refused",
        "alice: hello, alice",
        "alice: refused",
    )
    assert sorted(both) == [  # reported by two tasks
        "alice: evicted",
        "the work for alice: cancelled, disconnected",
    ]
