"""The load on a server: `load.c`, or Python clients where that cannot be.

`load.c` speaks ZMTP and SP. It is compiled when it is first needed, with `$CC` or `cc`. Where
there is no compiler, and for gRPC, processes with Python clients make the load (`clients.py`);
these cost more than most servers do, so such figures are lower bounds, and are marked.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from .compiler import NoCompiler, compiled
from .processes import module, output_of, read_line, running, write_line
from .servers import Serving

SOURCE = Path(__file__).with_name("load.c")
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}


@dataclass(frozen=True)
class Shape:
    """What the clients do; `load.c` tells what each field means."""

    mode: str = "closed"
    clients: int = 1
    speakers: int = 0  # all
    in_flight: int = 1
    bytes: int = 32
    warmup: float = 0.3  # seconds, and no longer than the measurement
    seconds: float = 1.0
    rate: float = 0.0  # requests a second
    cpu: int | None = None

    def arguments(self) -> list[str]:
        """As command-line options."""
        fields = vars(self) | {"warmup": min(self.warmup, self.seconds)}
        given = {name: value for name, value in fields.items() if value is not None}
        return [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]


@dataclass(frozen=True)
class Load:
    """What came of it. Latencies are in microseconds."""

    rps: float
    answered: int
    errors: int
    lost: int
    p50: float
    p90: float
    p99: float
    p999: float
    max: float
    cpu: float  # seconds that the generator worked, its start included

    def faults(self) -> str:
        """What went wrong, in words; empty if nothing did."""
        found = [(self.errors, "wrong replies"), (self.lost, "without a reply")]
        return ", ".join(f"{count} {what}" for count, what in found if count)


def generator() -> str:
    """The compiled `load.c`.

    Raises:
        NoCompiler: It cannot be compiled here.
    """
    return compiled(SOURCE, "-lm")


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
    command = module("benchmarks.shared.clients", kind, f"--port={port}", *share.arguments())
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


def percentile(ordered: list[float], share: float) -> float:
    """The least value that at least this share of all does not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


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
