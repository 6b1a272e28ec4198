from __future__ import annotations

import pytest

from ambassador.proxy.clients.mtls import San, Sans, kind_of


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        ("a.internal", "DNS"), ("*.internal", "DNS"), ("spiffe://trust/ns/a", "URI"), ("a@b.test", "email"),
        ("10.0.0.1", "IP Address"), ("::1", "IP Address"), ("localhost", "DNS"), ("10.internal", "DNS"),
    ],
)  # fmt: skip
def test_kind_of_tells_names_apart(pattern: str, kind: str) -> None:
    assert kind_of(pattern) == kind


@pytest.mark.parametrize(
    ("pattern", "kind", "value", "takes"),
    [
        ("a.internal", "DNS", "A.Internal", True),
        ("a.internal", "DNS", "b.internal", False),
        ("a.internal", "URI", "a.internal", False),
        ("*.internal", "DNS", "a.internal", True),
        ("*.internal", "DNS", "a.b.internal", False),
        ("*.internal", "DNS", ".internal", False),
        ("*.internal", "DNS", "internal", False),
        ("a.*.internal", "DNS", "a.b.internal", True),
        ("*", "DNS", "a", True),
        ("*", "DNS", "a.b", False),
        ("spiffe://t/ns/a", "URI", "spiffe://t/ns/a", True),
        ("spiffe://t/ns/a", "URI", "spiffe://t/ns/A", False),
        ("spiffe://t/ns/a", "URI", "spiffe://t/ns/a/b", False),
        ("spiffe://t/ns/a", "DNS", "spiffe://t/ns/a", False),
        ("spiffe://t/ns/*", "URI", "spiffe://t/ns/a", True),
        ("spiffe://t/ns/*", "URI", "spiffe://t/ns/a/sa/b", True),
        ("spiffe://t/ns/*", "URI", "spiffe://t/ns/", False),
        ("spiffe://t/ns/*", "URI", "spiffe://t/ns", False),
        ("spiffe://t/ns/*", "URI", "spiffe://t/nsx/a", False),
        ("spiffe://t/ns/*", "URI", "spiffe://t/ns/../other", False),
        ("spiffe://t/ns/*", "URI", "spiffe://t/ns/a/../../b", False),
        ("spiffe://t/ns/*", "URI", "spiffe://t/ns/%2e%2e/b", False),
        ("10.0.0.1", "IP Address", "10.0.0.1", True),
        ("10.0.0.1", "DNS", "10.0.0.1", False),
        ("2001:db8::1", "IP Address", "2001:DB8:0:0:0:0:0:1\n", True),
        ("a@b.test", "email", "a@b.test", True),
        ("a@b.test", "email", "c@b.test", False),
    ],
)  # fmt: skip
def test_san_takes_what_its_pattern_says(pattern: str, kind: str, value: str, takes: bool) -> None:
    assert San(pattern).takes(kind, value) is takes


def test_sans_find_the_first_in_the_file() -> None:
    sans = Sans([("b.internal", 0), ("*.internal", 1)])
    assert sans.find((("DNS", "a.internal"), ("DNS", "b.internal"))) == 0
    assert sans.find((("DNS", "a.internal"),)) == 1
    assert sans.find(()) is None
    assert sans.find((("DirName", "x"),)) is None
