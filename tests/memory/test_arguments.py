"""A mistake in a call is reported at the call: each public argument, with each wrong value.

The arguments are those of the signatures of all public names, so a new one needs a row here.
Deterministic: nothing waits, and an autojump clock ends what a wrong value does not.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
import trio
from trio.testing import MockClock

import trioreq
import trioreq.testing as kit
from trioreq._finishing import FinishingBlock


class Unprintable:
    def __repr__(self) -> str:
        raise LookupError("no repr")


def none() -> None: ...


def two(first: object, second: object) -> bytes:
    raise AssertionError


async def async_one(_: object) -> bytes:
    return b""


async def async_two(first: object, second: object) -> bytes:
    raise AssertionError


def yields(_: object) -> Iterator[bytes]:
    yield b""


async def async_yields(_: object) -> AsyncIterator[bytes]:
    yield b""


def one(_: object) -> bytes:
    return b""


VALUES: dict[str, Any] = {
    "None": None,
    "bool": True,
    "zero": 0,
    "negative": -1,
    "int": 5,
    "huge": 10**5000,
    "float": 1.5,
    "nan": math.nan,
    "inf": math.inf,
    "str": "text",
    "empty str": "",
    "bytes": b"bytes",
    "empty bytes": b"",
    "bytearray": bytearray(b"bytes"),
    "list": [],
    "list of str": ["text"],
    "list of bytes": [b"bytes"],
    "tuple": ("127.0.0.1", 5555),
    "empty tuple": (),
    "tuple of bytes": (b"bytes",),
    "dict": {"key": 1},
    "empty dict": {},
    "set": {b"bytes"},
    "path": Path("no/such/path"),
    "bytes path": type("BytesPath", (), {"__fspath__": lambda _: b"path"})(),
    "object": object(),
    "class": Unprintable,
    "unprintable": Unprintable(),
    "function of none": none,
    "function": one,
    "function of two": two,
    "async function": async_one,
    "async function of two": async_two,
    "generator function": yields,
    "async generator function": async_yields,
    "iterator": iter(()),
}
FRAMES = {"bytes", "empty bytes", "bytearray"}
TEXT = {"str", "empty str"}
SECONDS = {"None", "int", "float"}
DURATION = {"zero", "int", "float"}
PATHS = TEXT | {"path"}
MAPPINGS = {"dict", "empty dict"}  # what is in them has tests of its own
FUNCTIONS = {
    "function",
    "async function",
    "class",
    "generator function",
    "async generator function",
}


@dataclass
class Places:
    """What the methods are called on."""

    net: kit.MemoryNetwork
    server: trioreq.Server
    client: trioreq.Client
    plain: kit.MemoryClient
    keys: trioreq.KeyPair
    allow: trioreq.AllowList
    nursery: trio.Nursery


Call = Callable[[Places, Any], Any]
Row = tuple[Call, set[str]]


def serve(name: str) -> Call:
    return lambda _, value: trioreq.serve(async_one, "tcp://127.0.0.1:0", **{name: value})


def open_server(name: str) -> Call:
    right: dict[str, Any] = {"handler": async_one, "addr": "tcp://127.0.0.1:0"}
    return lambda _, value: trioreq.open_server(**right | {name: value})


def open_gateway(name: str) -> Call:
    return lambda _, value: trioreq.open_gateway("tcp://127.0.0.1:1", **{name: value})


def open_client(name: str) -> Call:
    return lambda _, value: trioreq.open_client("tcp://127.0.0.1:1", **{name: value})


ROWS: dict[str, Row] = {
    "serve.handler": (lambda _, value: trioreq.serve(value, "tcp://127.0.0.1:0"), FUNCTIONS),
    "serve.addr": (
        lambda _, value: trioreq.serve(async_one, value),
        TEXT | {"list", "list of str", "empty tuple"},
    ),
    "serve.workers": (serve("workers"), {"int"}),
    "serve.max_in_flight": (serve("max_in_flight"), {"int"}),
    "serve.max_queued_per_client": (serve("max_queued_per_client"), {"zero", "int"}),
    "serve.timeout": (serve("timeout"), SECONDS),
    "serve.heartbeat": (serve("heartbeat"), SECONDS),
    "serve.max_message_size": (serve("max_message_size"), {"int"}),
    "serve.send_queue": (serve("send_queue"), {"int"}),
    "serve.stall_timeout": (serve("stall_timeout"), SECONDS),
    "serve.watchdog": (serve("watchdog"), SECONDS),
    "serve.curve": (serve("curve"), {"None"}),
    "serve.plain_insecure": (serve("plain_insecure"), {"bool"}),
    "serve.admit": (serve("admit"), {"None", "async function"}),
    "serve.max_connections": (serve("max_connections"), {"None", "int"}),
    "serve.max_connection_age": (serve("max_connection_age"), SECONDS),
    "serve.max_connections_per_address": (
        serve("max_connections_per_address"),
        {"None", "int"},
    ),
    "serve.error_reply": (serve("error_reply"), {"None", "function of two"}),
    "serve.task_status": (serve("task_status"), set()),
    "Server.replace_keys.keys": (lambda at, value: at.server.replace_keys(value), set()),
    "Server.drain.grace": (lambda at, value: at.server.drain(value), DURATION | {"inf"}),
    "Server.evict.client_id": (
        lambda at, value: at.server.evict(value),
        {"zero", "negative", "int", "huge"},
    ),
    "open_gateway.endpoints": (
        lambda _, value: trioreq.open_gateway(value),
        TEXT | {"list", "list of str", "empty tuple"},
    ),
    "open_gateway.in_flight": (open_gateway("in_flight"), {"int"}),
    "open_gateway.retries": (open_gateway("retries"), {"zero", "int"}),
    "open_gateway.connect_timeout": (open_gateway("connect_timeout"), SECONDS),
    "open_gateway.heartbeat": (open_gateway("heartbeat"), SECONDS),
    "open_gateway.max_message_size": (open_gateway("max_message_size"), {"int"}),
    "open_client.endpoint": (lambda _, value: trioreq.open_client(value), TEXT),
    "open_client.timeout": (open_client("timeout"), SECONDS),
    "open_client.retries": (open_client("retries"), {"zero", "int"}),
    "open_client.connect_timeout": (open_client("connect_timeout"), SECONDS),
    "open_client.heartbeat": (open_client("heartbeat"), SECONDS),
    "open_client.max_message_size": (open_client("max_message_size"), {"int"}),
    "open_client.curve": (open_client("curve"), {"None"}),
    "Client.request.body": (lambda at, value: at.client.request(value), FRAMES),
    "Client.request.timeout": (
        lambda at, value: at.client.request(b"", timeout=value),
        SECONDS,
    ),
    "Client.request_multipart.frames": (
        lambda at, value: at.client.request_multipart(value),
        {"list of bytes", "tuple of bytes"},
    ),
    "Client.request_multipart.timeout": (
        lambda at, value: at.client.request_multipart([b""], timeout=value),
        SECONDS,
    ),
    "Client.stream.body": (lambda at, value: at.client.stream(value), FRAMES),
    "Client.stream.timeout": (lambda at, value: at.client.stream(b"", timeout=value), SECONDS),
    "Client.stream.idle_timeout": (
        lambda at, value: at.client.stream(b"", idle_timeout=value),
        SECONDS,
    ),
    "Client.stream_multipart.frames": (
        lambda at, value: at.client.stream_multipart(value),
        {"list of bytes", "tuple of bytes"},
    ),
    "Client.stream_multipart.timeout": (
        lambda at, value: at.client.stream_multipart([b""], timeout=value),
        SECONDS,
    ),
    "Client.stream_multipart.idle_timeout": (
        lambda at, value: at.client.stream_multipart([b""], idle_timeout=value),
        SECONDS,
    ),
    "Client.request_many.bodies": (
        lambda at, value: at.client.request_many(value),
        {"list", "list of bytes", "tuple of bytes", "empty tuple", "empty dict", "set", "iterator"},
    ),
    "Client.request_many.in_flight": (
        lambda at, value: at.client.request_many([], in_flight=value),
        {"int"},
    ),
    "Client.request_many.timeout": (
        lambda at, value: at.client.request_many([], timeout=value),
        SECONDS,
    ),
    "ReplyError.code": (lambda _, value: trioreq.ReplyError(value), {"str"}),
    "ReplyError.text": (lambda _, value: trioreq.ReplyError("code", value), TEXT),
    "ThreadWorkers.n": (lambda _, value: trioreq.ThreadWorkers(value), {"int"}),
    "ProcessWorkers.n": (lambda _, value: trioreq.ProcessWorkers(value), {"int"}),
    "ProcessWorkers.spares": (
        lambda _, value: trioreq.ProcessWorkers(1, spares=value),
        {"zero", "int"},
    ),
    "ProcessWorkers.grace": (lambda _, value: trioreq.ProcessWorkers(1, grace=value), DURATION),
    "ProcessWorkers.retire_after": (
        lambda _, value: trioreq.ProcessWorkers(1, retire_after=value),
        {"None", "int"},
    ),
    "ProcessWorkers.retire_above": (
        lambda _, value: trioreq.ProcessWorkers(1, retire_above=value),
        {"None", "int", "huge"},
    ),
    "RayWorkers.n": (lambda _, value: trioreq.RayWorkers(value), {"int"}),
    "RayWorkers.address": (
        lambda _, value: trioreq.RayWorkers(1, address=value),
        {"None"} | TEXT,
    ),
    "RayWorkers.force": (lambda _, value: trioreq.RayWorkers(1, force=value), {"bool"}),
    "RayWorkers.resources": (
        lambda _, value: trioreq.RayWorkers(1, resources=value),
        {"None", *MAPPINGS},
    ),
    "ProcessWorkers.initializer": (
        lambda _, value: trioreq.ProcessWorkers(1, initializer=value),
        {"None", "function of none", "class"},
    ),
    "Request.client": (lambda _, value: trioreq.Request(value, (b"",)), set()),
    "Request.frames": (
        lambda _, value: trioreq.Request(trioreq.Peer(1, "", "REQ"), value),
        {"tuple of bytes"},
    ),
    "Request.deadline": (
        lambda _, value: trioreq.Request(trioreq.Peer(1, "", "REQ"), (b"",), value),
        DURATION | {"negative", "huge", "nan", "inf"},
    ),
    "Request.replace.frames": (
        lambda _, value: kit.make_request().replace(frames=value),
        {"tuple of bytes"},
    ),
    "Peer.start_soon.async_fn": (
        lambda at, value: kit.make_request(nursery=at.nursery).client.start_soon(value, 1),
        {"async function"},
    ),
    "finishing.limit": (lambda _, value: trioreq.finishing(limit=value), DURATION),
    "AllowList.source": (lambda _, value: trioreq.AllowList(value), PATHS | MAPPINGS),
    "AllowList.replace.users": (lambda at, value: at.allow.replace(value), MAPPINGS),
    "AllowList.watch.changed": (
        lambda at, value: at.allow.watch(value),
        {"function of none", "class"},
    ),
    "CurveServer.keys": (lambda _, value: trioreq.CurveServer(value), set()),
    "CurveServer.allow": (
        lambda at, value: trioreq.CurveServer(at.keys, value),
        PATHS | MAPPINGS | {"None"},
    ),
    "CurveClient.server_key": (lambda _, value: trioreq.CurveClient(value), set()),
    "CurveClient.keys": (
        lambda at, value: trioreq.CurveClient(at.keys.public, value),
        {"None"},
    ),
    "KeyPair.public": (lambda at, value: trioreq.KeyPair(value, at.keys.secret), set()),
    "KeyPair.secret": (lambda at, value: trioreq.KeyPair(at.keys.public, value), set()),
    "KeyPair.load.path": (lambda _, value: trioreq.KeyPair.load(value), PATHS),
    "KeyPair.load.allow_group": (
        lambda _, value: trioreq.KeyPair.load("", allow_group=value),
        {"bool"},
    ),
    "KeyPair.save.name": (lambda at, value: at.keys.save(value), PATHS),
    "load_public_key.path": (lambda _, value: trioreq.load_public_key(value), PATHS),
    "testing.open_memory_network.seed": (
        lambda _, value: kit.open_memory_network(seed=value),
        {"zero", "negative", "int", "huge"},
    ),
    "testing.open_memory_server.handler": (
        lambda _, value: kit.open_memory_server(value),
        FUNCTIONS,
    ),
    "testing.open_memory_server.seed": (
        lambda _, value: kit.open_memory_server(async_one, seed=value),
        {"zero", "negative", "int", "huge"},
    ),
    "testing.open_memory_server.raise_handler_errors": (
        lambda _, value: kit.open_memory_server(async_one, raise_handler_errors=value),
        {"bool"},
    ),
    "testing.open_memory_network.raise_handler_errors": (
        lambda _, value: kit.open_memory_network(raise_handler_errors=value),
        {"bool"},
    ),
    "testing.make_request.body": (
        lambda _, value: kit.make_request(value),
        FRAMES | {"list of bytes", "tuple of bytes"},
    ),
    "testing.make_request.client": (lambda _, value: kit.make_request(client=value), {"None"}),
    "testing.make_request.nursery": (lambda _, value: kit.make_request(nursery=value), {"None"}),
    "testing.make_request.deadline": (
        lambda _, value: kit.make_request(deadline=value),
        DURATION | {"negative", "huge", "nan", "inf"},
    ),
    "testing.sleep.seconds": (lambda _, value: kit.sleep(value), DURATION),
    "testing.MemoryNetwork.connect.routing_id": (
        lambda at, value: at.net.connect(routing_id=value),
        {"None", "bytes"},
    ),
    "testing.MemoryNetwork.connect.socket_type": (
        lambda at, value: at.net.connect(socket_type=value),
        set(),
    ),
    "testing.MemoryNetwork.connect.user_id": (
        lambda at, value: at.net.connect(user_id=value),
        TEXT | {"None"},
    ),
    "testing.MemoryNetwork.connect.reuse": (
        lambda at, value: at.net.connect(reuse=value),
        {"None"},
    ),
    "testing.MemoryNetwork.cut.client": (lambda at, value: at.net.cut(value), set()),
    "testing.MemoryNetwork.mend.client": (lambda at, value: at.net.mend(value), set()),
    "testing.MemoryNetwork.delay.client": (lambda at, value: at.net.delay(value, 1), set()),
    "testing.MemoryNetwork.delay.seconds": (
        lambda at, value: at.net.delay(at.plain, value),
        DURATION,
    ),
    "testing.MemoryNetwork.sent_to.client": (lambda at, value: at.net.sent_to(value), set()),
    "testing.MemoryNetwork.held_for.client": (lambda at, value: at.net.held_for(value), set()),
    "testing.MemoryClient.send.frames": (lambda at, value: at.plain.send(value), FRAMES),
    "testing.MemoryClient.send_raw.frames": (lambda at, value: at.plain.send_raw(value), FRAMES),
    "testing.MemoryClient.request.frames": (lambda at, value: at.plain.request(value), FRAMES),
}
"""For each argument a call with a value for it, and the values that are not of a wrong type."""

for _name, _row in tuple(ROWS.items()):
    _of_serve = _name.removeprefix("serve.")
    if _of_serve not in (_name, "task_status"):
        ROWS[f"open_server.{_of_serve}"] = (open_server(_of_serve), _row[1])

INTERNAL = {
    "Server": "`serve` makes it",
    "Client": "`open_client` makes it",
    "Peer.start_soon.args": "what `async_fn` takes",
    "RequestCancelled": "`check_cancelled` raises it",
    "UnexpectedReply": "a client raises it",
    "testing.MemoryClient": "`MemoryNetwork.connect` makes it",
    "testing.MemoryClient.heard": "the network calls it",
    "testing.MemoryClient.down": "the network calls it",
    "testing.MemoryNetwork": "`open_memory_network` makes it",
    "testing.MemoryNetwork.bind": "`serve` calls it",
    "testing.MemoryNetwork.line": "`open_client` calls it",
    "testing.MemoryNetwork.open_workers": "`serve` calls it",
    "testing.MemoryNetwork.open_connection": "the network calls it",
    "testing.open_memory_server.options": "those of `serve`",
}
"""Calls, or arguments of calls, that are not the user's."""


