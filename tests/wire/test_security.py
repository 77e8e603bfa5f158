"""Access control, on real sockets: CURVE, PLAIN, lists that change, and limits.

Time is real; everything waits for events, under a limit.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import zmq
from support.handlers import ThreadWorker, Worker
from support.serving import poll, serving, until

import trioreq
from harness.clients import Clients, ClientSocket, open_clients
from harness.zmtp import RawPeer, message
from trioreq._protocol.zap import Verdict, reply
from trioreq._server import admission
from trioreq._transport import allow_list, dealer, linux, zap_handler

pytestmark = pytest.mark.slow

SERVER, ALICE, BOB = (trioreq.KeyPair.generate() for _ in range(3))
PASSWORD = "open sesame"


def curve(allow: Any = None) -> trioreq.CurveServer:
    return trioreq.CurveServer(SERVER, {ALICE.public: "alice"} if allow is None else allow)


def as_client(keys: trioreq.KeyPair = ALICE) -> trioreq.CurveClient:
    return trioreq.CurveClient(SERVER.public, keys)


def options(keys: trioreq.KeyPair = ALICE, server: str = SERVER.public) -> dict[str, Any]:
    """Of a plain libzmq socket."""
    return {
        "CURVE_SERVERKEY": server.encode(),
        "CURVE_PUBLICKEY": keys.public.encode(),
        "CURVE_SECRETKEY": keys.secret.encode(),
    }


def plain(password: str = PASSWORD) -> dict[str, Any]:
    return {"PLAIN_USERNAME": b"alice", "PLAIN_PASSWORD": password.encode()}


async def whoami(request: trioreq.Request) -> bytes:
    client = request.client
    return f"{client.user_id} {client.public_key}".encode()


@pytest.fixture
def no_secret_in_the_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level(logging.DEBUG)
    yield caplog
    shown = "\n".join(map(logging.Formatter().format, caplog.get_records("call")))
    for secret in (PASSWORD, SERVER.secret, ALICE.secret, BOB.secret):
        assert secret not in shown


@pytest.fixture(autouse=True)
def _shows_no_secret(no_secret_in_the_log: pytest.LogCaptureFixture) -> None:
    """All tests here hold this."""


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The status codes of the ZAP handler's replies."""
    seen: list[bytes] = []

    def spy(question: Any, verdict: Verdict, properties: Any) -> list[bytes]:
        seen.append(verdict.code)
        return reply(question, verdict, properties)

    monkeypatch.setattr(zap_handler, "reply", spy)
    return seen


# Which clients are accepted.


async def test_a_client_on_the_allow_list_has_its_user_id(addr: str, clients: Clients) -> None:
    expected = f"alice {ALICE.public}".encode()
    async with serving(whoami, addr, curve=curve()) as server:
        (endpoint,) = server.endpoints
        assert await clients.connect(endpoint, **options()).request(b"") == [expected]
        async with trioreq.open_client(endpoint, curve=as_client()) as client:
            assert await client.request(b"") == expected
        assert server.statistics().refused == 0


async def test_a_client_off_the_allow_list_is_refused_with_the_reason(addr: str) -> None:
    async with serving(whoami, addr, curve=curve()) as server:
        async with trioreq.open_client(server.endpoints[0], curve=as_client(BOB)) as client:
            with pytest.raises(trioreq.Refused, match="refuses this client") as refused:
                await client.request(b"")
            assert BOB.public in str(refused.value)
        stats = server.statistics()
        assert (stats.refused, stats.requests) == (1, 0)


async def test_a_refused_client_is_accepted_when_its_key_is_added(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dealer, "RECONNECT_MOST", 0.01)
    settings = curve()
    assert settings.allow is not None
    async with (
        serving(whoami, curve=settings) as server,
        trioreq.open_client(server.endpoints[0], curve=as_client(BOB)) as client,
    ):
        with pytest.raises(trioreq.Refused):
            await client.request(b"")
        settings.allow.replace({BOB.public: "bob"})
        while True:
            try:
                assert await client.request(b"") == f"bob {BOB.public}".encode()
                break
            except trioreq.Refused:
                pass  # of the try that was under way


