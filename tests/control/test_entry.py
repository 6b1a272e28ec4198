from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ambassador.control.entry import ENTRY_MODULE, OPEN, PRIVATE


@pytest.mark.parametrize(("how", "dumpable"), [(PRIVATE, "0"), (OPEN, "1")])
def test_child_is_private_before_its_own_module_is_read(how: str, dumpable: str, tmp_path: Path) -> None:
    (tmp_path / "looks.py").write_text(
        "import ctypes, sys\nprint(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), __name__, *sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-m", ENTRY_MODULE, how, "looks", "7", "42"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [dumpable, "__main__", "7", "42"]
    assert not done.stderr
