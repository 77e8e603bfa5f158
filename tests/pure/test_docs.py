"""The docs say what is so: their tables are complete, and their examples run.

The examples run as they stand, in processes of their own; only the address is another, a socket
file, and the port of the metrics, so that nothing depends on free ports. Clients wait for servers
by reconnecting, as zmq does.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import pytest

import trioreq
import trioreq.testing
from trioreq._protocol import endings
from trioreq._protocol.endings import Ending

ROOT = Path(__file__).parents[2]
SOURCE = Path(trioreq.__file__).parent
FOLDERS = ["", *sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))]
PAGES = [  # whose programs are servers, with the clients that follow them
    "README.md",
    "docs/index.md",
    "docs/guide.md",
    "docs/handlers.md",
    "docs/streaming.md",
    "docs/crashed-client.md",
    "docs/protocol.md",
    "docs/design.md",
    "docs/troubleshooting.md",
    "docs/faq.md",
    "docs/no-pickle.md",
    "docs/coming-from.md",
]
OWN_TESTS = {  # of the code on other pages
    "docs/existing-workers.md": "test_workers_answer",
    "docs/migrating.md": "test_the_workers_behind_the_gateway",
    "docs/client.md": "test_the_page_of_the_client_is_a_program_that_runs",
    "docs/reliability.md": "test_the_limit_of_descriptors_is_raised_as_the_page_says",
    "docs/server.md": "test_the_page_of_the_server_is_true",
    "docs/security.md": "test_the_examples_of_access_control_run",
    "docs/testing.md": "test_the_page_on_testing_is_a_file_of_tests_that_pass",
    "docs/tutorial.md": "test_the_tutorial_does_what_it_says",
}
TERMS = [
    "access control", "allow-list", "client disconnects", "connection lost", "event loop blocked",
    "malformed request", "plain function", "request cancelled", "routing id", "slow client",
]  # fmt: skip
# Words for which the glossary, or plain English, has a better one.
NOT_PLAIN = r"""(?ix)
\b(
    anew | in\ vain | for\ ever | in\ earnest
    | nobody | somebody | anybody | everybody | who | whom | whoever  # the client, the peer
    | (?<!there\ ) (is|are)\ no(?!\ longer) | is\ none | are\ none  # is not a
    | gone | goes\ away | hangs?\ up | fall(s|ing)?\ silent  # disconnects, is stopped
    | lets?\ in | thrown\ out | stranger | newcomers?  # accept, refuse, evict
    | told | tells? | speaks? | spoke | hears? | heard  # send, receive
    | gives?\ up | gave\ up  # cancel
    | notices? | noticed | noticing | finds?\ out | found\ out  # detect
    | turns? | trio's\ loop | ceiling | hand(s|ed)?\ over | holds?\ up(?!\ to) | held\ up
)\b
"""
NOT_IN_REFERENCE = {  # members that are not for users, or that the class's docstring has
    "AllowList": {"watch"},
    "KeyPair": {"public", "secret"},
    "MemoryNetwork": {
        "bind", "line", "observers", "open_connection", "open_workers", "thread_pool",
    },
    "Server": {"closed", "start", "stop", "wait_drained", "wait_finished"},
}  # fmt: skip
DIRECTIVES = ["{eval-rst}", "{glossary}", "{literalinclude}", "{toctree}"]
SERVES = re.compile(r"trioreq\.(serve|open_server)\b|\.bind\(")  # a block that is a server
ADDRESS = "tcp://127.0.0.1:5555"
METRICS = "export(server, 8000)"
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


def all_pages() -> list[str]:
    return [str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]]


def commands() -> list[str]:
    """The commands that the pages have for the shell, but those that other tests run."""
    pages = set(all_pages()) - {
        "docs/existing-workers.md",
        "docs/migrating.md",
        "docs/security.md",
    }  # whose test runs what it says
    texts = [block for page in sorted(pages) for block in blocks(page, "sh")]
    lines = [line for text in texts for line in text.replace(" && ", "\n").splitlines()]
    lines = [line.removeprefix(".venv/bin/") for line in lines]
    elsewhere = ("trioreq-", "eval ", "_TRIOREQ", "python examples/", "sphinx-build")
    return [line for line in lines if not line.startswith(elsewhere)]


def help_of(command: list[str]) -> str:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=True
    ).stdout


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
            if "RayWorkers" in block:  # it needs a cluster
                continue
            if SERVES.search(block):
                cast.append((block, []))
            else:
                cast[-1][1].append(block)
        for number, (server, clients) in enumerate(cast, 1):
            found[f"{page}-{number}"] = server, clients
    return found


@contextmanager
def running(code: str, file: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run a program, in a file if it needs one: worker processes import it."""
    arguments = ["-c", code]
    if file is not None:
        file.write_text(code)
        arguments = [str(file)]
    with subprocess.Popen([sys.executable, *arguments], stdout=-1, stderr=-1, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("name", examples())
def test_the_examples_run(name: str, tmp_path: Path) -> None:
    server, clients = examples()[name]
    assert server.count(ADDRESS) == 1
    endpoint = f"ipc://{tmp_path}/socket"
    program = server.replace(ADDRESS, endpoint).replace(METRICS, "export(server, 0)")
    with running(program, tmp_path / "server.py") as serving:
        for client in clients or [ANY_CLIENT]:
            assert client.count(ADDRESS) == 1
            with running(client.replace(ADDRESS, endpoint)) as asking:
                output, errors = asking.communicate(timeout=LIMIT)
            assert (asking.returncode, errors) == (0, "")
            assert output
            assert "handler-failed" not in output
            for promised in re.findall(r"print\(.*\)  # (.*)$", client, re.MULTILINE):
                assert promised in output.splitlines()
        quiet = "except KeyboardInterrupt" in server
        serving.send_signal(signal.SIGINT if quiet else signal.SIGTERM)
        printed, errors = serving.communicate(timeout=LIMIT)
        assert errors == ""
        assert serving.returncode == (0 if quiet or "SIGTERM" in server else -signal.SIGTERM)
        assert "listening on" not in server or printed == f"listening on {endpoint}\n"


@pytest.mark.slow
def test_the_examples_of_access_control_run(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/socket"
    whole, server = (
        block.replace(ADDRESS, endpoint) for block in blocks("docs/security.md", "python")
    )
    with running(whole) as process:
        assert process.communicate(timeout=LIMIT) == ("b'hello, alice'\n", "")
    assert process.returncode == 0
    with running(server), running(ANY_CLIENT.replace(ADDRESS, endpoint)) as asking:
        assert asking.communicate(timeout=LIMIT) == ("[b'guest']\n", "")


@pytest.mark.slow
def test_the_commands_of_access_control_run(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/socket"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    handler = "async def handler(request):\n    return request.client.user_id.encode()\n"
    (tmp_path / "server.py").write_text(handler)
    made, served, replaced = blocks("docs/security.md", "sh")

    def start(script: str) -> subprocess.Popen[str]:
        script = script.replace("'tcp://*:5555'", endpoint)
        command = ["bash", "-e", "-c", script]
        environment = os.environ | {"PATH": path}
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True
        )

    def run(script: str) -> str:
        with start(script) as process:
            output, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, errors
        return output

    def ask(key: str) -> str:
        options = f"--connect-timeout {LIMIT} --server-key {key} --key-file alice.key_secret"
        return run(f"trioreq-client {options} {endpoint} hello")

    run(made)
    command = shlex.join(["exec", sys.executable, "-P", "-m", "trioreq_cli"])
    with start(served.replace("trioreq-server", command)) as server:
        watch = Timer(LIMIT, server.kill)
        watch.start()
        try:
            assert ask("server.key") == "alice"
            run(replaced)
            assert server.stderr is not None
            assert any("the keys were read again" in line for line in server.stderr)
            assert ask("server-2.key") == "alice"
        finally:
            watch.cancel()
            server.kill()


def test_the_tests_that_pages_name_are_there() -> None:
    sources = "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    there = set(re.findall(r"def (test_\w+)\(", sources))
    pages = "".join(re.sub(r"(?ms)^```.*?^```$", "", text_of(page)) for page in all_pages())
    named = set(re.findall(r"`(test_\w+)`", pages))
    assert named
    assert named - there == set()


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


@pytest.mark.slow
def test_the_page_of_the_client_is_a_program_that_runs(tmp_path: Path) -> None:
    whole, *parts = blocks("docs/client.md", "python")
    endpoint = f"ipc://{tmp_path}/socket"
    server = f"""
import trio
import trioreq

async def echo(request):
    return request.body

trio.run(trioreq.serve, echo, {endpoint!r})
"""
    program = f"""
import trio
import trioreq

async def main():
    async with trioreq.open_client({endpoint!r}) as client:
        bodies = [b"1", b"2"]
{textwrap.indent("".join(parts), " " * 8)}
        print(replies, reply)

trio.run(main)
"""
    with running(server), running(whole.replace(ADDRESS, endpoint)) as process:
        assert process.communicate(timeout=LIMIT) == ("b'world'\n", "")
        with running(program) as process:
            assert process.communicate(timeout=LIMIT) == ("[b'1', b'2'] b'world'\n", "")


def test_the_limit_of_descriptors_is_raised_as_the_page_says() -> None:
    (code,) = blocks("docs/reliability.md", "python")
    lower = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))\n"
    with running(f"{lower}{code}print(resource.getrlimit(resource.RLIMIT_NOFILE))") as process:
        assert process.communicate(timeout=LIMIT) == ("(128, 128)\n", "")


def test_the_page_has_no_code_that_is_not_run() -> None:
    """Python and shell commands are run on all pages, by the tests above and below.

    Those in docstrings are run by tests/wire/test_reference.py.
    """
    languages = {"python", "sh", "text", *DIRECTIVES}
    found = {}
    for page in all_pages():
        fences = re.findall(r"^[ >]*(?:```+|~~~+|:::+)(.*)$", text_of(page), re.MULTILINE)
        opening, closing = fences[::2], fences[1::2]
        assert {*closing} <= {""}, page
        assert "" not in opening, f"{page} has a block without a language"
        assert len(opening) == len(re.findall(r"^```\S", text_of(page), re.MULTILINE)), page
        found[page] = {fence.split()[0] for fence in opening} - languages
    assert {page: some for page, some in found.items() if some} == {
        "docs/server.md": {"toml"},  # tests/wire/test_server.py
        "docs/migrating.md": {"cpp"},  # tests/interop/test_migrating.py
        "docs/existing-workers.md": {"cpp"},  # tests/interop/test_existing_workers.py
        "docs/tutorial.md": {"console"},  # tests/wire/test_tutorial.py
    }


def test_the_python_of_each_page_is_run() -> None:
    with_code = {page for page in all_pages() if blocks(page, "python")}
    assert with_code - {*PAGES, *OWN_TESTS} == set()
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert [test for test in OWN_TESTS.values() if f"def {test}(" not in tests] == []


@pytest.mark.parametrize("line", commands())
def test_the_commands_of_the_pages_are_there(line: str) -> None:
    """Those that take long are not run; but what they name is there, and knows the options."""
    words = shlex.split(line, comments=True)
    if re.match(r"[A-Z_]+=", words[0]):  # a variable
        del words[0]
    program = words[0]
    options = [word for word in words if word.startswith("--")]
    if words[1:3] == ["-m", "benchmarks"]:
        shown = help_of([sys.executable, "-m", "benchmarks", words[3], "--help"])
        assert [option for option in options if option not in shown] == []
    elif program.startswith("scripts/"):
        assert os.access(ROOT / program, os.X_OK)
        shown = help_of([str(ROOT / program), "--help"]) if options else ""
        assert [option for option in options if option not in shown] == []
    elif words[1:3] == ["-m", "pytest"]:
        assert all((ROOT / word).exists() for word in words[3:] if word.startswith("tests/"))
    elif words[1:4] == ["-m", "pip", "install"] or words[:2] == ["pip", "install"]:
        extras = re.findall(r"\[([\w,]+)\]", words[-1])
        known = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
        assert {*",".join(extras).split(",")} <= {*known, ""}
    else:
        known_lines = (["python3", "-m", "venv", ".venv"], [".", ".venv/bin/activate"])
        assert words in known_lines, f"no test runs {line}"


@pytest.mark.slow
def test_the_commands_of_trioreq_client_and_trioreq_keygen_run(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/socket"
    requests, measurement, keys, completion = blocks("docs/cli.md", "sh")

    def run(script: str) -> str:
        script = re.sub(r"tcp://[\d.:]+|ipc:///run/my-service.sock", endpoint, script)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        command = ["bash", "-e", "-c", script]
        with subprocess.Popen(
            command, cwd=tmp_path, env=os.environ | {"PATH": path}, stdout=-1, stderr=-1, text=True
        ) as process:
            output, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, errors
        return output

    def server(curve: str) -> str:
        return f"""
import trio
import trioreq

async def echo(request):
    return request.body

async def main():
    await trioreq.serve(echo, {endpoint!r}, curve={curve})

trio.run(main)
"""

    (tmp_path / "request.bin").write_bytes(b"request")
    (tmp_path / "query.json").write_text("{}")
    with running(server("None")):
        assert run(requests.replace("--interval 0.5", "--interval 0")).startswith("hello")
        assert (tmp_path / "reply.bin").read_bytes() == b"request"
        assert "trioreq-client" in measurement
        assert run(measurement.replace("-d 10", "-d 0.1"))
    made, *_ = blocks("docs/security.md", "sh")
    run(made)
    make, ask = keys.splitlines()
    assert make in made
    folder = repr(str(tmp_path))
    pair = f"trioreq.KeyPair.load({str(tmp_path / 'server.key_secret')!r})"
    with running(server(f"trioreq.CurveServer({pair}, allow={folder})")):
        assert run(ask) == "hello"
    for command in re.findall(r"_TRIOREQ_CLIENT_COMPLETE=\w+ trioreq-client", completion):
        assert run(command)


def test_the_glossary_has_the_terms() -> None:
    terms = re.findall(r"^(\w.*)\n    ", text_of("docs/glossary.md"), re.MULTILINE)
    assert terms == sorted(terms, key=str.lower)
    assert [term for term in TERMS if term not in terms] == []


@pytest.mark.parametrize("page", all_pages())
def test_the_page_is_in_plain_words(page: str) -> None:
    text = re.sub(r"^```.*?^```$|`.*?`", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    assert [found[0] for found in re.finditer(NOT_PLAIN, " ".join(text.split()))] == []


@pytest.mark.slow
def test_llms_txt_names_each_page() -> None:
    code = f"""
import pathlib, runpy
docs = pathlib.Path({str(ROOT / "docs")!r})
print(runpy.run_path(str(docs / "conf.py"))["llms_txt"](docs))
"""
    with running(code) as process:
        text, errors = process.communicate(timeout=LIMIT)
    assert errors == ""
    named = re.findall(r"^- \[.+\]\((.+)\.html\): \S.*\.$", text, re.MULTILINE)
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert sorted(named) == sorted(pages - {"index"})


def test_the_guide_for_contributors_names_folders_that_are_there() -> None:
    text = text_of("CONTRIBUTING.md")
    named = re.findall(r"`((?:src|tests|harness|benchmarks)[\w/]*)`", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
    files = re.findall(r"`([\w/]+\.py)`", text.partition("| change |")[2].partition("\n\n")[0])
    assert files
    assert [name for name in files if not (SOURCE / name).exists()] == []
    folders = {
        f"tests/{path.name}" for path in (ROOT / "tests").iterdir() if any(path.glob("test_*"))
    }
    assert folders <= {*named}


def test_the_first_example_is_the_same_everywhere() -> None:
    (first, _client) = blocks("README.md", "python")
    assert blocks("docs/index.md", "python")[0] == first
    assert 'print("listening on"' in first
    assert "except KeyboardInterrupt" in first


@pytest.mark.parametrize("name", ["run", "test", "docs"])
def test_the_readme_has_each_command_as_one_line(name: str) -> None:
    marked = re.findall(
        rf"^<!-- command: {name} -->\n```sh\n(.*)\n```$", text_of("README.md"), re.MULTILINE
    )
    assert len(marked) == 1
    assert " && " in marked[0]


def test_the_readme_names_each_guarantee() -> None:
    assert re.findall(r"\((G\d)\)", text_of("README.md")) == [f"G{n}" for n in range(1, 8)]


def test_the_list_of_options_is_complete_and_has_the_defaults() -> None:
    shown = re.findall(
        r"^`(\w+)`(?: \(default: `(.+)`\))?\n: ", text_of("docs/guide.md"), re.MULTILINE
    )
    parameters = inspect.signature(trioreq.serve).parameters
    defaults = {name: str(parameter.default) for name, parameter in parameters.items()}
    assert parameters["max_message_size"].default == 16 * 2**20
    defaults |= {"handler": "", "addr": "", "task_status": "", "max_message_size": "16 MiB"}
    assert shown == list(defaults.items())


def test_the_table_of_the_client_is_complete_and_has_the_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", text_of("docs/client.md"), re.MULTILINE)
    parameters = inspect.signature(trioreq.open_client).parameters
    defaults = {name: str(parameter.default) for name, parameter in parameters.items()}
    assert parameters["max_message_size"].default == 16 * 2**20
    defaults["max_message_size"] = "16 MiB"
    del defaults["endpoint"]
    assert rows == list(defaults.items())


@pytest.mark.parametrize(
    ("page", "figures", "source"),
    [
        ("docs/faq.md", ["11.6", "10,000 dead", "29"], "docs/reliability.md"),
        ("docs/faq.md", ["1,400 short", "one\nmessage in seven"], "docs/design.md"),
        ("docs/comparison.md", ["2,030 s", "83", "11.6 s", "up to 0.1"], "docs/reliability.md"),
    ],
)
def test_figures_that_are_quoted_are_those_of_their_page(
    page: str, figures: list[str], source: str
) -> None:
    quoting, quoted = (" ".join(text_of(name).split()) for name in (page, source))
    for figure in (" ".join(figure.split()) for figure in figures):
        assert figure in quoting
        assert figure in quoted


def test_the_table_of_statistics_is_complete() -> None:
    names = [field.name for field in dataclasses.fields(trioreq.Statistics)]
    assert table("docs/guide.md", "field") == names


@pytest.mark.parametrize("page", ["docs/guide.md", "docs/protocol.md"])
def test_the_tables_of_codes_are_complete(page: str) -> None:
    assert list(dict.fromkeys(table(page, "code"))) == list(trioreq.Code)


def test_the_table_of_cancel_reasons_is_complete() -> None:
    assert table("docs/guide.md", "`cancel_reason`") == list(trioreq.CancelReason)


def test_the_reference_names_all_that_is_public() -> None:
    shown = re.findall(r"^\.\. auto\w+:: (\w+)", text_of("docs/api.md"), re.MULTILINE)
    assert sorted(shown) == sorted(trioreq.__all__ + trioreq.testing.__all__)


def test_the_reference_names_all_members_of_its_classes() -> None:
    text = text_of("docs/api.md")
    listed = re.findall(r"auto\w+:: (\w+)\n   :members: (.+)$", text, re.MULTILINE)
    assert listed
    for name, members in listed:
        shown = getattr(trioreq, name, None) or getattr(trioreq.testing, name)
        public = {member for member in vars(shown) if not member.startswith("_")}
        assert public - set(members.split(", ")) == NOT_IN_REFERENCE.get(name, set())


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
