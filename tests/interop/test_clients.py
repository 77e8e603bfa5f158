"""The clients of docs/clients.md, compiled and run as the page shows them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import trio
from support.handlers import Worker
from support.serving import LIMIT, serving

import trioreq

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs/clients.md").read_text()
PATIENT, HASTY = LIMIT * 1000, 500  # milliseconds


@pytest.fixture(params=["ask_c", "ask_cpp", "ask_node", "ask_java"])
def command(request: pytest.FixtureRequest) -> list[str]:
    words: list[str] = request.getfixturevalue(request.param)
    return words


async def ask(command: list[str], *words: object) -> tuple[int, str, str]:
    """Run a client; returns its exit code and what it has printed."""
    done = await trio.run_process(
        [*command, *map(str, words)], check=False, capture_stdout=True, capture_stderr=True
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def test_a_client_of_the_page_gets_a_reply(command: list[str]) -> None:
    async def handler(request: trioreq.Request) -> list[bytes]:
        return [b"hello, " + request.body, b"", b"more"]

    async with serving(handler) as server:
        done = await ask(command, server.endpoints[0], "world", PATIENT)
        assert done == (0, "hello, world\n\nmore\n", "")


async def test_a_client_of_the_page_reports_an_error(command: list[str]) -> None:
    async def handler(request: trioreq.Request) -> bytes:
        raise trioreq.ReplyError("not-found", "there is no such image")

    async with serving(handler) as server:
        done = await ask(command, server.endpoints[0], "17", PATIENT)
        assert done == (1, "", "not-found\nthere is no such image\n")


async def test_a_client_of_the_page_gives_up(command: list[str]) -> None:
    """That its socket closes is the cancel."""
    worker = Worker()
    async with serving(worker, heartbeat=None) as server:
        code, out, err = await ask(command, server.endpoints[0], "wait", HASTY)
        assert (code, out) == (3, "")
        assert err.startswith("no reply")
        await worker.log.wait("cancelled wait: disconnected")


async def test_a_client_of_the_page_says_how_it_is_used(command: list[str]) -> None:
    code, out, err = await ask(command, "tcp://127.0.0.1:5555")
    assert (code, out) == (2, "")
    assert err.startswith("usage: ")
    code, out, err = await ask(command, "nonsense", "world", PATIENT)
    assert (code, out) == (2, "")
    assert err.startswith("nonsense: ")


def names_of(language: str) -> list[str]:
    """The names of options in one column of the page's table."""
    header, _, *rows = PAGE.partition("| option |")[2].partition("\n\n")[0].splitlines()
    column = [cell.strip() for cell in header.split("|")].index(language)
    names = [row.strip("|").split("|")[column + 1].strip().strip("`") for row in rows]
    assert len(names) > 5
    return names


def test_the_options_of_the_page_are_there_in_c(ask_c: list[str]) -> None:
    header = Path("/usr/include/zmq.h").read_text()
    assert [name for name in names_of("C") if f"#define {name} " not in header] == []


def test_the_options_of_the_page_are_there_in_cpp(ask_cpp: list[str]) -> None:
    header = Path("/usr/include/zmq.hpp").read_text()
    known = {f"sockopt::{name}" for name in re.findall(r"ZMQ_DEFINE_\w+\(\w+, (\w+)", header)}
    assert set(names_of("C++")) - known == set()


def test_the_options_of_the_page_are_there_in_node(ask_node: list[str]) -> None:
    code = "const {Request} = require('zeromq'); for (const n of process.argv.slice(1)) "
    code += "if (!(n in Request.prototype)) console.log(n)"
    folder = Path(ask_node[1]).parent
    unknown = subprocess.run(
        ["node", "-e", code, *names_of("Node")], cwd=folder, capture_output=True, check=True
    )
    assert unknown.stdout == b""


def test_the_options_of_the_page_are_there_in_java(jars: list[Path]) -> None:
    path = ":".join(map(str, jars))
    shown = subprocess.run(
        ["javap", "-cp", path, "org.zeromq.ZMQ$Socket"], capture_output=True, text=True, check=True
    )
    assert [name for name in names_of("Java") if f" {name}(" not in shown.stdout] == []
