"""What is wrong with a config, and where: one Problem for each mistake, printed in three ways."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct

from ambassador.printable import printable


class Problem(Struct, frozen=True, kw_only=True):
    """One mistake or warning."""

    file: str
    """The file as it was named; `-` for text that came from no file."""

    line: int
    """From 1; 0 when it concerns the file as a whole."""

    column: int
    """From 1, in characters; 0 when it concerns the file as a whole."""

    level: Literal["error", "warning"] = "error"
    """An error keeps the config from being used; a warning does not."""

    path: str = ""
    """Where in the config, `routes[0].retry.attempts`; empty for the whole."""

    message: str
    """The problem, in words."""

    hint: str | None = None
    """What to do about it, or None."""

    source: str = ""
    """The line of the file, with secrets masked."""

    def __str__(self) -> str:
        """`file:line:col: error: path: problem; hint`, as compilers print it: one line, whatever the file is called."""
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return printable(f"{place}: {self.level}: {self.sentence}")

    @property
    def sentence(self) -> str:
        """Path, problem and hint."""
        return f"{self.path}: {self.advice}" if self.path else self.advice

    @property
    def advice(self) -> str:
        """Problem and hint."""
        return f"{self.message}; {self.hint}" if self.hint else self.message

    def text(self) -> str:
        """The problem, then its line with a caret under the place."""
        if not (self.line and self.source.strip()):
            return str(self)
        start = max(0, self.column - 61)
        shown = self.source[start : start + 120].replace("\t", " ")
        return f"{self}\n{self.line:>5} | {shown}\n      | {' ' * (self.column - 1 - start)}^"

    def github(self) -> str:
        """An annotation as GitHub's workflow commands take it."""
        place = f"file={_property(self.file)}"
        if self.line:
            place += f",line={self.line},col={self.column}"
        return f"::{self.level} {place}::{_data(self.sentence)}"


class ConfigError(ValueError):
    """A config that cannot be used; `problems` say why."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


def in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Problems file by file (in the order the files first appear) and line by line, each once."""
    once = list(dict.fromkeys(problems))
    files = {file: number for number, file in enumerate(dict.fromkeys(problem.file for problem in once))}
    return tuple(sorted(once, key=lambda problem: (files[problem.file], problem.line, problem.column)))


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