@pytest.mark.parametrize(
    ("server_options", "client_curve", "error", "text"),
    [
        # libzmq may see the server's mechanism before the connection ends, or not.
        ({"curve": curve()}, None, (trioreq.NotConnected, trioreq.Refused), "require.* CURVE"),
        ({}, as_client(), trioreq.Refused, "speak CURVE"),
        (
            {"curve": curve()},
            trioreq.CurveClient(BOB.public, ALICE),
            trioreq.Refused,
            "is the server's key right",
        ),
    ],
    ids=["a server with CURVE, a client without", "the reverse", "a wrong key of the server"],
)
async def test_the_error_has_the_known_reason(
    addr: str,
    server_options: dict[str, Any],
    client_curve: trioreq.CurveClient | None,
    error: Any,
    text: str,
) -> None:
    async with serving(whoami, addr, **server_options) as server:
        async with trioreq.open_client(
            server.endpoints[0], curve=client_curve, connect_timeout=2
        ) as client:
            with pytest.raises(error, match=text):
                await client.request(b"")
        assert server.statistics().requests == 0


async def test_a_peer_cannot_set_its_own_user_id() -> None:
    async with serving(whoami) as server:
        with RawPeer(server.endpoints[0]) as peer:
            forged = ((b"User-Id", b"alice"), (b"X-Trioreq-Key", ALICE.public.encode()))
            peer.ask(b"DEALER", b"", *forged)
            await trio.to_thread.run_sync(peer.enter)
            peer.send(b"\x01\x00\x00\x01x")
            assert await trio.to_thread.run_sync(peer.read_frame) == b""
            assert await trio.to_thread.run_sync(peer.read_frame) == b" "


# The guarantees, under CURVE.


async def test_g1_g4_a_disconnect_is_detected(
    addr: str, clients: Clients, handed_over: list[bytes]
) -> None:
    worker = Worker()
    async with serving(worker, addr, curve=curve()) as server:
        client = clients.connect(server.endpoints[0], **options())
        await client.send(b"wait")
        await worker.log.wait("started wait")
        client.close()
        await worker.log.wait("cancelled wait: disconnected")
        stats = server.statistics()
        assert stats.cancelled_by_disconnect == stats.requests == 1
        assert stats.replies_sent == 0
    assert not handed_over


async def test_g2_the_next_one_under_the_same_routing_id_gets_its_own(
    addr: str, clients: Clients
) -> None:
    worker = Worker()
    async with serving(worker, addr, curve=curve()) as server:
        (endpoint,) = server.endpoints
        old = clients.connect(endpoint, routing_id=b"same", **options())
        await old.send(b"shield")
        await worker.log.wait("started shield")
        old.close()
        await until(lambda: server.statistics().connections == 0)
        new = clients.connect(endpoint, routing_id=b"same", **options())
        assert await new.request(b"echo") == [b"re:echo"]
        worker.release.set()
        await until(lambda: server.statistics().running == 0)
        assert await new.request(b"echo again") == [b"re:echo again"]
        assert server.statistics().replies_dropped == 1


async def test_g3_a_request_of_a_disconnected_client_is_not_started(
    addr: str, clients: Clients
) -> None:
    worker = Worker()
    async with serving(worker, addr, curve=curve()) as server:
        (endpoint,) = server.endpoints
        client = clients.connect(endpoint, zmq.DEALER, **options())
        assert (await client.request(b"", b"echo"))[-1] == b"re:echo"
        # The loop stands still from here on: what is sent, and the end, are read together.
        client.raw.send_multipart([b"", b"late"])
        client.raw.close(linger=2000)
        assert poll(server._router._monitor)
        await until(lambda: server.statistics().requests == 2)
        assert server.statistics().never_started == 1
    assert worker.log.entries == ["started echo", "ended echo"]


# A key is taken out.


