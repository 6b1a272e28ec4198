"""What is told of a replacement: failures, and how long the old certificate is still seen."""

from pathlib import Path

import pytest

from loadtest.losses import Request
from loadtest.renewal import delays, judge, new_findings, renew
from loadtest.volume import Volume


def test_delay_is_that_of_the_last_connection_with_the_certificate_before() -> None:
    seen = [(0.5, b"a"), (1.1, b"a"), (1.4, b"b"), (1.5, b"a"), (1.8, b"b"), (2.5, b"c")]
    assert delays(seen, [b"a", b"b", b"c"], [0.0, 1.0, 2.0]) == pytest.approx([0.5, 0.0])


def test_judge_wants_no_failure_and_the_new_certificate_soon() -> None:
    found = new_findings()
    judge([Request(0.0, 0.1, 200)], [0.4, 1.9], found)
    assert all(check.held for check in found.checks)
    assert found.rows == [["1", "400 ms"], ["2", "1900 ms"]]
    judge([Request(0.0, 0.1, 200), Request(0.0, 0.1, 0)], [2.1], found)
    assert [check.held for check in found.checks[2:]] == [False, False]


def test_renewal_puts_another_certificate_and_its_key_into_the_volume(tmp_path: Path) -> None:
    volume = Volume(tmp_path / "tls")
    first = renew(volume, tmp_path)
    before = volume.key.read_bytes()
    assert renew(volume, tmp_path) != first
    assert volume.key.read_bytes() != before
    assert volume.cert.read_bytes().startswith(b"-----BEGIN CERTIFICATE")
