"""The benchmarks run, each in its smallest form, so that they do not rot.

No figure is looked at.
"""

from __future__ import annotations

import inspect
import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import trioreq
from harness.compiler import NoCompiler
from harness.generator import generator
from harness.processes import ROOT

LIMIT = 60  # seconds
COMMANDS = {
    "throughput": "--rounds 1 --seconds 0.1 --handlers echo --loads 1 8x32 --servers trioreq",
    "latency": "--rounds 1 --seconds 0.1 --only raw 'trioreq async' --rate 500",
    "scale": "--rounds 1 --seconds 0.1 --connected 64",
    "memory": "--rounds 1 --clients 20",
    "client": "--rounds 1 --seconds 0.1 --only 'open_client to trioreq'",
    "cancel_latency": "--kills 1",
    "client_cancel": "--times 2",
    "streams": "--rounds 1 --seconds 0.1 --streams 10",
    "dying": "--rounds 1 --clients 20",
    "workers": "--kills 1 --mixed 1 --others 20 --rounds 1 --seconds 0.5",
    "rpc": "--rounds 1 --calls 5 --seconds 0.1 --work 0.2",
}
ON_ANOTHER_PAGE = {"dying", "rpc"}
SERVERS = {
    "echo": {"raw", "bare trio", "naive trio", "zmq.asyncio", "aiozmq", "pynng", "grpc.aio"},
    "checkpoint": {"naive trio", "zmq.asyncio", "aiozmq", "pynng", "grpc.aio"},
    "sleep": {"naive trio", "zmq.asyncio", "aiozmq", "pynng", "grpc.aio"},
    "plain-echo": {"proxy", "naive trio"},
    "plain-sleep": {"proxy", "naive trio"},
    "plain-query": {"proxy", "naive trio"},
    "plain-compute": {"proxy", "naive trio"},
}  # by handler, beside trioreq
PYTHON_ONLY = {"throughput", "client_cancel", "streams", "rpc", "workers"}  # these need no compiler


def run(command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", command, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def can_compile() -> bool:
    try:
        generator()
    except NoCompiler:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_benchmark_runs(command: str, tmp_path: Path) -> None:
    figures, page = tmp_path / "figures.json", tmp_path / "page.md"
    marks = f"<!-- {command}: begin -->\nold\n<!-- {command}: end -->\n"
    page.write_text(marks)
    arguments = [*shlex.split(COMMANDS[command]), "--json", figures, "--markdown", page]
    plot = tmp_path / "plot.svg"
    if command == "throughput" and find_spec("matplotlib"):  # the extra `bench` has it
        arguments += ["--plot", plot]
    done = run(command, *arguments)
    if command not in PYTHON_ONLY and not can_compile():
        assert "needs a C compiler" in done.stderr
        return
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    assert json.loads(figures.read_text())["figures"]
    assert "| ---: |" in page.read_text()
    assert "\nold\n" not in page.read_text()
    assert "--plot" not in arguments or "<svg" in plot.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("handler", SERVERS)
def test_each_server_answers_with_each_handler(handler: str, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = run(
        "throughput",
        *("--rounds", 1, "--seconds", 0.05, "--loads", 1),
        *("--handlers", handler, "--json", figures),
    )
    assert done.returncode == 0, done.stderr
    loads = json.loads(figures.read_text())["figures"][handler]["1"]
    left_out = re.findall(r"^left out: (.+), since", done.stderr, re.MULTILINE)
    assert loads.keys() == SERVERS[handler].difference(left_out) | {"trioreq"}
    for (load,) in loads.values():  # a client that has had no reply at all is an error
        assert (load["errors"], load["lost"]) == (0, 0)


def test_the_proxy_has_as_many_threads_as_trioreq() -> None:
    workers = inspect.signature(trioreq.serve).parameters["workers"].default
    source = (ROOT / "benchmarks/peers/worker_proxy.py").read_text()
    assert f"\nTHREADS = {workers} " in source


def test_help_names_each_command() -> None:
    done = run("--help")
    assert done.returncode == 0, done.stderr
    named = re.findall(r"^ {4}(\w+) ", done.stdout, re.MULTILINE)
    folders = [ROOT / "benchmarks" / name for name in ("speed", "experiments")]
    modules = {path.stem for folder in folders for path in folder.glob("*.py")}
    assert sorted(named) == sorted(modules - {"__init__"})


@pytest.mark.slow
def test_the_benchmark_of_attribution_runs() -> None:
    done = run("attribution", "--connections", 50)
    assert done.returncode == 0, done.stderr
    assert "wrong by descriptor and epoch" in done.stdout


def test_the_page_has_the_marks_of_each_command() -> None:
    page = (ROOT / "docs/performance.md").read_text()
    for command in COMMANDS.keys() - ON_ANOTHER_PAGE:
        assert page.index(f"<!-- {command}: begin -->") < page.index(f"<!-- {command}: end -->")