async def test_a_client_that_is_taken_off_the_allow_list_is_evicted(
    addr: str, clients: Clients, handed_over: list[bytes]
) -> None:
    worker = Worker()
    settings = curve({ALICE.public: "alice", BOB.public: "bob"})
    assert settings.allow is not None
    async with serving(worker, addr, curve=settings) as server:
        (endpoint,) = server.endpoints
        alice = clients.connect(endpoint, RECONNECT_IVL=-1, **options())
        bob = clients.connect(endpoint, **options(BOB))
        await alice.send(b"wait for alice")
        await bob.send(b"wait for bob")
        await worker.log.wait("started wait for alice")
        await worker.log.wait("started wait for bob")
        settings.allow.replace({BOB.public: "bob"})
        assert server.statistics().cancelled_by_disconnect == 1  # at once
        assert server.statistics().connections == 1
        await worker.log.wait("cancelled wait for alice: disconnected")
        worker.release.set()
        assert await bob.receive() == [b"re:wait for bob"]
        assert server.statistics().evicted == 1
    assert handed_over == [b"re:wait for bob"]


async def test_the_connection_of_an_evicted_client_is_closed(
    addr: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dealer, "RECONNECT", 0.01)
    settings = curve()
    assert settings.allow is not None
    worker = Worker()
    async with serving(worker, addr, curve=settings) as server:
        before = descriptors_after(server.endpoints[0])
        async with trioreq.open_client(server.endpoints[0], curve=as_client()) as client:
            with trio.fail_after(5):
                async with trio.open_nursery() as nursery:

                    @nursery.start_soon
                    async def ask() -> None:
                        with pytest.raises(trioreq.ConnectionLost):
                            await client.request(b"wait")

                    await worker.log.wait("started wait")
                    settings.allow.replace({})
                with pytest.raises(trioreq.Refused):
                    await client.request(b"again")
        await until(lambda: server.statistics().connections == 0)
        assert worker.log.count("started again") == 0
        assert descriptors_after(server.endpoints[0]) <= before


def descriptors_after(endpoint: str) -> int:
    """How many this process has when the server's I/O thread has done what it had to do."""
    with RawPeer(endpoint) as peer:
        assert peer.socket.recv(10)  # the signature of a greeting
        return len(list(Path("/proc/self/fd").iterdir()))


async def test_check_cancelled_raises_in_a_plain_function_of_an_evicted_client(
    clients: Clients,
) -> None:
    worker = ThreadWorker()
    settings = curve()
    assert settings.allow is not None
    async with serving(worker, curve=settings) as server:
        client = clients.connect(server.endpoints[0], **options())
        await client.send(b"wait")
        await worker.log.wait("started wait")
        settings.allow.replace({})
        await worker.log.wait("cancelled wait: disconnected")


async def test_a_client_evicted_before_its_first_message_is_not_served(
    addr: str, clients: Clients, answers: list[bytes]
) -> None:
    settings = curve()
    assert settings.allow is not None
    worker = Worker()
    async with serving(worker, addr, curve=settings) as server:
        client = clients.connect(server.endpoints[0], zmq.DEALER, RECONNECT_IVL=-1, **options())
        await until(lambda: answers == [b"200"])
        settings.allow.replace({})
        assert server.statistics().connections == 1  # its connection is not known yet
        await client.send(b"", b"echo")
        await until(lambda: server.statistics().evicted == 1)
        await until(lambda: server.statistics().requests == 1)
        stats = server.statistics()
        assert (stats.never_started, stats.connections) == (1, 0)
    assert not worker.log.entries


async def test_a_silent_client_whose_key_is_added_back_in_time_is_served(
    clients: Clients, answers: list[bytes]
) -> None:
    settings = curve()
    assert settings.allow is not None
    async with serving(whoami, curve=settings) as server:
        client = clients.connect(server.endpoints[0], **options())
        await until(lambda: answers == [b"200"])
        settings.allow.replace({})
        settings.allow.replace({ALICE.public: "alice"})
        assert await client.request(b"") == [f"alice {ALICE.public}".encode()]


