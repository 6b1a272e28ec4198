"""What answers say of themselves: conditions as they are written, and bodies from anybody."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.messages import ResponseHead
from ambassador.proxy.content import LOOKED_AT, Contents, Wrong, condition, contents, steps, value_at, written

PLAIN = ResponseHead(200, [(b"Content-Type", b"application/json")])


def meets(kind: str, text: str, body: bytes, head: ResponseHead = PLAIN, *, complete: bool = True) -> bool:
    made = Contents([condition(kind, text)])
    return bool(made.by_head(head) | made.by_body(head, body, complete=complete))


# ----- as they are written --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "made"),
    [
        ("header", "X-Status = error", "header:x-status=error"),
        ("header", "grpc-status=14", "header:grpc-status=14"),
        ("header", "x-empty=", "header:x-empty="),
        ("json", "status=error", "json:status=error"),
        ("json", "error.code = a=b", "json:error.code=a=b"),
        ("json", "items[0].state=failed", "json:items[0].state=failed"),
        ("json", "[1]=x", "json:[1]=x"),
        ("body", "<(soap:)?Fault>", "body:<(soap:)?Fault>"),
    ],
)
def test_condition_is_one_text(kind: str, text: str, made: str) -> None:
    assert condition(kind, text) == made
    assert contents([made, "5xx", "reset"]) == {made}
    assert condition(kind, written(made)[kind]) == made  # type: ignore[index]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("header", "x-status"), ("header", "=x"), ("header", "a b=c"), ("json", "status"), ("json", "a..b=c"), ("json", ".a=b"),
        ("json", "a.=b"), ("json", "a[x]=b"), ("json", "a[0]b=c"), ("json", "a.[0]=b"), ("json", "a[-1]=b"), ("body", "("),
        ("body", r"(a)\1"),
    ],
)  # fmt: skip
def test_malformed_condition_is_refused(kind: str, text: str) -> None:
    with pytest.raises(Wrong):
        condition(kind, text)


def test_other_conditions_are_written_as_they_are() -> None:
    assert written("5xx") == "5xx"
    assert contents(["5xx", "timeout", "content"]) == frozenset()


def test_steps_are_names_and_indices() -> None:
    assert steps("items[0][12].state") == ("items", 0, 12, "state")


# ----- heads ----------------------------------------------------------------------------------------------------------


def test_header_must_have_the_value() -> None:
    head = ResponseHead(200, [(b"X-Status", b"fine"), (b"x-status", b"error")])
    assert meets("header", "x-status=error", b"", head)
    assert not meets("header", "x-status=err", b"", head)
    assert not meets("header", "x-status=error", b"x-status: error")


# ----- bodies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("status=error", b'{"status":"error"}'),
        ("status=error", b' \n{ "a" : [1, {"status": 2}], "status" :\t"error" , "b": 1}'),
        ("error.code=E7", b'{"error": {"text": "\\u00e9", "code": "E7"}}'),
        ("items[1].state=failed", b'{"items": [{"state": "ok"}, {"state": "failed"}]}'),
        ("[0]=1", b"[1]"),
        ("[0][1]=x", b'[["w", "x"]]'),
        ("code=500", b'{"code": 500}'),
        ("code=500", b'{"code": "500"}'),
        ("code=-1.50e2", b'{"code": -1.50e2 }'),
        ("ok=false", b'{"ok": false}'),
        ("ok=null", b'{"ok": null}'),
        ("ok=true", b'{"ok": true}'),
        ("a=x", b'\xef\xbb\xbf{"a": "x"}'),
        ("a=\u00e9", '{"a": "\u00e9"}'.encode()),
        ("a=x", b'{"a": "x", "a": "y"}'),
    ],
)
def test_json_value_is_found(text: str, body: bytes) -> None:
    assert meets("json", text, body)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b'{"status"', b'{"status":', b'{"status":}', b'{"status":"err', b'{"status":"error', b"[]", b'"status"', b"null", b"12",
        b"<html>", b'{"status": ["error"]}', b'{"status": {"a": "error"}}', b"{status: error}", b"{'status': 'error'}",
        b'{"a": 1 "status": "error"}', b'{"a":, "status": "error"}', b'{"Status": "error"}', b'[{"status": "error"}]',
        b'{"a": "\xff", "status": "error"}', b'{"a": "\x01", "status": "error"}', b'{"status": "error"}'.decode().encode("utf-16"),
        b'{"a": ' + b"[" * 30_000 + b"]" * 30_000 + b', "status": "error"}', b'{"a": ' * 9_000, b"[" * 60_000,
    ],
)  # fmt: skip
def test_other_bodies_do_not_match(body: bytes) -> None:
    assert not meets("json", "status=error", body)


def test_huge_number_is_only_a_text() -> None:
    assert meets("json", "b=x", b'{"a": ' + b"9" * 60_000 + b', "b": "x"}')
    assert not meets("json", "a=9", b'{"a": ' + b"9" * 60_000 + b"}")
    assert meets("json", "a=1e999999", b'{"a": 1e999999}')


def test_beginning_is_enough_where_the_path_ends_in_it() -> None:
    body = b'{"status": "error", "rest": "' + b"x" * LOOKED_AT + b'"}'
    assert meets("json", "status=error", body)
    assert meets("json", "status=error", body[:30], complete=False)
    assert not meets("json", "status=error", b'{"rest": "' + b"x" * LOOKED_AT + b'", "status": "error"}')


def test_number_that_the_end_cuts_is_not_judged() -> None:
    assert not meets("json", "code=5", b'{"code": 5', complete=False)
    assert meets("json", "code=5", b'{"code": 5,', complete=False)


def test_character_that_the_end_cuts_does_not_matter() -> None:
    beginning = b'{"a": "x", "b": "' + "\u20ac".encode()
    assert meets("json", "a=x", beginning[:-1], complete=False)
    assert not meets("json", "a=x", beginning[:-1], complete=True)


def test_pattern_is_sought_in_the_body() -> None:
    fault = b'<?xml version="1.0"?>\n<soap:Body><soap:Fault>'
    assert meets("body", "<(soap:)?Fault>", fault)
    assert not meets("body", "<(soap:)?Fault>", b"<soap:Faults>")
    assert meets("body", "Fault", b"\xff\xfe Fault")
    assert not meets("body", "Fault", b"x" * LOOKED_AT + b"Fault")


def test_gzip_is_looked_into_and_bounded() -> None:
    head = ResponseHead(200, [(b"Content-Encoding", b"GZIP")])
    body = gzip.compress(b'{"status": "error"}')
    assert meets("json", "status=error", body, head)
    assert meets("json", "status=error", gzip.compress(b'{"status": "error"' + b" " * 10_000_000), head)
    assert not meets("body", "end", gzip.compress(b" " * 10_000_000 + b"end"), head)
    assert not meets("json", "status=error", b'{"status": "error"}', head)
    assert not meets("json", "status=error", body[:5], head)


def test_other_codings_are_not_looked_into() -> None:
    for coding in (b"br", b"gzip, gzip", b"zstd"):
        head = ResponseHead(200, [(b"content-encoding", coding)])
        assert not meets("body", "x", b"x", head)


def test_conditions_are_told_apart() -> None:
    both = Contents(["json:a=1", "json:b=2", "body:c"])
    assert both.looks_inside
    assert both.by_body(PLAIN, b'{"a": 1, "b": 3}', complete=True) == {"json:a=1"}
    assert both.by_body(PLAIN, b'{"b": 2, "c": 3}', complete=True) == {"json:b=2", "body:c"}
    assert not Contents(["header:a=b"]).looks_inside


# ----- properties -----------------------------------------------------------------------------------------------------

names = st.text("abc", min_size=1, max_size=2)
trees = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
)


def by_hand(tree: Any, path: tuple[str | int, ...]) -> str | None:
    for step in path:
        try:
            if isinstance(step, str) != isinstance(tree, dict) or not isinstance(tree, dict | list):
                return None
            tree = tree[step]  # type: ignore[index]
        except (KeyError, IndexError):
            return None
    if isinstance(tree, str):
        return tree
    return None if isinstance(tree, dict | list) else json.dumps(tree)


@given(trees, st.lists(names | st.integers(0, 2), min_size=1, max_size=3), st.sampled_from([None, 0, 2]))
def test_value_is_what_a_whole_parser_finds(tree: Any, path: list[str | int], indent: int | None) -> None:
    text = json.dumps({"": tree}, indent=indent)
    assert value_at(text, ["", *path]) == by_hand(tree, tuple(path))


@given(trees, st.lists(names | st.integers(0, 2), min_size=1, max_size=3), st.integers(0, 60))
def test_beginning_says_the_same_or_nothing(tree: Any, path: list[str | int], end: int) -> None:
    text = json.dumps({"": tree})
    assert value_at(text[:end], ["", *path]) in (None, by_hand(tree, tuple(path)))


@given(st.binary(max_size=60), st.booleans())
def test_any_body_is_judged_without_an_error(body: bytes, complete: bool) -> None:
    made = Contents(["json:a[0].b=c", "body:x.y"])
    for coding in (b"identity", b"gzip"):
        made.by_body(ResponseHead(200, [(b"content-encoding", coding)]), body, complete=complete)
