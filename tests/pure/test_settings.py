"""The settings of `trioreq-server`: one row each, of which all ways to give them are made.

Pure: nothing is served, and the environment is the test's own.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import click
import pytest

from trioreq import ProcessWorkers
from trioreq._options import Options, option
from trioreq._runner import app, main
from trioreq._runner.control import added, after_end
from trioreq._runner.logs import ACCESS, JsonFormatter
from trioreq._runner.settings import (
    MADE,
    SETTINGS,
    Reference,
    RunnerOptions,
    WrongSetting,
    settings_of,
)
from trioreq._statistics import GAUGES, Statistics
from trioreq._transport.shared_counts import (
    INSTRUCTION,
    WHOLE,
    SharedCounts,
    open_memory,
    program,
    shares,
)
from trioreq.cli import _server

OWN = {"help", "check", "version", "config", "handler"}  # of the command line alone
VALUES: dict[str, tuple[str, Any, Any]] = {  # as a text, as TOML has it, and what it is
    "N": ("7", 7, 7),
    "SECONDS": ("2.5", 2.5, 2.5),
    "BYTES": ("1000", 1000, 1000),
    "PATH": ("some/where", "some/where", Path("some/where")),
    "MODULE:NAME": ("a.b:c", "a.b:c", Reference("a.b:c")),
    "ENDPOINT": ("tcp://*:1", ["tcp://*:1"], ("tcp://*:1",)),
    "": ("true", True, True),
}
CHOSEN = {"log_format": "json", "log_level": "error"}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run the command; returns the values that it gives to what serves."""
    found: dict[str, Any] = {}

    def run(handler: str, values: dict[str, Any], *_: object, check: bool) -> int:
        found.update(values, handler=handler, check=check)
        return 0

    monkeypatch.setattr(main, "run", run)

    def give(*arguments: str) -> dict[str, Any]:
        work: Any = _server.serve.main([*arguments], standalone_mode=False)
        assert work() == 0
        return found

    return give


def value_of(name: str) -> tuple[str, Any, Any]:
    if name in CHOSEN:
        return CHOSEN[name], CHOSEN[name], CHOSEN[name]
    return VALUES[SETTINGS[name].unit]


def test_each_option_of_serve_is_a_setting() -> None:
    """A new option needs its row, and nothing else."""
    names = {field.name for field in fields(Options)}
    parts = {part for parts in MADE.values() for part in parts}
    assert names - set(MADE) <= set(SETTINGS)
    assert parts <= {field.name for field in fields(RunnerOptions)}
    assert not names & {field.name for field in fields(RunnerOptions)}


def test_each_setting_is_an_option_of_the_command_line() -> None:
    options = {param.name: param for param in _server.serve.params}
    assert set(options) - OWN == set(SETTINGS)
    for name, setting in SETTINGS.items():
        shown = options[name]
        assert isinstance(shown, click.Option)
        assert shown.opts == ["--" + name.replace("_", "-")]
        assert shown.envvar == "TRIOREQ_" + name.upper()
        assert shown.help == setting.text
        assert setting.text.endswith(".")


def test_a_new_option_is_a_setting_by_its_row_alone() -> None:
    @dataclass(frozen=True, kw_only=True)
    class More:
        patience: float | None = option(3.0, "SECONDS", "Time to wait.")

    (setting,) = settings_of(More)
    made = _server.option_of(setting)
    assert (made.opts, made.envvar, made.help) == (
        ["--patience"],
        "TRIOREQ_PATIENCE",
        "Time to wait.",
    )
    assert made.type.convert("7", None, None) == 7.0
    assert made.type.convert("none", None, None) is None


def test_an_option_without_a_row_is_refused() -> None:
    @dataclass
    class NoRow:
        patience: float = 3.0

    @dataclass
    class NoType:
        patience: complex = option(1j, "N", "Nothing that can be written is one.")

    for options in (NoRow, NoType):
        with pytest.raises(TypeError, match="patience must be made with option"):
            settings_of(options)


