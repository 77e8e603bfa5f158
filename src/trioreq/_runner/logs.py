"""How the log of `trioreq-server` is written: for humans, or as lines of JSON."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from .._log import access_log
from .._protocol.endings import Ending
from .._server.observer import Observer
from .._server.pending_request import PendingRequest
from .settings import RunnerOptions

TEXT = "%(asctime)s %(levelname)-7s %(message)s"
ACCESS = (
    "%(address)s %(socket_type)s client %(client)d: %(bytes)d bytes, %(outcome)s, "
    "waited %(waited_ms).1f ms, ran %(ran_ms).1f ms"
)


class JsonFormatter(logging.Formatter):
    """One object in one line. What a message was made of by name has fields of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """As in `logging`."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": os.getpid(),
        }
        if isinstance(record.args, Mapping):
            line.update(record.args)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up(runner: RunnerOptions, process: int | None = None) -> None:
    """Write the log to standard error.

    Args:
        runner: Has the format and the level.
        process: The number of this process, if there are several.
    """
    handler = logging.StreamHandler(sys.stderr)
    as_text = runner.log_format == "text"
    if runner.log_format == "auto":
        as_text = sys.stderr.isatty()
    if as_text:
        number = "" if process is None else f"[{process}] "
        handler.setFormatter(logging.Formatter(TEXT.replace("%(message)", number + "%(message)")))
    else:
        handler.setFormatter(JsonFormatter())
    logging.root.addHandler(handler)
    logging.root.setLevel(runner.log_level.upper())


class AccessLog(Observer):
    """Logs a line for each request, when it has ended."""

    def ended(self, request: PendingRequest, ending: Ending) -> None:
        """As in `Observer`."""
        client, begun = request.client, request.started_at
        waited = (request.ended_at if begun is None else begun) - request.arrived_at
        access_log.info(
            ACCESS,
            {
                "address": client.address,
                "socket_type": client.socket_type or "-",
                "client": client.id,
                "user_id": client.user_id,
                "frames": len(request.frames),
                "bytes": sum(map(len, request.frames)),
                "outcome": ending.outcome,
                "waited_ms": round(waited * 1e3, 3),
                "ran_ms": 0.0 if begun is None else round((request.ended_at - begun) * 1e3, 3),
            },
        )
