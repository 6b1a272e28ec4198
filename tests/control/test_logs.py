"""The service's log."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from ambassador.control.logs import log_to_stderr, why_not_writable


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


def test_a_log_that_cannot_be_opened_is_told_in_words(tmp_path: Path) -> None:
    assert why_not_writable(None) is why_not_writable("stdout") is None
    assert why_not_writable(str(tmp_path / "log")) is None
    assert why_not_writable(str(tmp_path)) == f"'{tmp_path}' cannot be opened: is a directory"
    missing = tmp_path / "none" / "log"
    assert why_not_writable(str(missing)) == f"'{missing}' cannot be opened: no such file or directory"


def test_a_pipe_is_left_to_those_that_write_into_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert why_not_writable(str(tmp_path / "pipe")) is None
