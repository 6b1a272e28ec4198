"""How a problem is printed."""

from __future__ import annotations

from ambassador.config.problem import ConfigError, Problem, in_order

PROBLEM = Problem(
    file="a,b.yaml", line=3, column=5, path="routes[0]", message="100% wrong", hint="did you mean 'x'?", source="  - y: z"
)  # fmt: skip


def test_problem_as_compilers_print_it() -> None:
    assert str(PROBLEM) == "a,b.yaml:3:5: error: routes[0]: 100% wrong; did you mean 'x'?"
    assert PROBLEM.text() == f"{PROBLEM}\n    3 |   - y: z\n      |     ^"


def test_problem_of_a_whole_file() -> None:
    problem = Problem(file="a", line=0, column=0, message="cannot be read")
    assert problem.text() == "a: error: cannot be read"
    assert problem.github() == "::error file=a::cannot be read"


def test_problem_as_annotation() -> None:
    assert (
        PROBLEM.github() == "::error file=a%2Cb.yaml,line=3,col=5::routes[0]: 100%25 wrong; did you mean 'x'?"
    )


def test_caret_stays_under_its_place_in_a_long_line() -> None:
    problem = Problem(file="a", line=1, column=300, message="here", source="x" * 299 + "!" + "x" * 300)
    _, line, caret = problem.text().splitlines()
    assert line[caret.index("^")] == "!"


def test_in_order_keeps_files_together() -> None:
    one, two = (
        Problem(file="b", line=2, column=1, message="m"),
        Problem(file="a", line=1, column=1, message="m"),
    )
    three = Problem(file="b", line=1, column=1, message="m")
    assert in_order([one, two, three, one]) == (three, one, two)
    assert str(ConfigError([two])) == "a:1:1: error: m"


def test_text_is_one_line_whatever_the_file_is_called() -> None:
    problem = Problem(file="a\n\x1b[2Jb", line=1, column=1, path="p\u202e", message="is wrong")
    assert str(problem) == "a\\x0a\\x1b[2Jb:1:1: error: p\\u202e: is wrong"
