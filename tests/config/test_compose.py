"""YAML to nodes: what a text is, seen by what is made of it, and what is said where it is none."""

from __future__ import annotations

import textwrap

import pytest

from ambassador.config.load import load_string, load_text

HEAD = "version: 1\nlisten: 127.0.0.1:8080\n"


def test_aliases_and_merges() -> None:
    config = load_text(
        HEAD
        + textwrap.dedent("""\
        routes:
          - {name: a, match: {path: /a}, to: http://a, timeout: &t {connect: 2s, total: 9s}}
          - {name: b, match: {path: /b}, to: http://b, timeout: *t}
          - {name: c, match: {path: /c}, to: http://c, timeout: {<<: *t, total: 4s}}
        """)
    )
    assert [route.timeout.total for route in config.routes] == [9.0, 9.0, 4.0]
    assert [route.timeout.connect for route in config.routes] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ("m: {path: /v1/{id}/x, host: a}", (1, 11), 'quote this: "/v1/{id}/x"'),
        ("m: {path: /{a}/b/{c.d}-{e}}", (1, 11), 'quote this: "/{a}/b/{c.d}-{e}"'),
        ("listen: [::]:80", (1, 9), 'quote this: "[::]:80"'),
        ("listen:\n  - [::1]:80", (2, 5), 'quote this: "[::1]:80"'),
        ("m: {host: *.example.com}", (1, 11), 'quote this: "*.example.com"'),
        ("host: *", (1, 7), 'quote this: "*"'),
        ("a:\n\tb: 1", (2, 1), "indent with spaces, not tabs"),
        ("a: @b", (1, 4), "quote what begins with '@'"),
        ("a: b: c", (1, 5), "quote a text that holds ': ', and check the indentation"),
    ],
)
def test_syntax_error_says_what_to_quote(text: str, place: tuple[int, int], hint: str) -> None:
    (problem,) = (each for each in load_string(text).errors if "is not YAML" in each.message)
    assert ((problem.line, problem.column), problem.hint) == (place, hint)


UNQUOTED = """\
version: 1
listen: [::1]:80
routes:
  - {name: a, match: {host: *.internal, path: /v1/{id}/b/{x}}, to: nowhere}
  - name: b
    match:
      host: *
    timout: 1s
    respond: 200
  - {name: c, match: {path: /c/{id}}, rewrite: {prefix: /{id}/d}, respond: 99}
"""
LACK_QUOTES = ["[::1]:80", "*.internal", "/v1/{id}/b/{x}", "*\n", "/c/{id}", "/{id}/d"]


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\u2028"])
def test_all_that_lacks_quotes_is_told_in_one_run_and_the_rest_is_checked(line_break: str) -> None:
    quoted = UNQUOTED
    for text in LACK_QUOTES:
        quoted = quoted.replace(text, f'"{text.strip()}"{text[len(text.strip()) :]}')
    expected = load_string(quoted.replace("\n", line_break)).errors
    errors = load_string(UNQUOTED.replace("\n", line_break)).errors
    unquoted = [each for each in errors if "is not YAML" in each.message]
    assert [each.hint for each in unquoted] == [f'quote this: "{text.strip()}"' for text in LACK_QUOTES]
    assert [each.line for each in unquoted] == [2, 4, 4, 7, 10, 10]
    rest = [each for each in errors if each not in unquoted]
    assert [each.sentence for each in rest] == [each.sentence for each in expected]
    assert len(rest) >= 4


def test_not_more_than_a_hundred_texts_without_quotes_are_told() -> None:
    text = HEAD + "routes:\n" + "".join(f"  - {{name: r{n}, match: {{host: *.a{n}}}}}\n" for n in range(200))
    assert len([each for each in load_string(text).errors if "is not YAML" in each.message]) == 101


def test_billion_laughs_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (only,) = load_string("\n".join(lines)).errors
    assert "the aliases repeat more than 100000 values" in str(only)