def test_without_anything_the_defaults_are_those_of_serve(
    given: Callable[..., dict[str, Any]],
) -> None:
    found = given("module:handler")
    for kind in (Options, RunnerOptions):
        for field in fields(kind):
            if field.name not in MADE:
                assert field.default is not MISSING
                assert found[field.name] == field.default, field.name


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_comes_from_flag_environment_file_and_default_in_this_order(
    name: str,
    given: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    setting = SETTINGS[name]
    text, in_file, value = value_of(name)
    config = tmp_path / "config.toml"
    config.write_text(f"{name} = {json.dumps(in_file)}\nhandler = 'from:file'")
    assert given("--config", str(config))[name] == value
    assert given("--config", str(config))["handler"] == "from:file"
    other = {"N": ("9", 9), "SECONDS": ("4", 4.0), "BYTES": ("99", 99), "": ("false", False)}.get(
        setting.unit
    )
    if other is None or name in CHOSEN:
        monkeypatch.setenv(setting.variable, text)
        assert given("module:handler")[name] == value
        return
    monkeypatch.setenv(setting.variable, other[0])
    assert given("--config", str(config))[name] == other[1]
    if setting.is_flag:
        assert given("--config", str(config), setting.flag)[name] is True
        monkeypatch.setenv(setting.variable, "true")
        assert given("--config", str(config), f"--no-{setting.flag[2:]}")[name] is False
    else:
        assert given("--config", str(config), setting.flag, text)[name] == value


@pytest.mark.parametrize("name", SETTINGS)
def test_a_wrong_value_is_a_sentence(
    name: str, given: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f"{name} = [1, 2]")
    with pytest.raises(click.UsageError, match=rf"{name} must be .*, got \[1, 2\]"):
        given("--config", str(config))
    setting = SETTINGS[name]
    if setting.unit not in ("PATH", "ENDPOINT", ""):
        with pytest.raises(click.UsageError, match=r"must be .*, got 'x y'"):
            given("module:handler", setting.flag, "x y")


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("1" + "0" * 400, ("N", "BYTES")),
        ("0x" + "f" * 5000, ("N", "BYTES")),
        ("1e400", ("SECONDS",)),
        ("nan", ("SECONDS",)),
        ('"a\\u0000b"', ()),
    ],
    ids=["large", "larger", "infinite", "nan", "zero"],
)
def test_a_value_that_nothing_can_hold_is_a_sentence(
    name: str,
    text: str,
    units: tuple[str, ...],
    given: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    """What is a number is refused later, by its range."""
    config = tmp_path / "config.toml"
    config.write_text(f"{name} = {text}")
    if SETTINGS[name].unit in units:
        given("module:handler", "--config", str(config))
    else:
        with pytest.raises(click.UsageError, match=rf"{name} must be .*, got "):
            given("module:handler", "--config", str(config))


def test_a_wrong_file_is_a_sentence(given: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    for text, sentence in [
        (None, "cannot read"),
        ("a = ", "is not TOML"),
        ("max_inflight = 3", "there is no option 'max_inflight'"),
    ]:
        if text is not None:
            config.write_text(text)
        with pytest.raises(click.UsageError, match=sentence):
            given("--config", str(config))


def test_what_may_be_none_is_none_by_that_word(given: Callable[..., dict[str, Any]]) -> None:
    optional = [name for name, setting in SETTINGS.items() if setting.optional]
    assert "timeout" in optional
    assert "grace" not in optional
    for name in optional:
        assert given("module:handler", SETTINGS[name].flag, "none")[name] is None


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"processes": 0}, "processes must be from 1 to"),
        ({"grace": -1.0}, "grace must be a number of seconds from 0 to"),
        ({"start_timeout": 0.0}, "start_timeout must be a number of seconds above 0"),
        ({"hang_timeout": 0.0}, "hang_timeout must be a number of seconds above 0"),
        ({"hang_timeout": 0.99}, r"hang_timeout must be at least 1 second, .*, got 0\.99"),
    ],
)
def test_a_value_out_of_its_range_is_a_sentence(changed: dict[str, Any], sentence: str) -> None:
    main.check_runner(RunnerOptions(hang_timeout=1.0))
    with pytest.raises(WrongSetting, match=sentence):
        main.check_runner(RunnerOptions(**changed))


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5), ("processes:2", ProcessWorkers(2)), ("jobs:workers", Reference("jobs:workers"))],
)
def test_workers_are_threads_processes_or_a_name(text: str, value: object) -> None:
    assert SETTINGS["workers"].parse(text) == value


@pytest.mark.parametrize(
    ("source", "name", "sentence"),
    [
        (None, "absent:handler", "there is no module 'absent'"),
        ("", "sample:handler", "module 'sample' has no 'handler'"),
        ("import absent_too", "sample:handler", "importing sample raised ModuleNotFoundError"),
        ("1 +", "sample:handler", "importing sample raised SyntaxError"),
        ("def f():\n    1 / 0\nf()", "sample:handler", r"ZeroDivisionError.*\(sample.py, line 2\)"),
        ("handler = 3", "sample:handler", "handler must be a function of a request, got 3"),
        ("", "sample", "HANDLER must be MODULE:NAME"),
    ],
)
def test_a_handler_that_is_not_there_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str | None, name: str, sentence: str
) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "sample", raising=False)
    monkeypatch.setattr("importlib.invalidate_caches", lambda: None)
    if source is not None:
        (tmp_path / "sample.py").write_text(source)
    values = {name: setting.default for name, setting in SETTINGS.items()}
    with pytest.raises(WrongSetting) as raised:
        app.load_app(name, values, RunnerOptions(app_dir=tmp_path))
    assert re.search(sentence, str(raised.value))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("handler", "changed", "sentence"),
    [
        ("service:handler", {}, "HANDLER and forward cannot be combined"),
        ("", {"processes": 2}, "processes above 1 and forward cannot be combined"),
        ("", {"reload": True}, "reload and forward cannot be combined"),
        ("", {"forward_in_flight": 0}, "forward_in_flight must be from 1 to"),
        ("", {"forward_timeout": -1}, "forward_timeout must be a number of seconds above 0"),
        ("", {"retries": -1}, "retries must be from 0 to"),
    ],
)
def test_what_cannot_be_used_to_forward_is_a_sentence(
    handler: str, changed: dict[str, Any], sentence: str
) -> None:
    values = {name: setting.default for name, setting in SETTINGS.items()}
    runner = RunnerOptions(forward=("tcp://127.0.0.1:1",), **changed)
    with pytest.raises(WrongSetting, match=sentence):
        app.load_app(handler, values, runner)


