"""Which layer imports which, and what is public. Pure: reads the source.

The folders are the layers, and each has one rule.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import trioreq

SOURCE = Path(trioreq.__file__).parent
OF_ALL = {"_checks", "_errors", "_functions", "_log", "_request"}
TOP = OF_ALL | {"_backoff", "_finishing", "_nursery", "_options", "_statistics", "_workers"}

LAYERS = {
    "_protocol": OF_ALL | {"_protocol"},
    "_transport": OF_ALL | {"_protocol", "_transport"},
    "_server": TOP | {"_protocol", "_transport", "_server"},
    "_client": TOP | {"_protocol", "_transport", "_client"},
    "_gateway": TOP | {"_protocol", "_transport", "_server", "_client", "_gateway"},
    "_runner": TOP | {"_protocol", "_transport", "_server", "_gateway", "_runner"},
    "cli": {"", "cli", "_runner"},
    "testing": TOP | {"", "_protocol", "_transport", "_server", "_client", "testing"},
    # The modules beside the folders, of which `__init__` has the public names.
    "": TOP | {"_protocol", "_transport"},
    "__init__": TOP | {"_protocol", "_transport", "_server", "_client", "_gateway"},
}
"""What the modules of a folder may import of trioreq: folders, modules beside them, and "" for
the public names."""

IMPURE = {"trio", "trio_util", "zmq", "asyncio", "os", "random", "select", "socket", "time"}


def name_of(path: Path) -> str:
    """The name of a module below `trioreq`, such as ``_server.reader``; "" for trioreq itself."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def layer_of(name: str) -> str:
    """The layer of a module: its folder, or its name if that has a rule of its own."""
    if not name:
        return "__init__"
    folder = name.partition(".")[0]
    return folder if (SOURCE / folder).is_dir() else ""


def is_typing(node: ast.AST) -> bool:
    """Whether it is ``if TYPE_CHECKING:``."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def statements(node: ast.AST, *, typing: bool) -> Iterator[ast.AST]:
    """All nodes below a node, in functions too; those only for types if they are wanted."""
    for child in ast.iter_child_nodes(node):
        if typing or not is_typing(child):
            yield child
            yield from statements(child, typing=typing)


def imports(name: str, *, typing: bool = True) -> set[str]:
    """The full names of all modules that a module imports."""
    path = MODULES[name]
    package = path.parent.relative_to(SOURCE.parent).parts
    found = set()
    for node in statements(ast.parse(path.read_text()), typing=typing):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                found.add(inner if inner.removeprefix("trioreq.") in MODULES else module)
    return found


def own(used: set[str]) -> set[str]:
    """Those of trioreq's, as `MODULES` has them."""
    return {
        name.removeprefix("trioreq").removeprefix(".")
        for name in used
        if name.partition(".")[0] == "trioreq"
    }


def roots(used: set[str]) -> set[str]:
    """The packages of modules."""
    return {name.partition(".")[0] for name in used}


def test_the_modules_are_found() -> None:
    """Else the rules below would hold of nothing."""
    assert {layer_of(name) for name in MODULES} == set(LAYERS)
    assert "trioreq._protocol.connection_table" in imports("_transport.router")
    assert "trioreq._protocol.packs" in imports("_transport.router")
    assert "trioreq._request" in imports("_protocol.connection_table")
    assert "trioreq._request" not in imports("_protocol.connection_table", typing=False)
    assert "zmq" in imports("_transport.router")


@pytest.mark.parametrize("name", MODULES, ids=lambda name: name or "trioreq")
def test_a_layer_imports_what_its_rule_says(name: str) -> None:
    allowed = LAYERS[layer_of(name)]
    used = {module.partition(".")[0] for module in own(imports(name))}
    assert used <= allowed


def test_no_module_imports_itself_by_way_of_others() -> None:
    """But for types alone."""
    graph = {name: own(imports(name, typing=False)) & set(MODULES) for name in MODULES}
    tuple(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", [name for name in MODULES if layer_of(name) == "_protocol"])
def test_the_protocol_knows_no_trio_no_zmq_and_no_clock(name: str) -> None:
    assert not roots(imports(name)) & IMPURE


@pytest.mark.parametrize("name", MODULES, ids=lambda name: name or "trioreq")
def test_zmq_is_imported_by_the_transport_alone(name: str) -> None:
    if "zmq" in roots(imports(name)):
        assert layer_of(name) == "_transport" or name == "testing._libzmq"


@pytest.mark.parametrize("name", MODULES, ids=lambda name: name or "trioreq")
def test_greenback_is_imported_by_one_module(name: str) -> None:
    assert ("greenback" in roots(imports(name))) is (name == "testing._inline")


def test_trioreq_works_without_what_only_the_command_line_and_tests_need() -> None:
    code = (
        "import sys, trioreq;"
        "print([name for name in sys.modules if name.startswith(('trioreq.cli', 'trioreq.testing'))"
        " or name.partition('.')[0] in ('click', 'greenback', 'pytest')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


@pytest.mark.parametrize("name", ["pytest_trioreq", "trioreq_cli"])
def test_modules_beside_the_package_do_not_import_it(name: str) -> None:
    """The plugin is loaded wherever pytest runs; Ctrl-C is handled while trioreq is imported."""
    code = f"import sys, {name}; print([name for name in sys.modules if 'trioreq' in name])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == f"['{name}']\n"


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
