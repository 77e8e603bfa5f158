"""What the commands share to show their figures: tables, a page's tables, JSON, the machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

PACKAGES = ("trioreq", "pyzmq", "trio", "aiozmq", "pynng", "grpcio")
Rows = Sequence[Sequence[str]]


def spread(values: Iterable[float], digits: int = 2) -> str:
    """The median, with the least and the greatest."""
    values = list(values)
    median, least, greatest = statistics.median(values), min(values), max(values)
    return f"{median:.{digits}f} ({least:.{digits}f}..{greatest:.{digits}f})"


def machine() -> dict[str, str]:
    """Where and with what the figures were made."""
    described = {
        "processor": f"{_cpu_model()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} usable",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    }
    for name in PACKAGES:
        try:
            described[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            described[name] = "not installed"
    try:
        import zmq
    except ImportError:
        return described
    return described | {"libzmq": zmq.zmq_version()}


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def describe_machine() -> str:
    """One paragraph."""
    return "; ".join(f"{name} {value}" for name, value in machine().items()) + "."


def text_table(head: Sequence[str], rows: Rows) -> str:
    """For a terminal: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in [head, *rows]
    ]
    return "\n".join(lines)


def markdown_table(head: Sequence[str], rows: Rows) -> str:
    """For a page."""
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, marks, *rows])


def rewrite(page: Path, name: str, text: str) -> None:
    """Put text between a page's marks ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``.

    Raises:
        ValueError: The page has no such marks.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found_begin, rest = page.read_text().partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"{page} has no marks {begin} and {end}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def write_json(file: Path, figures: object) -> None:
    """Write the figures with the machine that they are from."""
    file.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=1) + "\n")
