"""The docs say what is so: their tables are complete, and their examples run.

The examples run as they stand, in processes of their own; only the address is another, a socket
file, so that nothing depends on free ports. Clients wait for servers by reconnecting, as zmq does.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import trioreq
import trioreq.testing
from trioreq._protocol import endings
from trioreq._protocol.endings import Ending

ROOT = Path(__file__).parents[2]
SOURCE = Path(trioreq.__file__).parent
FOLDERS = ["", *sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))]
PAGES = [
    "README.md",
    "docs/index.md",
    "docs/guide.md",
    "docs/handlers.md",
    "docs/crashed-client.md",
    "docs/protocol.md",
    "docs/design.md",
]
ADDRESS = "tcp://127.0.0.1:5555"
ANY_CLIENT = f"""
import zmq
socket = zmq.Context().socket(zmq.REQ)
socket.linger = 0
socket.connect({ADDRESS!r})
socket.send(b"anything")
print(socket.recv_multipart())
"""
LIMIT = 30  # seconds


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.DOTALL | re.MULTILINE)


def table(page: str, heading: str) -> list[str]:
    """The names in the first column of a table, which is headed so."""
    _, found, rest = text_of(page).partition(f"\n| {heading} |")
    assert found, f"{page} has no table of {heading}"
    return re.findall(r"^\| `(\w[\w-]*)` \|", rest.partition("\n\n")[0], re.MULTILINE)


def examples() -> dict[str, tuple[str, list[str]]]:
    """Each server of the docs, with the clients that follow it on its page."""
    found = {}
    for page in PAGES:
        cast: list[tuple[str, list[str]]] = []
        for block in blocks(page, "python"):
            if "trio.run(" in block:
                cast.append((block, []))
            else:
                cast[-1][1].append(block)
        for number, (server, clients) in enumerate(cast, 1):
            found[f"{page}-{number}"] = server, clients
    return found


@contextmanager
def running(code: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("name", examples())
def test_the_examples_run(name: str, tmp_path: Path) -> None:
    server, clients = examples()[name]
    assert server.count(ADDRESS) == 1
    endpoint = f"ipc://{tmp_path}/socket"
    with running(server.replace(ADDRESS, endpoint)) as serving:
        for client in clients or [ANY_CLIENT]:
            assert client.count(ADDRESS) == 1
            with running(client.replace(ADDRESS, endpoint)) as asking:
                output, errors = asking.communicate(timeout=LIMIT)
            assert (asking.returncode, errors) == (0, "")
            assert output
            assert "handler-failed" not in output
            for promised in re.findall(r"print\(.*\)  # (.*)$", client, re.MULTILINE):
                assert promised in output.splitlines()
        serving.send_signal(signal.SIGTERM)
        _, errors = serving.communicate(timeout=LIMIT)
        assert errors == ""
        assert serving.returncode == (0 if "SIGTERM" in server else -signal.SIGTERM)


@pytest.mark.slow
def test_the_examples_of_who_may_come_in_run(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/socket"
    whole, server = (
        block.replace(ADDRESS, endpoint) for block in blocks("docs/security.md", "python")
    )
    with running(whole) as process:
        assert process.communicate(timeout=LIMIT) == ("b'hello, alice'\n", "")
    assert process.returncode == 0
    with running(server), running(ANY_CLIENT.replace(ADDRESS, endpoint)) as asking:
        assert asking.communicate(timeout=LIMIT) == ("[b'somebody']\n", "")


def test_the_page_of_who_may_come_in_names_tests_that_are_there() -> None:
    named = re.findall(r"`(test_\w+)`", text_of("docs/security.md"))
    files = ("tests/wire/test_security.py", "tests/memory/test_told_first.py")
    there = "".join((ROOT / file).read_text() for file in files)
    assert named
    assert [name for name in named if f"def {name}(" not in there] == []


def test_the_page_on_testing_is_a_file_of_tests_that_pass(tmp_path: Path) -> None:
    code = "\n\n".join(blocks("docs/testing.md", "python"))
    (tmp_path / "test_page.py").write_text(code)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert f"{code.count('async def test_') + 9} passed" in done.stdout, done.stdout
    assert done.returncode == 0


def test_the_first_example_is_the_same_everywhere() -> None:
    assert blocks("docs/index.md", "python")[0] == blocks("README.md", "python")[0]


@pytest.mark.parametrize("name", ["run", "test", "docs"])
def test_the_readme_has_each_command_as_one_line(name: str) -> None:
    marked = re.findall(
        rf"^<!-- command: {name} -->\n```sh\n(.*)\n```$", text_of("README.md"), re.MULTILINE
    )
    assert len(marked) == 1
    assert " && " in marked[0]


def test_the_readme_names_each_guarantee() -> None:
    assert re.findall(r"\((G\d)\)", text_of("README.md")) == [f"G{n}" for n in range(1, 8)]


def test_the_table_of_options_is_complete() -> None:
    rows = table("docs/guide.md", "option")
    assert rows == list(inspect.signature(trioreq.serve).parameters)


def test_the_table_of_options_has_the_defaults() -> None:
    text = text_of("docs/guide.md")
    for name, parameter in inspect.signature(trioreq.serve).parameters.items():
        if name in ("handler", "addr", "task_status"):
            continue
        shown = re.search(rf"^\| `{name}` \| (.*?) \|", text, re.MULTILINE)
        assert shown is not None
        default = {"max_message_size": "16 MiB"}.get(name, str(parameter.default))
        assert shown[1].strip("`") == default, name
    assert inspect.signature(trioreq.serve).parameters["max_message_size"].default == 16 * 2**20


def test_the_table_of_statistics_is_complete() -> None:
    names = [field.name for field in dataclasses.fields(trioreq.Statistics)]
    assert table("docs/guide.md", "field") == names


@pytest.mark.parametrize("page", ["docs/guide.md", "docs/protocol.md"])
def test_the_tables_of_codes_are_complete(page: str) -> None:
    assert table(page, "code") == list(trioreq.Code)


def test_the_table_of_cancel_reasons_is_complete() -> None:
    assert table("docs/guide.md", "`cancel_reason`") == list(trioreq.CancelReason)


def test_the_reference_names_all_that_is_public() -> None:
    shown = re.findall(r"^\.\. auto\w+:: (\w+)", text_of("docs/api.md"), re.MULTILINE)
    assert sorted(shown) == sorted(trioreq.__all__ + trioreq.testing.__all__)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_design_names_all_files(folder: str) -> None:
    files = [path for path in (SOURCE / folder).iterdir() if path.suffix in (".py", ".c")]
    heading = f"file of `{folder}`" if folder else "file"
    assert table("docs/design.md", heading) == sorted({path.stem for path in files})


def test_the_design_names_all_folders() -> None:
    named = re.findall(r"^\| file of `(\w+)` \|", text_of("docs/design.md"), re.MULTILINE)
    assert sorted(named) == sorted(set(FOLDERS) - {""})


def test_the_table_of_endings_is_the_one_of_the_source() -> None:
    names = {value: name for name, value in vars(endings).items() if isinstance(value, Ending)}
    rows = []
    for ending in endings.ENDINGS:
        reason = f"`{ending.reason}`" if ending.reason else ""
        sent = f"`{ending.code}`" if ending.code else ""
        rows.append((names[ending], ending.outcome, reason, sent))
    text = text_of("docs/design.md").partition("\n| ending |")[2].partition("\n\n")[0]
    shown = re.findall(r"^\| `(\w+)` \| `(\w+)` \| ?(.*?) \| (.*) \|$", text, re.MULTILINE)
    assert [row[:3] for row in shown] == [row[:3] for row in rows]
    assert [row[3] for row in shown if row[3].startswith("`")] == [row[3] for row in rows if row[3]]


def test_the_design_names_the_tests_of_what_it_assumes() -> None:
    named = re.findall(r"`(test_\w+)`", text_of("docs/design.md"))
    there = (ROOT / "tests/wire/test_libzmq.py").read_text()
    assert named
    assert [name for name in named if f"def {name}(" not in there] == []
