"""The log of what happens to the service itself, on standard error: of the supervisor and of each worker."""

from __future__ import annotations

import logging
import sys


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
