"""The shape of the house: who imports whom, and what is public. Pure: reads the source."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import trioreq

SOURCE = Path(trioreq.__file__).parent

FLOORS = [
    "_errors",
    "_wire",
    "_pack",
    "_presence",
    "_unfinished",
    "_statistics",
    "_tally",
    "_turns",
    "_transport",
    "_request",
    "_watchdog",
    "_deadlines",
    "_nursery",
    "_messages",
    "_zsocket",
    "_endpoint",
    "_options",
    "_curve",
    "_admission",
    "_limits",
    "_held",
    "_meter",
    "_sockets",
    "_gate",
    "_lookout",
    "_outbox",
    "_router",
    "_dealer",
    "_connection",
    "_workers",
    "_lanes",
    "_pool",
    "_threads",
    "_network",
    "_exchange",
    "_many",
    "_client",
    "_open_client",
    "_server",
    "__init__",
]
PURE = {
    "_admission",
    "_limits",
    "_options",
    "_pack",
    "_presence",
    "_request",
    "_statistics",
    "_tally",
    "_transport",
    "_turns",
    "_unfinished",
    "_wire",
}
USES_ZMQ = {"_curve", "_admission", "_messages", "_zsocket", "_sockets", "_router", "_dealer"}


TESTING_FLOORS = ["_schedule", "_ways", "_libzmq", "_client", "_inline", "_network", "__init__"]


def imports(module: str) -> set[str]:
    """The names of all modules that a module imports, with a dot for each package above it."""
    names = set()
    for node in ast.walk(ast.parse((SOURCE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                inside = [node.module] if node.module else [alias.name for alias in node.names]
                names |= {"." * node.level + name for name in inside}
            elif node.module:
                names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_every_module_has_its_floor() -> None:
    assert {path.stem for path in SOURCE.glob("*.py")} == set(FLOORS)


@pytest.mark.parametrize("module", FLOORS)
def test_imports_go_down(module: str) -> None:
    below = {f".{name}" for name in FLOORS[: FLOORS.index(module)]}
    if module == "_messages":
        below.add("._cmessages")  # in C
    assert {name for name in imports(module) if name.startswith(".")} <= below


@pytest.mark.parametrize("module", FLOORS)
def test_only_the_socket_rooms_know_zmq_and_only_the_pure_know_no_trio(module: str) -> None:
    used = {name.partition(".")[0] for name in imports(module)}
    assert ("zmq" in used) is (module in USES_ZMQ)
    if module in PURE:
        assert "trio" not in used


def test_the_testing_kit_has_floors_too() -> None:
    files = {path.stem for path in (SOURCE / "testing").glob("*.py")}
    assert files == set(TESTING_FLOORS)
    for floor, module in enumerate(TESTING_FLOORS):
        used = imports(f"testing/{module}")
        below = {f".{name}" for name in TESTING_FLOORS[:floor]}
        inside = {name for name in used if name.startswith(".") and not name.startswith("..")}
        assert inside <= below, module
        assert ("zmq" in used) is (module == "_libzmq"), module
        assert ("greenback" in used) is (module == "_inline"), module


def test_nothing_but_tests_knows_the_testing_kit() -> None:
    for module in [*FLOORS, *(f"cli/{path.stem}" for path in (SOURCE / "cli").glob("*.py"))]:
        assert not any("testing" in name for name in imports(module)), module


def test_the_plugin_imports_nothing_of_trioreq_before_a_fixture_is_used() -> None:
    code = "import sys, pytest_trioreq; print([name for name in sys.modules if 'trioreq' in name])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "['pytest_trioreq']\n"


def test_the_command_line_knows_the_public_names_alone() -> None:
    for path in (SOURCE / "cli").glob("*.py"):
        used = imports(f"cli/{path.stem}")
        assert {name for name in used if name.startswith("trioreq")} <= {"trioreq"}
        assert "zmq" not in used
        inside = {name for name in used if name.startswith(".")}
        rooms = {"._ask", "._bench", "._client", "._keygen", "._keys", "._output"}
        assert inside <= rooms | ({".main"} & inside)


def test_public_names_are_listed_and_show_their_public_path() -> None:
    public = {
        name
        for name, value in vars(trioreq).items()
        if not name.startswith(("_", "@")) and not isinstance(value, ModuleType)
    }
    assert set(trioreq.__all__) == public
    for name in trioreq.__all__:
        assert getattr(trioreq, name).__module__ == "trioreq", name
        assert getattr(trioreq, name).__doc__, name


def test_what_is_compiled_leaves_ctrl_c_to_those_who_call_it() -> None:
    """Trio looks for what is protected in frames, and what is compiled has none."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    modules = wheel["hooks"]["custom"]["modules"]
    assert modules
    assert set(modules) < set(FLOORS)
    for module in modules:
        assert "ki_protection" not in (SOURCE / f"{module}.py").read_text(), module
