"""The service's log."""

from __future__ import annotations

import logging

import pytest

from ambassador.control.logs import log_to_stderr


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """The logger as a process begins with it."""
    log = logging.getLogger("ambassador")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(log, "level", logging.NOTSET)
    return log


def test_log_is_one_line_each_on_standard_error(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log = log_to_stderr()
    assert log_to_stderr() is log is logger
    log.info("breaker %s: closed to open", "billing")
    log.debug("not told")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(" ambassador INFO: breaker billing: closed to open")
