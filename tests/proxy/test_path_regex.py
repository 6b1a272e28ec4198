"""Patterns are linear by construction: what is refused without RE2, what passes, and that both engines agree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.proxy import path_regex
from ambassador.proxy.path_regex import Refused, substitution

# Evil patterns as published (OWASP, regular-expressions.info, CVE write-ups) and the shapes behind them.
EVIL = [
    r"(a+)+$", r"(a*)*b", r"(a|a)*b", r"(a|aa)+$", r"(a|a?)+$", r"(.*a){25}", r"(.*)*x", r"(x+x+)+y", r"([a-zA-Z]+)*$",
    r"^(([a-z])+.)+[A-Z]([a-z])+$", r"(\w+\s?)*$", r"(\d+)*\d+", r".*.*=.*", r".*a.*b.*c", r"\d+\d+", r"\s*\s*x", r"(a?){30}a{30}",
    r"(?:(?:a{1,30}){1,30}){1,30}b", r"(ab|[a-c]x)*", r"[a-z]+[a-f]", r"a*a*a*a*b", r"(a*?)*?b", r"((a|b)+|a)c", r"(a?b?)*c", r"\d{1,3}\d",
    r"(|a)+", r"(a{0})*", r"((((a?b?c?)p(e?f?))+)+)+",
]  # fmt: skip
NOT_REGULAR = [
    r"(a)\1",
    r"(?P<x>a)(?P=x)",
    r"a(?=b)",
    r"a(?!b)",
    r"(?<=a)b",
    r"(a)?(?(1)b|c)",
    r"(?>a)b",
    r"a++b",
]
FINE = [
    (r"/v1/(?P<id>[^/]+)/items/\d+", "/v1/a/items/3", "/v1/a/items/"),
    (r"/(a|b)/.*", "/a/x", "/c/x"),
    (r"^/api/(.*)$", "/api/x", "/ap"),
    (r"/[a-z]+(-[a-z]+)*/x", "/a-b-c/x", "/a-/x"),
    (r"/\d{4}-\d{2}", "/2020-12", "/2020-1"),
    (r"/\d{1,3}", "/12", "/1234"),
    (r"/\.(?:css|js)", "/.js", "/.j"),
    (r"/(?:a|b|c)?/\w+", "//x", "//-"),
    (r"/[^\d]x\D\W\S", "/ax--x", "/1x--x"),
    (r"/(a|ab)+", "/aab", "/abb"),
]


@pytest.mark.parametrize("pattern", EVIL)
def test_structure_refuses_what_could_backtrack(pattern: str) -> None:
    with pytest.raises(Refused):
        path_regex.compile(pattern, engine="re")


@pytest.mark.parametrize("pattern", NOT_REGULAR)
def test_constructs_that_need_backtracking_are_refused_by_either_engine(pattern: str) -> None:
    with pytest.raises(Refused, match="cannot be matched in linear time"):
        path_regex.compile(pattern)
    pytest.importorskip("re2")
    with pytest.raises(Refused):
        path_regex.compile(pattern, engine="re2")


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        "(?i)a",
        "(?i:a)B",
        "(?s:.)",
        "[z-a]",
        "((?:^){999}){999}",
        "a{5000}",
        "a" * 1001,
        "(?z)",
        "(" * 900,
    ],
)
def test_malformed_flagged_and_oversized_patterns_are_refused_without_re2(pattern: str) -> None:
    with pytest.raises(Refused):
        path_regex.compile(pattern, engine="re")


@pytest.mark.parametrize("engine", ["re", "re2"])
@pytest.mark.parametrize(("pattern", "match", "miss"), FINE)
def test_whole_text_must_match(pattern: str, match: str, miss: str, engine: str) -> None:
    if engine == "re2":
        pytest.importorskip("re2")
    matcher = path_regex.compile(pattern, engine=engine)
    assert matcher.matches(match)
    assert not matcher.matches(miss)
    assert not matcher.matches(match + "\n")


@given(st.sampled_from(FINE), st.text(alphabet="/abcx-.13\n", max_size=12))
def test_engines_agree(fine: tuple[str, str, str], text: str) -> None:
    pytest.importorskip("re2")
    one, other = (path_regex.compile(fine[0], engine=engine) for engine in ("re", "re2"))
    for tried in (text, "/" + text):
        assert one.parameters(tried) == other.parameters(tried)


def test_engine_is_re_where_that_is_proved_linear_else_re2() -> None:
    assert path_regex.compile(r"/\d+").engine == "re"
    pytest.importorskip("re2")
    assert path_regex.compile(r"(a+)+$").engine == "re2"
    assert path_regex.compile("b", whole=False).engine == "re2"


def test_refusal_tells_what_to_do_without_re2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_regex, "re2", None)
    with pytest.raises(Refused, match="install the extra re2"):
        path_regex.compile(r"(a+)+$")
    with pytest.raises(Refused, match="begin with"):
        path_regex.compile("b", whole=False)


@pytest.mark.parametrize("engine", ["re", "re2"])
def test_replace_puts_groups_in_place(engine: str) -> None:
    if engine == "re2":
        pytest.importorskip("re2")
    matcher = path_regex.compile(r"^/v1/(?P<id>[^/]*)(/x)?", whole=False, engine=engine)
    parts = substitution(r"/\\new/\g<id>\2-\g<1>", matcher)
    assert matcher.replace("/v1/42/y", parts) == r"/\new/42-42/y"
    assert matcher.replace("/v2/42", parts) == "/v2/42"


def test_replace_replaces_every_match() -> None:
    pytest.importorskip("re2")
    matcher = path_regex.compile("a+", whole=False)
    assert matcher.replace("/aa/b/a", substitution("c", matcher)) == "/c/b/c"


@pytest.mark.parametrize("template", [r"\2", r"\g<nope>", r"\g<2>", "\\", r"\x", r"\g<"])
def test_substitution_refuses_what_is_no_group(template: str) -> None:
    with pytest.raises(Refused):
        substitution(template, path_regex.compile("(a)"))