async def test_a_client_whose_key_gets_another_user_id_must_reconnect(clients: Clients) -> None:
    settings = curve()
    assert settings.allow is not None
    async with serving(whoami, curve=settings) as server:
        client = clients.connect(server.endpoints[0], **options())
        assert await client.request(b"") == [f"alice {ALICE.public}".encode()]
        settings.allow.replace({ALICE.public: "admin"})
        await until(lambda: server.statistics().connections == 1)  # it has, by itself
        assert await client.request(b"") == [f"admin {ALICE.public}".encode()]


async def test_a_key_file_that_is_removed_evicts_its_client(
    clients: Clients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allow_list, "LOOK", 0.01)
    ALICE.save(tmp_path / "alice")
    worker = Worker()
    async with serving(worker, curve=curve(tmp_path)) as server:
        client = clients.connect(server.endpoints[0], **options())
        await client.send(b"wait")
        await worker.log.wait("started wait")
        (tmp_path / "alice.key").unlink()
        await worker.log.wait("cancelled wait: disconnected")
        BOB.save(tmp_path / "bob")
        await until(lambda: list(server._rules.allow or ()) == [BOB.public])
        bob = clients.connect(server.endpoints[0], **options(BOB))
        assert await bob.request(b"echo") == [b"re:echo"]


async def test_a_descriptor_that_is_another_ones_by_now_is_left_alone() -> None:
    """A client disconnects just before its eviction, and the next one has its descriptor.

    The clients have descriptors of this process too, so sometimes the next one has another.
    """
    for _ in range(10):
        with open_clients() as clients, pytest.MonkeyPatch.context() as monkeypatch:
            if await the_next_one_has_the_descriptor(clients, monkeypatch):
                return
    pytest.fail("it never had the same descriptor")


