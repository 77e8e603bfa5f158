"""The load on a server: `load.c`, or Python clients where that cannot be.

`load.c` speaks ZMTP and SP. It is compiled when it is first needed, with `$CC` or `cc`. Where
there is no compiler, and for gRPC, processes with Python clients make the load (`clients.py`);
these cost more than most servers do, so such figures are lower bounds, and are marked.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from harness.compiler import NoCompiler
from harness.generator import Load, Shape, generator
from harness.latency import percentile
from harness.processes import output_of, python_module, read_line, running, write_line

from .servers import Serving

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}


def is_lean(protocol: str) -> bool:
    """Whether `load.c` makes the load."""
    if protocol not in ("zmtp", "sp"):
        return False
    try:
        generator()
    except NoCompiler:
        return False
    return True


def drive(server: Serving, shape: Shape) -> Load:
    """Load a server; returns what came of it.

    Raises:
        ChildFailed: The generator could not do it, and has said why on standard error.
        NoCompiler: Only `load.c` can do it.
    """
    protocol = server.contestant.protocol
    if is_lean(protocol):
        command = [generator(), f"--port={server.port}", f"--protocol={protocol}"]
        return Load(**json.loads(output_of(command + shape.arguments())))
    if shape.mode != "closed":
        generator()
        raise NoCompiler(f"{protocol}: only closed loops")
    return drive_python(protocol, server.port, shape)


def drive_python(kind: str, port: int, shape: Shape, processes: int = 2) -> Load:
    """Load a server with Python clients, split among processes; see `clients.py` for kinds."""
    processes = min(processes, shape.clients)
    share = replace(shape, clients=shape.clients // processes)
    command = python_module("benchmarks.shared.clients", kind, f"--port={port}", *share.arguments())
    with ExitStack() as stack:
        running_now = [stack.enter_context(running(command)) for _ in range(processes)]
        for process in running_now:
            read_line(process)  # it is ready
        for process in running_now:
            write_line(process)
        parts = [json.loads(read_line(process)) for process in running_now]
    latencies = sorted(latency for part in parts for latency in part["latencies"])
    return Load(
        rps=len(latencies) / shape.seconds,
        answered=len(latencies),
        errors=sum(part["errors"] for part in parts),
        lost=0,
        cpu=sum(part["cpu"] for part in parts),
        **{name: percentile(latencies, share) for name, share in PERCENTILES.items()},
    )


@contextmanager
def holding(port: int, clients: int, mode: str = "hold") -> Iterator[subprocess.Popen[str]]:
    """Clients that have asked once, and stay until the end of the context; yields their process.

    Args:
        port: Of their server.
        clients: How many.
        mode: ``hold``, or ``wait`` for those whose reply need not come.

    Raises:
        NoCompiler: Only `load.c` can do it.
    """
    shape = Shape(mode=mode, clients=clients)
    command = [generator(), f"--port={port}", *shape.arguments()]
    with running(command) as process:
        read_line(process)
        yield process
