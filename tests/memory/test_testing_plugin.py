"""The fixtures, in projects that have nothing else; each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TEST = """
import pytest, trio, trioreq

async def handler(request):
    await trio.sleep(20)
    return request.body

{mark}
async def test_two_servers_and_two_clients(trioreq_server, trioreq_client, autojump_clock):
    first, second = [await trioreq_server(handler, timeout=30) for _ in range(2)]
    clients = [await trioreq_client(net) for net in (first, second)]
    for client in clients:
        assert await client.request(b"x") == b"x"
    assert first.server.statistics().replied == second.server.statistics().replied == 1
    with pytest.raises(ValueError, match="workers"):
        await trioreq_server(handler, workers=0)

{mark}
async def test_a_server_may_be_left_in_the_middle_of_its_work(trioreq_server, autojump_clock):
    net = await trioreq_server(handler)
    net.connect().send(b"x")
    await trio.sleep(1)
    assert net.server.statistics().running == 1
"""


def run_pytest(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert not done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize(("mark", "mode"), [("@pytest.mark.trio", "false"), ("", "true")])
def test_the_fixtures_work_with_marks_and_in_trio_mode(
    tmp_path: Path, mark: str, mode: str
) -> None:
    (tmp_path / "test_it.py").write_text(TEST.format(mark=mark))
    (tmp_path / "pytest.ini").write_text(f"[pytest]\ntrio_mode = {mode}\nfilterwarnings = error\n")
    out = run_pytest(tmp_path)
    assert "2 passed" in out, out
    assert "warning" not in out


@pytest.mark.parametrize("error", ["SystemExit: 3", "ZeroDivisionError: 3"])
def test_a_server_or_a_handler_that_fails_fails_its_test(tmp_path: Path, error: str) -> None:
    kind = error.partition(":")[0]
    (tmp_path / "test_it.py").write_text(
        "import pytest, trio\n"
        "async def handler(request):\n"
        f"    raise {kind}(3)\n"
        "@pytest.mark.trio\n"
        "async def test_it(trioreq_server, autojump_clock):\n"
        "    net = await trioreq_server(handler)\n"
        "    net.connect().send(b'x')\n"
        "    await trio.sleep_forever()\n"
    )
    assert error in run_pytest(tmp_path)


def test_a_project_that_does_not_use_them_is_left_alone(tmp_path: Path) -> None:
    """Nor does it need pytest-trio; here it looks as if it were not installed."""
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_it():\n"
        "    loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "    assert not loaded & {'trioreq', 'trio', 'zmq', 'greenback'}\n"
    )
    (tmp_path / "pytest_trio.py").write_text("raise ModuleNotFoundError")
    out = run_pytest(tmp_path, "-p", "no:trio", "-p", "no:anyio", "-W", "error")
    assert "1 passed" in out, out
