"""The load generator in C, `load.c`: what it is asked to do, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .compiler import compiled

SOURCE = Path(__file__).with_name("load.c")


@dataclass(frozen=True)
class Shape:
    """What the clients do; `load.c` explains each field."""

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
    """What was measured. Latencies are in microseconds."""

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
