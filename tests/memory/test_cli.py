"""`trioreq-client` on a line without a kernel, and what it prints."""

from __future__ import annotations

import re
import signal
from array import array
from collections import Counter
from pathlib import Path
from typing import NoReturn

import click
import pytest
import trio
from support.line import FakeLine, asking
from trio.testing import MockClock

from trioreq.cli import _program
from trioreq.cli._ask import Ask
from trioreq.cli._bench import LINE, Load, Result, show_progress, table
from trioreq.cli._output import pretty_json
from trioreq.cli._streams import CHUNK, CannotRead, read_all


@pytest.mark.parametrize("asked_at", [3, 10])
async def test_a_first_request_took_no_longer_than_its_connection_is_old(
    autojump_clock: MockClock, asked_at: float
) -> None:
    line = FakeLine()
    ask = Ask("memory", (), None, False, False, False, 5, 5, 0, None, 0, False, None)
    async with asking(line) as nursery:

        async def serve() -> None:
            await trio.sleep(4)
            line.connect()
            await trio.sleep(max(asked_at - 4, 0) + 2)
            line.answer(0, b"y")

        nursery.start_soon(serve)
        await trio.sleep(asked_at)
        assert await ask.ask(line.client, [b"x"]) == [b"y"]
    assert ask.took == [2]


@pytest.mark.parametrize(("retries", "repeat"), [(0, 2), (2, None)])
def test_a_stream_is_requested_once(retries: int, repeat: int | None) -> None:
    ask = Ask("memory", (), None, False, False, False, 5, 5, retries, repeat, 0, False, None, True)
    with pytest.raises(click.UsageError, match="--stream"):
        ask.check()


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        (b'{"a": [1, "\xc3\xa4"]}', '{\n  "a": [\n    1,\n    "ä"\n  ]\n}\n'),
        (b'"\\ud800 \xc2\x9b \\u0007"', '"\\ud800 \\u009b \\u0007"\n'),
        (b"[" * 100_000, None),
        (b"[1", None),
    ],
    ids=["indented", "cannot be encoded or shown", "nested too deeply", "broken"],
)
def test_json_is_shown_or_is_not_json(reply: bytes, shown: str | None) -> None:
    assert pretty_json([reply], colour=False) == (shown.encode() if shown else None)


def test_the_colours_of_json_are_those_of_its_tokens() -> None:
    reply = b'{"a\\": 1": ["x: true", -1.5e3, true, null, {}]}'
    coloured = pretty_json([reply], colour=True)
    plain = pretty_json([reply], colour=False)
    assert coloured is not None
    assert plain is not None
    assert re.sub(rb"\x1b\[[\d;]*m", b"", coloured) == plain
    assert re.findall(rb"\x1b\[(\d+)m(?:\x1b\[1m)?(.*?)\x1b\[0m", coloured) == [
        (b"34", b'"a\\": 1"'),
        (b"32", b'"x: true"'),
        (b"36", b"-1500.0"),
        (b"35", b"true"),
        (b"35", b"null"),
    ]


def test_a_table_of_figures_has_its_columns_in_line() -> None:
    load = Load("memory", 2, 3, 10, None, b"x" * 64, 5, 5, None)
    result = Result(2.0, array("d", [0.001, 0.002]), Counter(busy=1234))
    head, *rows = table(load, result.figures()).splitlines()
    assert head == "memory: 2 clients, 3 in flight on each, 64 bytes"
    assert rows[0] == " requests             1,236"
    assert rows[-1] == " error busy           1,234"
    assert {len(row) for row in rows} == {len(rows[0])}


@pytest.mark.parametrize(
    ("load", "replies", "seconds", "bar", "left"),
    [
        (Load("memory", 1, 1, 100, None, b"x", 5, 5, None), 25, 1, 8, "3 s left"),
        (Load("memory", 1, 1, None, 10, b"x", 5, 5, None), 25, 5, 15, "5 s left"),
        (Load("memory", 1, 1, None, None, b"x", 5, 5, None), 1, 1, 6, "4 s left"),
        (Load("memory", 1, 1, 100, 10, b"x", 5, 5, None), 50, 1, 15, "1 s left"),
        (Load("memory", 1, 1, 100, 10, b"x", 5, 5, None), 0, 0, 0, ""),
        (Load("memory", 1, 1, 100, 10, b"x", 5, 5, None), 101, 1, 30, "0 s left"),
    ],
)
def test_progress_is_that_of_the_limit_that_is_nearer(
    load: Load, replies: int, seconds: float, bar: int, left: str,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("NO_COLOR", "1")
    show_progress(load, replies, seconds)
    line = capfd.readouterr().err
    assert line == f"\r{replies:>13} replies {'#' * bar:-<30} {left:<14}"
    assert len(line) == LINE + 1


@pytest.mark.parametrize(("size", "fits"), [(2 * CHUNK, True), (2 * CHUNK + 1, False)])
def test_a_request_is_read_up_to_a_limit(size: int, fits: bool, tmp_path: Path) -> None:
    (tmp_path / "request").write_bytes(b"x" * size)
    with (tmp_path / "request").open("rb") as file:
        if fits:
            assert read_all(file.fileno(), limit=2 * CHUNK) == b"x" * size
        else:
            with pytest.raises(CannotRead, match="got more"):
                read_all(file.fileno(), limit=2 * CHUNK)


def test_a_second_ctrl_c_during_the_report_of_the_first_ends_it_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(_program, "open_streams", lambda: None)
    monkeypatch.setattr(_program, "code_of", interrupted)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as ended:
            _program.run_program("trioreq-client", click.Command("x", callback=interrupted))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130
