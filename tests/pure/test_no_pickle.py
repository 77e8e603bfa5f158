"""Nothing in trioreq makes objects, or code, of bytes from the network: docs/no-pickle.md."""

from __future__ import annotations

import ast
from pathlib import Path

import trioreq

SOURCE = Path(trioreq.__file__).parent
FORBIDDEN = {"cloudpickle", "dill", "jsonpickle", "marshal", "pickle", "shelve", "yaml"}
# A server and its own workers talk through sockets of this machine, or through Ray.
OWN_PROCESSES = {
    "_workers.py",
    "processes.py",
    "ray_tasks.py",
    "worker.py",
    "worker_log.py",
    "worker_process.py",
}
CALLS = {"recv_pyobj", "send_pyobj", "eval", "exec"}


def test_no_module_unpickles() -> None:
    paths = sorted(SOURCE.rglob("*.py"))
    assert len(paths) > 50
    found = []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names):
                    names_here = {alias.name.partition(".")[0] for alias in names} & FORBIDDEN
                case ast.ImportFrom(module=str(module), level=0):
                    names_here = {module.partition(".")[0]} & FORBIDDEN
                case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)):
                    names_here = {name} & CALLS
                case _:
                    continue
            found += [f"{path.name}: {name}" for name in names_here]
    assert [one for one in found if one.partition(":")[0] not in OWN_PROCESSES] == []
