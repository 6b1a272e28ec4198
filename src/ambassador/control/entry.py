"""How a child process of the supervisor begins: private before anything else is read, then as what it is to be.

Run as `python -m ambassador.control.entry private|open MODULE FD PID`. An exec makes a process open to others of its
user again, with all the variables of its parent, and what a child imports takes half a second on a busy host; this
takes the first few milliseconds of it. What the interpreter itself takes to start before, nobody can close.
"""

from __future__ import annotations

import runpy
import sys
from typing import Final

from ambassador.control.host import keep_private

ENTRY_MODULE: Final = "ambassador.control.entry"
PRIVATE: Final = "private"
OPEN: Final = "open"


def enter(how: str, module: str) -> None:
    """Run `module` in this process as `python -m` would, after `keep_private` if `how` says so."""
    if how == PRIVATE:
        keep_private()
    del sys.argv[1:3]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    enter(sys.argv[1], sys.argv[2])