async def the_next_one_has_the_descriptor(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> bool:
    """Evict a client that disconnects just then, and check that the next one stays."""
    settings = curve({ALICE.public: "alice", BOB.public: "bob"})
    assert settings.allow is not None
    worker = Worker()
    async with serving(worker, curve=settings) as server:
        (endpoint,) = server.endpoints
        router = server._router
        alice = clients.connect(endpoint, **options())
        await alice.send(b"wait")
        await worker.log.wait("started wait")
        (connection,) = router.connections
        hold = router._sockets.hold
        held: list[int] = []

        def hold_late(descriptor: int) -> Any:
            """Alice goes and bob comes, just before the descriptor is held."""
            monkeypatch.setattr(router._sockets, "hold", hold)
            alice.close()
            assert poll(router._monitor)
            bob = clients.connect(endpoint, **options(BOB))
            bob.raw.send(b"echo")
            assert poll(server._sockets.zap)
            held.append(descriptor)
            bobs.append(bob)
            return hold(descriptor)

        bobs: list[ClientSocket] = []
        monkeypatch.setattr(router._sockets, "hold", hold_late)
        settings.allow.replace({BOB.public: "bob"})
        assert held == [connection.descriptor]
        server._sockets.zap.nudge()  # the poll above has eaten its edge
        assert await bobs[0].receive() == [b"re:echo"]
        assert server.statistics().evicted == 0
        await worker.log.wait("cancelled wait: disconnected")
        return [bob.descriptor for bob in router.connections] == held


# An admit of one's own.


def admitting(
    answer: Callable[[trioreq.Applicant], Awaitable[Any]],
) -> tuple[list[trioreq.Applicant], Callable[[trioreq.Applicant], Awaitable[Any]]]:
    """An admit, and the applicants that it was called with."""
    asked: list[trioreq.Applicant] = []

    async def admit(applicant: trioreq.Applicant) -> Any:
        asked.append(applicant)
        return await answer(applicant)

    return asked, admit


async def yes(applicant: trioreq.Applicant) -> str:
    await trio.lowlevel.checkpoint()
    return "somebody"


@pytest.mark.parametrize("missing", range(4))
async def test_keys_that_cannot_be_replaced_for_lack_of_descriptors_stay(
    monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    """Each listener needs one to be duplicated, and one to be found in /proc."""
    free = [True] * missing + [False]

    def with_descriptor(function: Callable[[int], Any], argument: int) -> Any:
        if not free.pop(0):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return function(argument)

    async def ask_all(server: trioreq.Server) -> None:
        for endpoint in server.endpoints:
            async with trioreq.open_client(endpoint, curve=as_client()) as client:
                assert await client.request(b"echo") == b"re:echo"

    addresses = ["tcp://127.0.0.1:0"] * 2
    async with trioreq.open_server(Worker(), addresses, curve=curve()) as server:
        with monkeypatch.context() as patched:
            patched.setattr(os, "dup", functools.partial(with_descriptor, os.dup))
            found = functools.partial(with_descriptor, linux._registration)
            patched.setattr(linux, "_registration", found)
            with pytest.raises(RuntimeError, match="cannot be replaced now: Too many open files"):
                server.replace_keys(BOB)
        await ask_all(server)
        server.replace_keys(SERVER)
        await ask_all(server)


async def test_admit_decides_about_keys(addr: str, clients: Clients) -> None:
    asked, admit = admitting(yes)
    async with serving(whoami, addr, curve=trioreq.CurveServer(SERVER), admit=admit) as server:
        client = clients.connect(server.endpoints[0], **options())
        assert await client.request(b"") == [f"somebody {ALICE.public}".encode()]
    (applicant,) = asked
    assert (applicant.mechanism, applicant.public_key) == ("CURVE", ALICE.public)
    expected = "127.0.0.1" if addr.startswith("tcp") else f"localhost:{os.getuid()}:"
    assert applicant.address.startswith(expected)


async def test_admit_decides_about_passwords(clients: Clients) -> None:
    async def check(applicant: trioreq.Applicant) -> str | None:
        await trio.lowlevel.checkpoint()
        known = (applicant.username, applicant.password) == ("alice", PASSWORD)
        return applicant.username if known else None

    async with serving(whoami, plain_insecure=True, admit=check) as server:
        (endpoint,) = server.endpoints
        await clients.connect(endpoint, zmq.DEALER, **plain("wrong")).send(b"", b"not heard")
        await until(lambda: server.statistics().refused == 1)
        assert await clients.connect(endpoint, **plain()).request(b"") == [b"alice "]
        assert server.statistics().requests == 1


async def test_admit_decides_about_addresses(addr: str, clients: Clients) -> None:
    async def same_user(applicant: trioreq.Applicant) -> str | None:
        await trio.lowlevel.checkpoint()
        mine = applicant.address.startswith(f"localhost:{os.getuid()}:")
        return "me" if mine else None

    async with serving(whoami, addr, admit=same_user) as server:
        if addr.startswith("ipc"):
            client = clients.connect(server.endpoints[0])
            assert await client.request(b"") == [b"me "]
        else:
            async with trioreq.open_client(server.endpoints[0]) as ours:
                with pytest.raises(trioreq.Refused):
                    await ours.request(b"")


async def test_a_slow_admit_delays_no_other_client(addr: str, clients: Clients) -> None:
    decided = trio.Event()

    async def slow_for_bob(applicant: trioreq.Applicant) -> str:
        if applicant.public_key == BOB.public:
            await decided.wait()
        return "somebody"

    asked, admit = admitting(slow_for_bob)
    async with serving(whoami, addr, curve=trioreq.CurveServer(SERVER), admit=admit) as server:
        (endpoint,) = server.endpoints
        bob = clients.connect(endpoint, **options(BOB))
        await bob.send(b"")
        await until(lambda: len(asked) == 1)
        for _ in range(3):  # their events come between bob's question and its answer
            alice = clients.connect(endpoint, **options())
            assert (await alice.request(b""))[0].endswith(ALICE.public.encode())
            alice.close()
        await until(lambda: server.statistics().connections == 1)
        decided.set()
        assert await bob.receive() == [f"somebody {BOB.public}".encode()]


async def test_a_zap_request_during_another_reply_is_answered() -> None:
    """An answer eats the edge of a question that has come meanwhile."""
    others: list[RawPeer] = []
    servers: list[trioreq.Server] = []

    async def admit(_: trioreq.Applicant) -> str:
        await trio.lowlevel.checkpoint()
        if not others:
            others.append(RawPeer(servers[0].endpoints[0]))
            others[0].ask()
            assert poll(servers[0]._sockets.zap)  # and nothing is woken
        return "somebody"

    async with serving(whoami, admit=admit) as server:
        servers.append(server)
        with RawPeer(server.endpoints[0]) as peer:
            peer.ask()
            await trio.to_thread.run_sync(peer.enter)
            await trio.to_thread.run_sync(others[0].enter)
            others[0].close()


async def test_a_client_that_disconnects_while_admit_decides_is_dropped(clients: Clients) -> None:
    """Nor does the next one on its descriptor get its name."""
    decided = trio.Event()

    async def slow_for_bob(applicant: trioreq.Applicant) -> str:
        if applicant.public_key == BOB.public:
            await decided.wait()
            return "bob"
        return "alice"

    asked, admit = admitting(slow_for_bob)
    async with serving(whoami, curve=trioreq.CurveServer(SERVER), admit=admit) as server:
        (endpoint,) = server.endpoints
        bob = clients.connect(endpoint, **options(BOB))
        await bob.send(b"")
        await until(lambda: len(asked) == 1)
        bob.close()
        await until(lambda: server.statistics().connections == 0)
        alice = clients.connect(endpoint, **options())
        assert await alice.request(b"") == [f"alice {ALICE.public}".encode()]
        decided.set()
        await until(lambda: server._admission._deciding == 0)
        assert await alice.request(b"") == [f"alice {ALICE.public}".encode()]
        assert server.statistics().requests == 2


@pytest.mark.parametrize("answer", ["raises", "wrong type", "unprintable", "forgets to wait"])
async def test_an_admit_that_fails_refuses_one_and_goes_on(
    clients: Clients, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    failing = True

    async def fail(applicant: trioreq.Applicant) -> Any:
        await trio.lowlevel.checkpoint()
        if not failing:
            return applicant.username
        match answer:
            case "raises":
                raise LookupError(f"no such password: {applicant.password}")
            case "wrong type":
                return True
            case "unprintable":
                return "alice\0" + applicant.password

    @functools.wraps(fail)  # else it is refused at the call of `serve`
    def not_async(applicant: trioreq.Applicant) -> Any:
        return fail(applicant) if not failing else applicant.password

    admit: Any = not_async if answer == "forgets to wait" else fail
    async with serving(whoami, plain_insecure=True, admit=admit) as server:
        (endpoint,) = server.endpoints
        clients.connect(endpoint, **plain())
        await until(lambda: server.statistics().refused == 1)
        assert "admit failed" in caplog.text
        assert __file__ in caplog.text or answer != "raises"
        failing = False
        assert await clients.connect(endpoint, **plain()).request(b"") == [b"alice "]


async def test_an_admit_that_hangs_is_given_up(
    clients: Clients, answers: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "ADMISSION_TIME", 0.05)
    hanging = True

    async def hang(applicant: trioreq.Applicant) -> str:
        if hanging:
            await trio.sleep_forever()
        return "somebody"

    async with serving(whoami, admit=hang) as server:
        (endpoint,) = server.endpoints
        clients.connect(endpoint)
        await until(lambda: answers == [b"300"])
        hanging = False
        assert await clients.connect(endpoint).request(b"") == [b"somebody "]
        assert server.statistics().refused == 1


async def test_admissions_in_progress_are_bounded(
    clients: Clients, answers: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "ADMISSIONS", 2)

    async def hang(_: trioreq.Applicant) -> None:
        await trio.sleep_forever()

    asked, admit = admitting(hang)
    async with serving(whoami, admit=admit) as server:
        for _ in range(3):
            clients.connect(server.endpoints[0])
        await until(lambda: answers == [b"300"])
        assert len(asked) <= 2
        await until(lambda: len(asked) == 2)


async def test_refusals_are_logged_at_a_bounded_rate(
    clients: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(whoami, curve=curve()) as server:
        for _ in range(20):
            clients.connect(server.endpoints[0], **options(BOB))
        await until(lambda: server.statistics().refused == 20)
        lines = [record for record in caplog.records if "refused 127" in record.getMessage()]
        assert 1 <= len(lines) < 10
        assert BOB.public in lines[0].getMessage()


# Limits.


async def test_more_connections_than_there_may_be_are_ended(addr: str, clients: Clients) -> None:
    async with serving(whoami, addr, max_connections=3) as server:
        (endpoint,) = server.endpoints
        inside = [clients.connect(endpoint) for _ in range(3)]
        for client in inside:
            assert await client.request(b"") == [b" "]
        outside = clients.connect(endpoint, RECONNECT_IVL=10)
        await outside.send(b"")
        await until(lambda: server.statistics().refused >= 3)  # it tries again, by itself
        assert server.statistics().connections == 3
        assert server.statistics().requests - server.statistics().unattributed == 3
        inside.pop().close()
        assert await outside.receive() == [b" "] or addr.startswith("ipc")
        for client in inside:
            assert await client.request(b"") == [b" "]


async def test_connections_from_one_address_are_limited(clients: Clients) -> None:
    async with serving(whoami, max_connections_per_address=1) as server:
        (endpoint,) = server.endpoints
        here = clients.connect(endpoint)
        assert await here.request(b"") == [b" "]
        with RawPeer(endpoint, "127.0.0.1") as second:
            await trio.to_thread.run_sync(second.read_end)
        with RawPeer(endpoint, "127.0.0.2") as other:
            other.ask()
            await trio.to_thread.run_sync(other.enter)
            with RawPeer(endpoint, "127.0.0.2") as another:
                await trio.to_thread.run_sync(another.read_end)
        assert await here.request(b"") == [b" "]
        assert server.statistics().refused == 2
        await until(lambda: server.statistics().connections == 1)
        with RawPeer(endpoint, "127.0.0.2") as other:  # its place is free again
            other.ask()
            await trio.to_thread.run_sync(other.enter)


async def test_on_ipc_the_address_is_the_user(tmp_path: Path) -> None:
    async with serving(whoami, f"ipc://{tmp_path}/s", max_connections_per_address=1) as server:
        with RawPeer(server.endpoints[0]) as first, RawPeer(server.endpoints[0]) as second:
            await trio.to_thread.run_sync(second.read_end)
            first.ask()
            await trio.to_thread.run_sync(first.enter)
        assert server.statistics().refused == 1


async def test_connections_without_a_handshake_count_too(clients: Clients) -> None:
    async with serving(whoami, max_connections=5) as server:
        (endpoint,) = server.endpoints
        peers = [RawPeer(endpoint) for _ in range(10)]
        for peer in peers[5:]:
            await trio.to_thread.run_sync(peer.read_end)
        assert server.statistics().connections == 5
        for peer in peers:
            peer.close()
        await until(lambda: server.statistics().connections == 0)
        assert await clients.connect(endpoint).request(b"") == [b" "]


async def test_the_limits_leave_no_descriptor_behind() -> None:
    async with serving(whoami, max_connections=5) as server:
        (endpoint,) = server.endpoints
        before = descriptors_after(endpoint)
        for _ in range(10):
            peers = [RawPeer(endpoint) for _ in range(10)]
            for peer in peers[5:]:
                await trio.to_thread.run_sync(peer.read_end)
            for peer in peers:
                peer.close()
            await until(lambda: server.statistics().connections == 0)
        assert descriptors_after(endpoint) <= before


@pytest.fixture
def no_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no descriptor be duplicated, as if the process had as many open as it may."""

    def fail(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "dup", fail)


@pytest.mark.usefixtures("no_duplicates")
async def test_limits_hold_without_a_free_descriptor(addr: str) -> None:
    """One is reserved for it, and used again and again."""
    async with serving(whoami, addr, max_connections=2) as server:
        (endpoint,) = server.endpoints
        with ExitStack() as stack:
            peers = [stack.enter_context(RawPeer(endpoint)) for _ in range(5)]
            for peer in peers[2:]:
                await trio.to_thread.run_sync(peer.read_end)
            statistics = server.statistics()
            assert (statistics.connections, statistics.refused) == (2, 3)


@pytest.mark.usefixtures("no_duplicates")
async def test_one_connection_at_a_time_is_held_without_a_free_descriptor(addr: str) -> None:
    async with serving(whoami, addr) as server:
        (endpoint,) = server.endpoints
        with RawPeer(endpoint), RawPeer(endpoint):
            await until(lambda: len(server._router) == 2)
            hold = server._sockets.hold
            for connection in server._router.connections:
                held = hold(connection.descriptor)
                assert held is not None
                assert held.address == connection.address
                assert hold(connection.descriptor) is None
                held.close()


@pytest.mark.usefixtures("no_duplicates")
async def test_clients_are_evicted_without_a_free_descriptor(addr: str, clients: Clients) -> None:
    async with serving(whoami, addr) as server:
        (endpoint,) = server.endpoints
        for evicted in range(1, 3):
            with RawPeer(endpoint) as peer:
                await trio.to_thread.run_sync(peer.shake_hands)
                peer.send(message(b"", b""))
                await until(lambda: len(server.clients()) > 0)
                assert await server.evict(server.clients()[0].id)
                await trio.to_thread.run_sync(peer.read_end)
                assert server.statistics().evicted == evicted
        assert await clients.connect(endpoint).request(b"") == [b" "]


# Options, and warnings.


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"curve": SERVER}, TypeError),
        ({"admit": "alice"}, TypeError),
        ({"plain_insecure": True}, ValueError),
        ({"plain_insecure": True, "admit": yes, "curve": curve()}, ValueError),
        ({"curve": trioreq.CurveServer(SERVER)}, ValueError),
        ({"curve": curve(), "admit": yes}, ValueError),
        ({"max_connections": 0}, ValueError),
        ({"max_connections": 1.5}, TypeError),
        ({"max_connections_per_address": 0}, ValueError),
    ],
)
async def test_options_that_do_not_go_together_are_refused(
    wrong: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await trioreq.serve(whoami, "tcp://127.0.0.1:0", **wrong)


@pytest.mark.parametrize(
    ("addr", "more", "warned"),
    [
        ("tcp://127.0.0.1:0", {}, False),
        ("tcp://[::1]:0", {}, False),
        ("tcp://*:0", {}, True),
        ("tcp://*:0", {"curve": curve()}, False),
        ("tcp://*:0", {"plain_insecure": True, "admit": yes}, True),
    ],
)
async def test_an_address_that_is_open_to_all_is_warned_of(
    addr: str, more: dict[str, Any], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(whoami, addr, **more):
        pass
    assert ("use curve=trioreq.CurveServer" in caplog.text) is warned


@pytest.mark.parametrize("small", ["server", "client"])
async def test_packs_keep_within_the_limit_of_each_side(small: str) -> None:
    """A frame above the limit costs the connection."""
    limits: dict[str, dict[str, Any]] = {"server": {}, "client": {}} | {
        small: {"max_message_size": 2000}
    }
    bodies = [b"%d" % number for number in range(1000)]
    async with (
        serving(Worker(), curve=curve(), **limits["server"]) as server,
        trioreq.open_client(server.endpoints[0], curve=as_client(), **limits["client"]) as client,
    ):
        assert await client.request_many(bodies) == [b"re:" + body for body in bodies]
        assert client.statistics().connections == 1
