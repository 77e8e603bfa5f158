"""Clients that have an error format of their own: `error_reply`.

Everything waits for events.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio
from support.ended import Ended
from support.handlers import Worker
from support.nets import Net
from support.serving import until

import trioreq
from trioreq._protocol import envelope as wire
from trioreq._protocol.envelope import Header


def as_json(code: str, text: str) -> bytes:
    assert type(code) is str
    return json.dumps({"error": code, "text": text}).encode()


def in_frames(code: str, text: str) -> list[bytes]:
    return [b"ERR", code.encode(), text.encode()]


async def handler(request: trioreq.Request) -> bytes:
    if request.body == b"refuse":
        raise trioreq.ReplyError("not-found", "there is none")
    if request.body == b"fail":
        raise LookupError("of the handler")
    if request.body == b"wait":
        await trio.sleep_forever()
    return request.body


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [r for r in caplog.records if r.getMessage().startswith("error_reply failed")]


async def error_of(net: Net, *frames: bytes) -> Any:
    client = await net.connect()
    await client.send(*frames)
    (reply,) = await client.receive()
    return json.loads(reply)


async def test_an_error_reply_may_have_one_frame(net: Net) -> None:
    server = await net.serve(
        handler, error_reply=as_json, timeout=net.brief, max_in_flight=1, max_queued_per_client=0
    )
    assert await error_of(net, b"refuse") == {"error": "not-found", "text": "there is none"}
    failed = await error_of(net, b"fail")
    assert failed["error"] == "handler-failed"
    assert failed["text"] == "the handler failed with LookupError; the server's log has more"
    dealer = await net.connect_dealer()
    await dealer.send_raw(b"no delimiter")
    delimiter, reply = await dealer.receive_raw()
    assert (delimiter, json.loads(reply)["error"]) == (b"", "malformed")
    await dealer.send_raw(b"envelope", b"", b"wait")
    await dealer.send_raw(b"another", b"", b"x")
    first = await dealer.receive_raw()
    assert (first[:2], json.loads(first[2])["error"]) == ([b"another", b""], "overloaded")
    second = await dealer.receive_raw()
    assert (second[:2], json.loads(second[2])["error"]) == ([b"envelope", b""], "timed-out")
    client = await net.connect()
    await client.send(b"wait")
    await until(lambda: server.statistics().running == 1)
    await server.drain(0)
    (reply,) = await client.receive()
    assert json.loads(reply) == {
        "error": "shutting-down",
        "text": "the server is shutting down",
    }
    counted = server.statistics()
    assert (counted.failed, counted.malformed, counted.overloaded) == (2, 1, 1)
    assert (counted.timed_out, counted.shut_down, counted.replied) == (1, 1, 0)
    assert counted.replies_sent == 6


async def test_it_may_have_several_frames(net: Net) -> None:
    await net.serve(handler, error_reply=in_frames)
    client = await net.connect()
    await client.send(b"refuse")
    assert await client.receive() == [b"ERR", b"not-found", b"there is none"]
    await client.send(b"x")
    assert await client.receive() == [b"x"]


async def test_a_client_with_the_header_is_sent_the_standard_error(net: Net) -> None:
    await net.serve(handler, error_reply=as_json)
    async with net.open_client() as client:
        with pytest.raises(trioreq.ReplyError) as refused:
            await client.request(b"refuse")
        assert (refused.value.code, refused.value.text) == ("not-found", "there is none")
    dealer = await net.connect_dealer()
    await dealer.send_raw(Header(7, 1).pack(), b"", b"malformed")
    header, delimiter, *body = await dealer.receive_raw()
    assert wire.header_untrusted((header, delimiter)) == Header(4, 1, wire.SPEAKS)
    assert body[:2] == [b"trioreq-error", b"malformed"]


def raises(error: BaseException) -> Callable[[str, str], bytes]:
    def error_reply(code: str, text: str) -> bytes:
        raise error

    return error_reply


async def later() -> bytes:
    return b""


class Unencodable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


FAILURES: dict[str, tuple[Callable[[str, str], Any], str]] = {
    "raises": (raises(LookupError("of error_reply")), "LookupError: of error_reply"),
    "raises a BaseException": (raises(GeneratorExit()), "GeneratorExit"),
    "raises what cannot be printed": (raises(Unencodable()), "Unencodable"),
    "returns a str": (lambda code, text: code, "got str: encode it first"),
    "returns a dict": (lambda code, text: {"error": code}, "json.dumps(x).encode()"),
    "returns None": (lambda code, text: None, "got NoneType"),
    "returns no frames": (lambda code, text: [], "at least one frame"),
    "returns a str in a list": (lambda code, text: [b"", code], "its result[1] must be bytes"),
    "returns a coroutine": (lambda code, text: later(), "error_reply must be plain"),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_if_it_fails_the_standard_error_is_sent_and_the_log_says_so_once(
    net: Net, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    error_reply, hint = FAILURES[name]
    await net.serve(handler, error_reply=error_reply)
    client = await net.connect()
    for _ in range(2):
        await client.send(b"refuse")
        assert await client.receive() == [b"trioreq-error", b"not-found", b"there is none"]
    await client.send(b"x")
    assert await client.receive() == [b"x"]
    assert len(logged(caplog)) == 1
    assert hint in caplog.text


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("body", [b"refuse", b""], ids=["a handler's error", "malformed"])
async def test_if_it_ends_the_program_clients_are_sent_the_standard_error(
    net: Net, kind: Any, body: bytes
) -> None:
    worker = Worker()

    async def handle(request: trioreq.Request) -> bytes:
        return await (worker if request.body == b"wait" else handler)(request)

    error = kind("the end")
    ended = Ended()
    await ended.serve(net, handle, error_reply=raises(error))
    running, other = await net.connect(), await net.connect_dealer()
    await running.send(b"wait")
    await worker.log.wait("started wait")
    await other.send_raw(*(b"", body) if body else (b"malformed",))
    with trio.fail_after(10):
        await ended.over.wait()
    assert ended.error is error
    assert await running.receive() == [
        b"trioreq-error",
        b"shutting-down",
        b"the server is shutting down",
    ]
    assert "cancelled wait: shutdown" in worker.log.entries