def is_record(value: type) -> bool:
    """Whether it only has fields, and gives them back as they are."""
    return is_dataclass(value) and "__post_init__" not in vars(value) and not hasattr(value, "keys")


def calls() -> Iterator[tuple[str, Any]]:
    """All public calls, by their names."""
    for prefix, module in ("", trioreq), ("testing.", kit):
        for name in module.__all__:
            value = getattr(module, name)
            if not isinstance(value, type):
                yield prefix + name, value
                continue
            # Exceptions that are raised with a text, enums, and records.
            own = "__init__" in vars(value) and not issubclass(value, Enum)
            if own and not is_record(value):
                yield prefix + name, value
            for method, function in vars(value).items():
                function = getattr(function, "__func__", function)
                if not method.startswith("_") and inspect.isfunction(function):
                    yield f"{prefix}{name}.{method}", function


def arguments() -> set[str]:
    """All arguments of all public calls."""
    found = set()
    for name, call in calls():
        for parameter in inspect.signature(call).parameters:
            full = f"{name}.{parameter}"
            if parameter not in ("self", "cls") and not {name, full} & set(INTERNAL):
                found.add(full)
    return found


def test_each_public_argument_has_a_row() -> None:
    assert arguments() == set(ROWS)


def test_each_internal_call_is_there() -> None:
    names = {name for name, _ in calls()}
    for name in INTERNAL:
        assert name in names or name.rpartition(".")[0] in names


