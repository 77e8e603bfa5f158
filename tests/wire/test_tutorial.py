"""docs/tutorial.md, followed as a reader does: its files are written, its commands are run.

Deterministic: every wait is for a line or an end of a process, under a limit that only a broken
page reaches. The address is a socket file. Where the page kills a client after some seconds, the
test kills it as soon as the server has printed that the request runs.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from threading import Timer

import pytest

PAGE = (Path(__file__).parents[2] / "docs/tutorial.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ADDRESS = "tcp://127.0.0.1:5555"
KILLED = "timeout -s KILL 2 "
STARTED_WHEN_KILLED = 2  # requests
LIMIT = 30.0  # seconds


class Reader:
    """A user with two terminals that follows the page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"ipc://{folder}/socket"
        self.server: subprocess.Popen[str] | None = None
        self.printed: list[str] = []  # by the server, in the first terminal

    def write(self, code: str) -> None:
        """Write a file, named in its first line. A new server replaces the one that runs."""
        (name,) = re.findall(r"\A# (\w+\.py)\n", code)
        assert code.count(ADDRESS) == 1
        (self.folder / name).write_text(code.replace(ADDRESS, self.address))
        if name == "server.py":
            self.stop_server()
            self.printed.clear()
            self.server = self.start(name, stderr=subprocess.DEVNULL)
            self.read_server()

    def type(self, console: str) -> None:
        """Run the commands of a block, and compare what they print with the lines below them."""
        for command, expected in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", console, re.MULTILINE):
            if command == "python server.py":  # it runs since it was written
                assert "".join(self.printed) == expected
                continue
            kill = command.startswith(KILLED)
            client = self.start(*command.partition("python ")[2].split(), stderr=PIPE)
            if kill:
                while self.printed.count("started\n") < STARTED_WHEN_KILLED:
                    self.read_server()
                client.kill()
            assert client.communicate(timeout=LIMIT) == ("" if kill else expected, "")
            assert expected == "Killed\n" or not kill  # that is what the shell prints
        if "Killed" in console:
            self.read_server()

    def start(self, *arguments: str, stderr: int) -> subprocess.Popen[str]:
        command = [sys.executable, *arguments]
        return subprocess.Popen(command, cwd=self.folder, stdout=PIPE, stderr=stderr, text=True)

    def read_server(self) -> str:
        """Read a line that the server prints."""
        assert self.server is not None
        assert self.server.stdout is not None
        watch = Timer(LIMIT, self.server.kill)
        watch.start()
        line = self.server.stdout.readline()
        watch.cancel()
        assert line, "the server ended, or printed nothing"
        self.printed.append(line.replace(self.address, ADDRESS))
        return line

    def stop_server(self) -> None:
        """Press Ctrl-C in the first terminal."""
        if self.server is not None:
            self.server.send_signal(signal.SIGINT)
            rest, _ = self.server.communicate(timeout=LIMIT)
            assert self.server.returncode == 0
            self.printed.append(rest)
            self.server = None


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    if reader.server is not None:
        reader.server.kill()
        reader.server.communicate()


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_the_tutorial_does_what_it_says(reader: Reader) -> None:
    blocks = BLOCK.findall(PAGE)
    assert {language for language, _ in blocks} == {"sh", "python", "console", "text"}
    for language, text in blocks:
        match language:
            case "python":
                reader.write(text)
            case "console":
                reader.type(text)
            case "sh":
                pass  # the installation, whose commands tests/pure/test_docs.py knows
            case "text":
                reader.stop_server()
                assert "".join(reader.printed) == text
    assert "cancelled: disconnected\n" in reader.printed
