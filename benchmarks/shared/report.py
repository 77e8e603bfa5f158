"""What the commands share to show their figures: tables, a page's tables, JSON, the machine."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import zmq

import trioreq

PACKAGES = ("trioreq", "pyzmq", "trio", "aiozmq", "pynng", "grpcio")


@dataclass
class Table:
    """Figures as text: the first column names the rows, the others hold figures."""

    head: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    title: str = ""
    note: str = ""

    def text(self) -> str:
        """For a terminal: the first column to the left, the others to the right."""
        all_rows = [self.head, *self.rows]
        widths = [max(map(len, column)) for column in zip(*all_rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in all_rows
        ]
        return "\n".join(filter(None, [self.title, *lines, self.note]))

    def markdown(self) -> str:
        """For a page."""
        marks = ["---", *["---:"] * (len(self.head) - 1)]
        lines = "\n".join(f"| {' | '.join(row)} |" for row in [self.head, marks, *self.rows])
        title = f"**{self.title}**" if self.title else ""
        return "\n\n".join(filter(None, [title, lines, self.note]))


def add_output(parser: argparse.ArgumentParser) -> None:
    """The options of a command whose figures `show` shows."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="put the tables on the page")


def show(
    options: argparse.Namespace,
    name: str,
    how: str,
    tables: list[Table],
    figures: object,
    picture: Path | None = None,
) -> None:
    """Print tables, and write what `add_output` lets one ask for.

    Args:
        options: With those of `add_output`.
        name: The command, which is also the name of the marks on the page.
        how: With what the figures were made, such as the number of rounds.
        tables: What to show.
        figures: All of them, for JSON.
        picture: Also shown on the page.
    """
    described = f"{describe_machine()} {how}"
    print("\n\n".join([described, *(table.text() for table in tables)]))
    if options.json:
        text = json.dumps({"machine": machine(), "how": how, "figures": figures}, indent=1)
        options.json.write_text(text + "\n")
    if options.markdown:
        parts = [described, *(table.markdown() for table in tables)]
        if picture is not None:
            where = os.path.relpath(picture, options.markdown.parent)
            parts.append(f"![The figures of {name}]({where})")
        rewrite(options.markdown, name, "\n\n".join(parts))


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
    described["trioreq"] += ", compiled" if trioreq.__compiled__ else ", interpreted"
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
