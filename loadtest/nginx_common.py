"""What the origin and the peer nginx have in common: one worker, no logs, every file in a given directory."""

import os
import shutil
from pathlib import Path

INSTALL = "apt-get install nginx"
_STATE = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def find() -> str | None:
    """The path of nginx; /usr/sbin is often not on an ordinary user's path."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def command(binary: str, configuration_file: Path) -> list[str]:
    """Its command line, in the foreground; `-e` because it opens its built-in error log before it reads the file."""
    log = configuration_file.with_suffix(".error.log")
    return [binary, "-c", str(configuration_file), "-e", str(log), "-g", "daemon off;"]


def configuration(state: Path, http: str) -> str:
    """A whole configuration around the content of its `http` block; `state` is a directory of its own.

    Workers keep the user of the master, so that they may read the temporary directory. The number of requests per
    connection is without a limit in effect: its default of 1,000 would measure reconnecting.
    """
    user = "user root root;" if os.getuid() == 0 else ""
    paths = "\n".join(f"    {name}_temp_path {state}/{name};" for name in _STATE)
    return f"""{user}
worker_processes 1;
pid {state}/pid;
error_log {state}/error.log warn;
events {{ worker_connections 16384; multi_accept on; }}
http {{
{paths}
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 300s;
{http}
}}
"""
