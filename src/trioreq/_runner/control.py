"""The messages between a supervisor and its processes, and what a process is given to begin with.

Both ends of a pair of sockets keep the borders of messages. A process that reads the end of the
stream knows that its supervisor has died. If one end is closed with unread messages, the other
reads `ConnectionResetError` once, then what was sent before, and then the end of the stream.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .._statistics import GAUGES, Statistics

VARIABLE = "_TRIOREQ_ASSIGNMENT"
LARGEST = 64 * 1024  # bytes of a message
RETIRE, DRAIN, STOP = b"retire", b"drain", b"stop"
CURRENT = GAUGES | {"workers"}  # what a process that has ended has no more

Counts = dict[str, Any]
"""The fields of `Statistics`."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a process is given by its supervisor.

    Attributes:
        place: Which of the processes it is, or replaces.
        places: How many there are.
        cell: Where it counts its connections.
        control: The descriptor of its end of the pair.
        memory: The descriptor of the memory where connections are counted.
        listeners: Descriptors of the sockets that it accepts connections of.
        steered: Those of them whose new connections it shares out to all processes.
    """

    place: int
    places: int
    cell: int
    control: int
    memory: int
    listeners: list[int]
    steered: list[int]

    def environment(self) -> dict[str, str]:
        """The environment of the process."""
        return {**os.environ, VARIABLE: json.dumps(asdict(self))}

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All descriptors that it gets."""
        return (self.control, self.memory, *self.listeners)


def read_assignment() -> Assignment | None:
    """What this process was given; None if it has no supervisor."""
    text = os.environ.pop(VARIABLE, "")
    if not text:
        return None
    assignment = Assignment(**json.loads(text))
    for descriptor in assignment.descriptors:  # what handlers start does not inherit them
        os.set_inheritable(descriptor, False)
    return assignment


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends: the supervisor's and the process's."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
    return ends


def message(statistics: Statistics) -> bytes:
    """A message from a process that serves: its statistics."""
    return json.dumps(asdict(statistics)).encode()


def read_message(data: bytes) -> Counts:
    """The statistics in a message."""
    counts: Counts = json.loads(data)
    return counts


def added(one: Mapping[str, Any], other: Mapping[str, Any]) -> Counts:
    """The sums, field by field. A field that only one of them has is that."""
    total: Counts = dict(one)
    for name, value in other.items():
        if isinstance(value, Mapping):
            total[name] = added(total.get(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value
    return total


def after_end(counts: Counts) -> Counts:
    """What is left of a process that has ended, however it has.

    The requests that it had in flight when it was last heard were not answered.
    """
    left = {name: value for name, value in counts.items() if name not in CURRENT}
    if left:
        left["shut_down"] += counts["in_flight"]
    return left


def summary(counts: Mapping[str, Any]) -> str:
    """The state in a line, of statistics that may be empty."""
    return (
        f"{counts.get('connections', 0)} connections, {counts.get('in_flight', 0)} requests in "
        f"flight, {counts.get('requests', 0)} requests"
    )
