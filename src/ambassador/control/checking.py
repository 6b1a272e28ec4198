"""Reading and checking a config file in a process of its own, so that the supervisor's loop never stalls.

Run as `python -m ambassador.control.checking FILE`: prints a `Checked` as msgpack.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import msgspec

from ambassador.config.load import Loaded, load, load_string
from ambassador.config.schema import Config

_TIMEOUT_S = 30.0


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """A config, or all that is wrong with it, each error as `file:line:col: error: path: problem`."""

    config: Config | None
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


Check: TypeAlias = Callable[[str], Awaitable[Checked]]
"""Reads and checks the file with this path."""


def check_file(path: str) -> Checked:
    """Read and check a file in this process."""
    return _checked(load(path))


def check_text(text: str) -> Checked:
    """Check a config that is in no file, as the command line makes one."""
    return _checked(load_string(text))


def _checked(loaded: Loaded) -> Checked:
    return Checked(
        config=loaded.config,
        errors=tuple(problem.text() for problem in loaded.errors),
        warnings=tuple(problem.text() for problem in loaded.warnings),
    )


async def check_in_child(path: str) -> Checked:
    """The same in a child process."""
    import trio  # noqa: PLC0415 - the child needs none of it, and half of its time would go there

    command = [sys.executable, "-P", "-m", "ambassador.control.checking", path]
    with trio.move_on_after(_TIMEOUT_S):
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        if done.returncode == 0:
            return msgspec.msgpack.decode(done.stdout, type=Checked)
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return Checked(
            config=None, errors=(f"{path}: cannot be checked: {lines[-1] if lines else done.returncode}",)
        )
    return Checked(config=None, errors=(f"{path}: checking took longer than {_TIMEOUT_S:g} s",))


def main() -> None:
    """Entry of the child."""
    sys.stdout.buffer.write(msgspec.msgpack.encode(check_file(sys.argv[1])))


if __name__ == "__main__":
    main()
