"""DNS rebinding, end to end: by the tests of `rebinding.py`, in a network and with a resolv.conf of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.programs import needs, program

HERE = Path(__file__).parent
_SCRIPT = 'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'


def isolated(*command: str) -> list[str]:
    """The command in namespaces of its own: of users, in which it may do what follows, of mounts and of networks."""
    unshare = program("unshare") or "unshare"
    return [unshare, "--map-root-user", "--mount", "--net", *command]


@needs("unshare", "ip")
def test_name_that_comes_to_lead_to_a_closed_address_is_not_followed(tmp_path: Path) -> None:
    if subprocess.run(isolated("true"), capture_output=True).returncode:
        pytest.skip("needs namespaces of users and networks, which are forbidden here")
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 127.0.0.1\n")
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "rebinding.py")]
    done = subprocess.run(
        isolated("sh", "-c", _SCRIPT, "sh", str(resolv_conf), *tests),
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