@pytest.fixture
async def at(autojump_clock: MockClock) -> Any:
    async with (
        kit.open_memory_server(async_one) as net,
        trioreq.open_client(net) as client,
        trio.open_nursery() as nursery,
    ):
        keys = trioreq.KeyPair.generate()
        allow = trioreq.AllowList({keys.public: "alice"})
        yield Places(net, net.server, client, net.connect(), keys, allow, nursery)


async def make(call: Call, at: Places, value: object) -> None:
    """Call, and do what a caller does with the result."""
    with trio.fail_after(100):
        result = call(at, value)
        if isinstance(result, FinishingBlock):
            pass  # it cannot be entered outside a handler
        elif isinstance(result, AbstractAsyncContextManager):
            async with result:
                pass
        elif inspect.isawaitable(result):
            await result


@pytest.mark.parametrize("name", ROWS)
async def test_a_wrong_value_is_reported_at_the_call(at: Places, name: str) -> None:
    call, right = ROWS[name]
    argument = name.rpartition(".")[2]
    assert right <= set(VALUES)
    for label in VALUES.keys() - right:
        with pytest.raises((TypeError, ValueError)) as refused:
            await make(call, at, VALUES[label])
        text = str(refused.value)
        assert argument in text, (label, text)
        assert "must" in text, (label, text)
        assert ", got " in text, (label, text)
        assert len(text) < 400, (label, text)
        assert type(refused.value) in (TypeError, ValueError), (label, text)


