"""The logger of trioreq, which never raises.

A logging handler, filter or formatter is the program's own code. `logging` does not catch the
exceptions of a filter, nor those of a handler whose `emit` does not. Then a log line would end the
server, and all its requests. So such an exception is reported as `logging` reports the errors of
its own handlers: on stderr, unless `logging.raiseExceptions` is off.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

_reporter = logging.Handler()


def _report(fields: dict[str, Any]) -> None:
    """Report what was raised as a record with these fields was handled."""
    with suppress(Exception):  # stderr may be closed
        _reporter.handleError(logging.makeLogRecord(fields))


class _Logger(logging.LoggerAdapter[logging.Logger]):
    def log(self, level: int, msg: object, *args: object, **options: Any) -> None:  # noqa: ANN401
        """Log a line. All other methods call this one."""
        options["stacklevel"] = options.get("stacklevel", 1) + 1  # report the caller's line
        try:
            super().log(level, msg, *args, **options)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001  # a kept `trio.Cancelled` would end a task too
            _report({"msg": msg, "args": args})


log = _Logger(logging.getLogger("trioreq"))
access_log = _Logger(logging.getLogger("trioreq.access"))


def handle_record(record: logging.LogRecord) -> None:
    """Have a record of another process handled by the logger of its name in this one."""
    try:
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001  # as above
        _report(vars(record))
