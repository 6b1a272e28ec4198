"""Checks that every module with code has a test of its own: `tests/` mirrors `src/ambassador/` path for path.

    src/ambassador/proxy/routing.py    tests/proxy/test_routing.py
    src/ambassador/cli/__init__.py     tests/cli/test_init.py

A module that only declares (a docstring, imports, constants, classes without a method of their own) needs none. Prints
each missing twin and exits with 1 if there is any.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "ambassador"

TESTED_ELSEWHERE = {
    "__main__.py": "one call; every test in tests/e2e goes through it",
    "errors.py": "a table of codes; tests/proxy/test_problem.py renders them",
    "messages.py": "plain records; filled in and read by the tests of proxy/",
    "settings.py": "vocabulary of annotations; tests/config/test_schema.py reads it",
}
"""Modules without a twin, each with the reason."""


def has_code(source: str) -> bool:
    """Whether a module does anything that a test could be about: it defines a function or a method."""
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(ast.parse(source))
    )


def twin(module: Path) -> Path:
    """Where the test of `module` (relative to the package) is, relative to the repository."""
    name = "init" if module.name == "__init__.py" else module.stem
    return Path("tests") / module.parent / f"test_{name}.py"


def missing() -> list[tuple[Path, Path]]:
    """Modules that have no test, each with the path of the test that is missing."""
    modules = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py"))]
    return [
        (module, twin(module))
        for module in modules
        if module.as_posix() not in TESTED_ELSEWHERE
        and not (ROOT / twin(module)).is_file()
        and has_code((PACKAGE / module).read_text(encoding="utf-8"))
    ]


def main() -> int:
    """Print what is missing; the exit status says whether anything is."""
    gone = [name for name in TESTED_ELSEWHERE if not (PACKAGE / name).is_file()]
    for name in gone:
        sys.stdout.write(f"tests/twins.py: src/ambassador/{name} is excused but does not exist\n")
    lonely = missing()
    for module, test in lonely:
        sys.stdout.write(f"src/ambassador/{module}: no test, expected {test}\n")
    return 1 if lonely or gone else 0


if __name__ == "__main__":
    sys.exit(main())
