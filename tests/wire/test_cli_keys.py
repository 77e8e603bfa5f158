"""`trioreq-keygen`, and `trioreq-client` with keys: real processes, and files of the test's own."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import zmq.auth
from support.serving import serving

import trioreq

pytestmark = pytest.mark.slow

LIMIT = 15  # seconds
CLIENT = [sys.executable, "-m", "trioreq.cli"]
KEYGEN = [sys.executable, "-c", "from trioreq.cli import keygen; keygen()"]


async def run(program: list[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Run it to its end; returns its exit code, and what it has printed."""
    with trio.fail_after(LIMIT):
        done: subprocess.CompletedProcess[bytes] = await trio.run_process(
            [*program, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def whoami(request: trioreq.Request) -> bytes:
    return request.client.user_id.encode()


async def test_keygen_makes_a_pair_and_prints_the_public_key(tmp_path: Path) -> None:
    code, out, err = await run(KEYGEN, tmp_path / "alice")
    assert (code, err) == (0, "")
    keys = trioreq.KeyPair.load(tmp_path / "alice.key_secret")
    assert out == f"{keys.public}\n"
    assert stat.S_IMODE((tmp_path / "alice.key_secret").stat().st_mode) == 0o600
    assert zmq.auth.load_certificate(tmp_path / "alice.key") == (keys.public.encode(), None)

    code, out, err = await run(KEYGEN, tmp_path / "alice")
    assert (code, out) == (2, "")
    assert "already exists, and is not overwritten" in err
    assert "Traceback" not in err
    assert trioreq.KeyPair.load(tmp_path / "alice.key_secret") == keys

    for name, says in ((tmp_path / "nowhere" / "alice", "No such file or directory"), ("", "''")):
        code, out, err = await run(KEYGEN, name)
        assert (code, out) == (2, "")
        assert says in err
        assert "Traceback" not in err


async def test_keygen_is_installed_as_a_program() -> None:
    program = Path(sys.executable).with_name("trioreq-keygen")
    code, out, _ = await run([str(program)], "--version")
    assert (code, out.split()[-1]) == (0, trioreq.__version__)


async def test_the_client_shows_its_keys(addr: str, tmp_path: Path) -> None:
    server, alice, bob = (trioreq.KeyPair.generate() for _ in range(3))
    for keys, name in ((server, "server"), (alice, "alice"), (bob, "bob")):
        keys.save(tmp_path / name)
    curve = trioreq.CurveServer(server, {alice.public: "alice"})
    secret = tmp_path / "alice.key_secret"
    async with serving(whoami, addr, curve=curve) as running:
        (endpoint,) = running.endpoints
        for server_key in (server.public, tmp_path / "server.key"):
            given = ("--server-key", server_key, "--key-file", secret)
            assert await run(CLIENT, *given, endpoint, "x") == (0, "alice", "")
        secret.chmod(0o440)
        assert await run(CLIENT, *given, "--allow-group", endpoint, "x") == (0, "alice", "")
        secret.chmod(0o400)
        code, out, err = await run(
            CLIENT, "bench", "-n", "3", "--json", "--server-key", server.public,
            "--key-file", secret, endpoint,
        )  # fmt: skip
        assert (code, err) == (0, "")
        assert '"curve": true' in out
        assert alice.secret not in out


async def test_the_client_reports_why_it_is_refused(tmp_path: Path) -> None:
    server, alice, bob = (trioreq.KeyPair.generate() for _ in range(3))
    bob.save(tmp_path / "bob")
    alice.save(tmp_path / "alice")
    bob_file, alice_file = tmp_path / "bob.key_secret", tmp_path / "alice.key_secret"
    curve = trioreq.CurveServer(server, {alice.public: "alice"})
    async with serving(whoami, curve=curve) as running, serving(whoami) as open_to_all:
        (endpoint,) = running.endpoints
        ours = ("--server-key", server.public, "--key-file")
        for arguments, codes, text in (
            ((*ours, bob_file, endpoint, "x"), {7}, f"is its key {bob.public} on the server"),
            (("--server-key", server.public, endpoint, "x"), {7}, "refuses this client"),
            (
                ("--server-key", bob.public, "--key-file", alice_file, endpoint, "x"),
                {7},
                "is the server's key right?",
            ),
            ((*ours, alice_file, open_to_all.endpoints[0], "x"), {7}, "speak CURVE"),
            (("--connect-timeout", "1", endpoint, "x"), {4, 7}, "CURVE"),
        ):
            code, out, err = await run(CLIENT, *arguments)
            assert code in codes, (arguments, err)
            assert out == ""
            assert text in err
            assert "Traceback" not in err
            assert not any(keys.secret in err for keys in (server, alice, bob))


async def test_keys_that_cannot_be_used_are_refused_before_anything_is_sent(
    tmp_path: Path,
) -> None:
    keys = trioreq.KeyPair.generate()
    _, secret = keys.save(tmp_path / "alice")
    _, shared = keys.save(tmp_path / "shared")
    shared.chmod(0o440)
    nobody = "tcp://127.0.0.1:1"
    for arguments, text in (
        (("--key-file", secret), "--key-file needs --server-key"),
        (("--server-key", "no-such-file"), "No such file or directory"),
        (("--server-key", "x" * 39 + "~"), "40 characters"),
        (("--server-key", keys.public, "--key-file", tmp_path / "alice.key"), "no secret key"),
        (("--server-key", keys.public, "--key-file", shared), "allow_group"),
        (("--server-key", keys.public, "--key-file", tmp_path / "nobody"), "No such file"),
    ):
        code, out, err = await run(CLIENT, *arguments, nobody, "x")
        assert (code, out) == (2, ""), (arguments, err)
        assert text in err
        assert "Traceback" not in err
        assert keys.secret not in err