HINTS: list[tuple[str, Any, str]] = [
    ("serve.addr", b"tcp://127.0.0.1:5555", r"got b'tcp://.*addr\.decode\(\)"),
    ("serve.addr", ("127.0.0.1", 5555), r"write it as 'tcp://127\.0\.0\.1:5555'"),
    ("serve.addr", 5555, "must be a str, such as 'tcp://127.0.0.1:5555', .* got 5555"),
    ("serve.addr", Path("/run/socket"), "ipc://"),
    ("serve.handler", none, r"a function of a request, .*it takes \(\)"),
    ("serve.handler", two, r"it takes \(first.*, second.*\)"),
    ("serve.admit", one, "an async function, .*async def"),
    ("serve.error_reply", async_two, "a plain function"),
    ("serve.error_reply", one, "a function of a code and a text, .*it takes"),
    ("Peer.start_soon.async_fn", async_yields, "an async function, .*it yields: pass one that"),
    ("Server.drain.grace", 3e9, "seconds from 0 to 2147483647, or inf, got 3000000000.0"),
    ("finishing.limit", math.inf, "seconds from 0 to 2147483647, got inf"),
    ("serve.task_status", 5, r"nursery\.start"),
    ("open_client.endpoint", ["tcp://127.0.0.1:1"], "one server"),
    ("Client.request.body", "text", r"got 'text': .*text\.encode\(\)"),
    ("Client.request.body", {"a": 1}, r"json\.dumps\(x\)\.encode\(\)"),
    ("Client.request_multipart.frames", b"bytes", "for one frame use request"),
    ("Client.request_multipart.frames", [b"", "text"], r"frames\[1\] must be bytes, got 'text'"),
    ("Client.request_many.bodies", "text", "for one use request"),
    ("Client.stream_multipart.frames", b"bytes", "for one frame use"),
    ("ReplyError.code", 404, "such as 'not-found', got 404"),
    ("ReplyError.text", LookupError("x"), r"use str\(\) for an exception"),
    ("CurveServer.allow", ["key"], r"got \['key'\]: write \{key: 'user id'\}"),
    ("CurveClient.server_key", b"bytes", r"key\.decode\(\)"),
    (
        "AllowList.source",
        {"bad": "alice"},
        "each key of the allow-list must be a key of 40 characters",
    ),
]


