"""The log of what happens to the service itself, on standard error: of the supervisor and of each worker."""

from __future__ import annotations

import logging
import os
import stat
import sys
from typing import Final

from ambassador.observe.access_log import open_file

ACCESS_LOG: Final = "telemetry.access_log"
"""The setting that names the access log."""


def why_not_writable(target: str | None) -> str | None:
    """Why an access log cannot be opened, in words; None: it can, or there is nothing to open.

    Before workers do it, so that it is one error. A pipe is left to them: its reader takes our closing for its end.
    """
    if target is None or target == "stdout":
        return None
    try:
        if not (os.path.exists(target) and stat.S_ISFIFO(os.stat(target).st_mode)):
            os.close(open_file(target))
    except OSError as error:
        return cannot_open(target, error)
    return None


def cannot_open(target: str, error: OSError) -> str:
    """The same, of an error that was met."""
    return f"'{target}' cannot be opened: {(error.strerror or str(error)).lower()}"


def log_to_stderr() -> logging.Logger:
    """The service's logger, with one handler however often this is called."""
    log = logging.getLogger("ambassador")
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s ambassador %(levelname)s: %(message)s"))
        log.addHandler(handler)
        log.propagate = False
    log.setLevel(logging.INFO)
    return log
