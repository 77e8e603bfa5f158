"""What is logged in a worker process reaches the handlers of the server's loggers.

Records go through the channel of the worker's replies. So the server has handled the records of a
request before its reply is sent, and those that were logged before a kill too. The channel's socket
is the queue: while it is full a record waits for `PATIENCE`, and is dropped then. How many were
dropped is logged as soon as there is room.

From Ray's workers there is no such channel: the records of a request come with its reply.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from .._log import handle_record, log
from .channel import WorkerEnd

PATIENCE: Final = 1.0  # seconds that a record waits for the server to read those before it
MOST: Final = 1000  # records of a request that are kept until its reply


class Levels:
    """The levels of the server's loggers, which a worker has too. They can be pickled."""

    def __init__(self) -> None:
        loggers = dict(logging.root.manager.loggerDict)
        self._levels = {
            name: logger.level
            for name, logger in loggers.items()
            if isinstance(logger, logging.Logger) and logger.level != logging.NOTSET
        }
        self._levels["root"] = logging.root.level
        self._disabled = logging.root.manager.disable

    def set(self) -> None:
        """Set the levels of this process's loggers (in a worker).

        One that has its level is left alone: `setLevel` goes through all loggers.
        """
        for name, level in self._levels.items():
            logger = logging.getLogger(name)
            if logger.level != level:
                logger.setLevel(level)
        if logging.root.manager.disable != self._disabled:
            logging.disable(self._disabled)


class Forwarder(logging.Handler):
    """A handler for the root logger of a worker: it sends records to the server."""

    def __init__(self, channel: WorkerEnd) -> None:
        super().__init__()
        self._channel = channel
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, pickled, or drop it."""
        try:
            if self._channel.wait_for_room(0 if self._dropped else PATIENCE):
                self.tell_dropped()
                self._channel.send(pickle.dumps(_portable(self, record)))
            else:
                self._dropped += 1
        except Exception:  # noqa: BLE001  # as every handler does
            self.handleError(record)

    def tell_dropped(self) -> None:
        """Send how many records were dropped since this was last sent, as an int."""
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self._channel.send(pickle.dumps(dropped))


class _Collector(logging.Handler):
    """A handler for the root logger: it keeps records."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[bytes | int] = []
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record, pickled, or drop it."""
        try:
            if len(self.logged) < MOST:
                self.logged.append(_portable(self, record))
            else:
                self.dropped += 1
        except Exception:  # noqa: BLE001  # as every handler does
            self.handleError(record)


@contextmanager
def collect_log(levels: Levels) -> Iterator[list[bytes | int]]:
    """Keep what is logged in the block, at the server's levels, in the order in which it was."""
    collector = _Collector()
    logging.root.handlers[:] = [collector]
    levels.set()
    yield collector.logged
    if collector.dropped:
        collector.logged.append(collector.dropped)


def _portable(handler: logging.Handler, record: logging.LogRecord) -> bytes:
    """The fields of a record, pickled. The message and the traceback are texts in it."""
    fields: dict[str, Any] = dict(record.__dict__)
    if record.exc_info:
        handler.format(record)  # makes `exc_text`
        fields["exc_text"] = record.exc_text
    fields |= {"msg": record.getMessage(), "args": None, "exc_info": None}
    try:
        return pickle.dumps(fields)
    except Exception:  # noqa: BLE001  # what an `extra` of the user's raises
        return pickle.dumps({name: _plain(value) for name, value in fields.items()})


def _plain(value: object) -> object:
    return value if isinstance(value, (str, int, float, type(None))) else repr(value)


def log_as_server(levels: Levels, channel: WorkerEnd) -> Forwarder:
    """Let the root logger of this process send its records to the server, at the server's levels.

    It takes the place of handlers that a module has given to the root logger as it was imported.
    """
    forwarder = Forwarder(channel)
    logging.root.handlers[:] = [forwarder]
    levels.set()
    return forwarder


def log_of_worker(message: bytes | int) -> None:
    """Handle a record, or how many were dropped, as a worker has sent it (in the server)."""
    if isinstance(message, int):
        log.warning(
            "%d records that a worker process logged were dropped, since the server did not read "
            "them in time",
            message,
        )
        return
    try:
        record = logging.makeLogRecord(pickle.loads(message))  # noqa: S301  # by our own worker
    except Exception as error:  # noqa: BLE001  # what an `extra` of the user's raises
        log.warning("a record that a worker process logged cannot be read: %s", error)
    else:
        handle_record(record)