@pytest.mark.parametrize(("name", "value", "hint"), HINTS)
async def test_the_error_says_what_to_pass(at: Places, name: str, value: Any, hint: str) -> None:
    with pytest.raises((TypeError, ValueError), match=hint):
        await make(ROWS[name][0], at, value)


@pytest.mark.parametrize("name", ["KeyPair.secret", "CurveClient.keys", "serve.curve"])
async def test_possible_secrets_are_not_shown(at: Places, name: str) -> None:
    with pytest.raises((TypeError, ValueError)) as refused:
        await make(ROWS[name][0], at, "my secret")
    assert "my secret" not in str(refused.value)


async def test_user_ids_are_checked(at: Places) -> None:
    calls: list[Any] = [trioreq.AllowList, at.allow.replace]
    for user_id in (5, None, b"alice"):
        for call in calls:
            with pytest.raises(TypeError, match="a user id must be a str, got"):
                call({at.keys.public: user_id})
    assert dict(at.allow) == {at.keys.public: "alice"}


async def test_functions_of_other_kinds_are_right(autojump_clock: MockClock) -> None:
    """What is made of an async function is one, and so is `AsyncMock`."""

    class Admit:
        async def __call__(self, applicant: trioreq.Applicant) -> str:
            return "alice"

        async def method(self, applicant: trioreq.Applicant, *, more: int = 0) -> str:
            return "alice"

    admits: list[Any] = [Admit(), Admit().method, AsyncMock(return_value="alice")]
    for admit in admits:
        async with AsyncExitStack() as stack:
            net = await stack.enter_async_context(
                kit.open_memory_server(AsyncMock(return_value=b"reply"), admit=admit)
            )
            assert await net.connect().request(b"") == [b"reply"]


@pytest.mark.parametrize(
    "call",
    [
        lambda: trioreq.serve(async_one, "tcp://127.0.0.1:0"),
        lambda: enter(trioreq.open_client("tcp://127.0.0.1:1")),
        lambda: enter(kit.open_memory_network()),
        lambda: enter(kit.open_memory_server(async_one)),
    ],
)
def test_another_event_loop_than_trios_is_refused(call: Any) -> None:
    with pytest.raises(RuntimeError, match=r"use trio\.run\("):
        asyncio.run(call())


async def enter(manager: AbstractAsyncContextManager[Any]) -> None:
    async with manager:
        pass