def test_a_factory_makes_the_handler_and_references_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    (tmp_path / "made.py").write_text(
        "import trioreq\n"
        "class Door:\n"
        "    async def admit(self, applicant): ...\n"
        "door = Door()\n"
        "async def handler(request): ...\n"
        "def make(): return handler\n"
        "async def wrong(): ...\n"
        "workers = trioreq.ThreadWorkers(3)\n"
    )
    values = {name: setting.default for name, setting in SETTINGS.items()}
    values |= {"admit": Reference("made:door.admit"), "workers": Reference("made:workers")}
    runner = RunnerOptions(app_dir=tmp_path, factory=True)
    loaded = app.load_app("made:make", values, runner)
    assert loaded.handler is not None
    assert loaded.handler.__name__ == "handler"
    assert loaded.options.admit is not None
    assert loaded.options.plain_functions == 3
    for name, sentence in [("made:workers", "must be a function that returns"),
                           ("made:wrong", "must be a plain function")]:  # fmt: skip
        with pytest.raises(WrongSetting, match=sentence):
            app.load_app(name, values, runner)


def test_a_line_of_json_has_the_parts_of_the_message() -> None:
    record = logging.makeLogRecord(
        {
            "name": "trioreq.access",
            "levelname": "INFO",
            "msg": ACCESS,
            "args": {
                "address": "::1", "socket_type": "REQ", "client": 1, "bytes": 5,
                "outcome": "replied", "waited_ms": 0.1, "ran_ms": 2.0,
            },
        }
    )  # fmt: skip
    line = json.loads(JsonFormatter().format(record))
    assert line["message"] == "::1 REQ client 1: 5 bytes, replied, waited 0.1 ms, ran 2.0 ms"
    assert (line["level"], line["outcome"], line["client"]) == ("info", "replied", 1)
    assert line["time"].endswith("+00:00")


def test_statistics_are_added_up_without_the_figures_of_the_moment() -> None:
    assert {field.name for field in fields(Statistics)} > GAUGES
    one = {"requests": 5, "shut_down": 1, "in_flight": 2, "finishing": 1, "workers": {"alive": 3}}
    other = {"requests": 7, "shut_down": 0, "in_flight": 1, "finishing": 0, "workers": {"alive": 4}}
    assert added(one, other) == {
        "requests": 12, "shut_down": 1, "in_flight": 3, "finishing": 1, "workers": {"alive": 7},
    }  # fmt: skip
    assert added({}, one) == one
    assert after_end(one) == {"requests": 5, "shut_down": 3}
    assert after_end({}) == {}


# Which process gets a new connection.


def test_equal_processes_get_equal_shares() -> None:
    assert shares({0: 5, 1: 5}, 0) == {0: WHOLE // 2, 1: WHOLE // 2}


def test_a_process_with_fewer_connections_gets_all_when_few_come() -> None:
    assert shares({0: 5, 1: 3}, 1) == {0: 0, 1: WHOLE}


def test_in_a_burst_the_shares_differ_little() -> None:
    found = shares({0: 500, 1: 0}, 1000)
    assert 0.4 * WHOLE < found[0] < found[1] < 0.6 * WHOLE


def drawn(code: bytes, number: int) -> int:
    """What the kernel would return, with a random number."""
    steps = [INSTRUCTION.unpack_from(code, at) for at in range(0, len(code), INSTRUCTION.size)]
    at, register = 0, 0
    while True:
        operation, jump_true, jump_false, value = steps[at]
        at += 1
        match operation:
            case 0x20:
                register = number
            case 0x54:
                register &= value
            case 0x35:
                at += jump_true if register >= value else jump_false
            case 0x06:
                return int(value)


def test_the_program_draws_each_process_as_often_as_its_share_says() -> None:
    found = {0: WHOLE // 4, 1: 0, 2: WHOLE // 4, 3: WHOLE // 2}
    code = program(found)
    counts = dict.fromkeys(found, 0)
    for number in range(WHOLE):
        counts[drawn(code, number + 5 * WHOLE)] += 1
    assert counts == found


def test_processes_count_in_the_same_memory() -> None:
    memory = open_memory(2, 5)
    supervisor = SharedCounts(memory, 2, 0, [])
    one, other = (SharedCounts(memory, 2, cell, []) for cell in (1, 3))
    assert [one.add(1), one.add(1), other.add(1), one.add(-1)] == [1, 2, 3, 2]
    supervisor.clear(1)
    assert other.add(1) == 2
