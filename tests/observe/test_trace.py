from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.observe.trace import Tracer, valid_state

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
CALLERS = f"00-{TRACE}-{SPAN}-01".encode()


def tracer(*, sample: float = 0.0) -> Tracer:
    return Tracer(random.Random(1), sample=sample)


def test_trace_of_the_caller_goes_on_with_a_parent_of_its_own() -> None:
    trace = tracer().trace(CALLERS, b"vendor=a")
    assert trace.trace_id == TRACE.encode()
    version, trace_id, span, flags = trace.parent.decode().split("-")
    assert (version, trace_id, flags) == ("00", TRACE, "01")
    assert re.fullmatch("[0-9a-f]{16}", span)
    assert span != SPAN
    assert trace.state == b"vendor=a"


def test_each_hop_has_its_own_parent() -> None:
    one = tracer()
    assert one.trace(CALLERS).parent != one.trace(CALLERS).parent


@pytest.mark.parametrize(
    ("flags", "sent"), [("00", "00"), ("01", "01"), ("03", "03"), ("ff", "03"), ("08", "00")]
)
def test_flags_that_are_known_are_kept(flags: str, sent: str) -> None:
    assert tracer().trace(f"00-{TRACE}-{SPAN}-{flags}".encode()).parent.decode()[-2:] == sent


@pytest.mark.parametrize("suffix", ["", "-what-the-future-brings"])
def test_later_version_goes_on_as_version_00(suffix: str) -> None:
    trace = tracer().trace(f"cc-{TRACE}-{SPAN}-01{suffix}".encode())
    assert trace.trace_id == TRACE.encode()
    assert trace.parent.startswith(b"00-")


@pytest.mark.parametrize(
    "received",
    [
        None,
        b"",
        b"00",
        f"ff-{TRACE}-{SPAN}-01".encode(),
        f"00-{TRACE}-{SPAN}-01-more".encode(),
        f"cc-{TRACE}-{SPAN}-01more".encode(),
        f"00-{TRACE}-{SPAN}-1".encode(),
        f"00-{TRACE.upper()}-{SPAN}-01".encode(),
        f"00-{'0' * 32}-{SPAN}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f" 00-{TRACE}-{SPAN}-01".encode(),
        f"00-{TRACE}-{SPAN}-01\n".encode(),
        CALLERS + b", " + CALLERS,
    ],
)
def test_trace_begins_where_the_callers_is_not_valid(received: bytes | None) -> None:
    trace = tracer().trace(received, b"vendor=a")
    assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-00", trace.parent)
    assert trace.parent[3:35] == trace.trace_id
    assert trace.trace_id != TRACE.encode()
    assert trace.state is None


def test_begun_traces_are_sampled_by_share() -> None:
    assert tracer(sample=1.0).trace(None).parent.endswith(b"-01")
    one = tracer(sample=0.25)
    sampled = sum(one.trace(None).parent.endswith(b"-01") for _ in range(1000))
    assert 200 < sampled < 300


@given(st.binary(max_size=70))
def test_trace_is_valid_whatever_is_received(received: bytes) -> None:
    one = tracer()
    trace = one.trace(received)
    assert one.trace(trace.parent).trace_id == trace.trace_id


@pytest.mark.parametrize(
    ("state", "valid"),
    [
        (b"a=1", True),
        (b"a=1, b=2,\tc=3", True),
        (b"a=1,,b=2", True),
        (b"tenant@system=value", True),
        (b"0tenant@system=value", True),
        (b"a= !v", True),
        (b",".join(b"k%d=v" % number for number in range(32)), True),
        (b",".join(b"k%d=v" % number for number in range(33)), False),
        (b"", False),
        (b",", False),
        (b"a", False),
        (b"a=", False),
        (b"a=b=c", False),
        (b"A=1", False),
        (b"0=1", False),
        (b"a=1,a=2", False),
        (b"a=" + b"v" * 256, True),
        (b"a=" + b"v" * 257, False),
        (b"a=\xff", False),
        (b"a=1\r\nx: y", False),
    ],
)
def test_state_goes_on_only_if_it_is_one(state: bytes, valid: bool) -> None:
    assert valid_state(state) is valid
    assert tracer().trace(CALLERS, state).state == (state if valid else None)


@pytest.mark.parametrize("received", [b"a", b"550e8400-e29b-41d4-a716-446655440000", b"~" * 128])
def test_request_id_of_the_caller_is_kept(received: bytes) -> None:
    assert tracer().identify({b"x-request-id": received})[1] == received


@pytest.mark.parametrize("received", [None, b"", b"a b", b"a\r\nx: y", b"\x00", b"\xe9", b"~" * 129, b"a\n"])
@pytest.mark.parametrize("traceparent", [None, CALLERS])
def test_request_id_is_made_where_there_is_no_sane_one(
    received: bytes | None, traceparent: bytes | None
) -> None:
    special = {b"x-request-id": received, b"traceparent": traceparent}
    given = {name: value for name, value in special.items() if value is not None}
    one = tracer()
    made = one.identify(given)[1]
    assert re.fullmatch(rb"[0-9a-f]{32}", made)
    assert one.identify(given)[1] != made


def test_one_id_finds_request_and_trace_where_both_begin_here() -> None:
    trace, request_id = tracer().identify({})
    assert request_id == trace.trace_id


def test_requests_of_one_trace_have_ids_of_their_own() -> None:
    trace, request_id = tracer().identify({b"traceparent": CALLERS})
    assert request_id != trace.trace_id


def test_no_id_comes_twice() -> None:
    one = tracer()
    traces = [one.begin() for _ in range(1000)]
    assert len({trace.trace_id for trace in traces}) == len({trace.parent for trace in traces}) == 1000
