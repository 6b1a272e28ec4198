"""`ambassador demo`: the quick start."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from ambassador.cli import USAGE
from ambassador.cli.arguments import Subparsers
from ambassador.cli.run import option_of

if TYPE_CHECKING:
    from ambassador.control.supervisor import Announcement

_END_S = 3.0

_CONFIG: Final = """\
# The demo's config: change it, then `{program} reload --control {control}`.
version: 1
listen: {listen}
admin: {admin}
control: {control}
workers: 2
telemetry: {{access_log: "{directory}/access.log"}}
drain: {{delay: 0s, timeout: 2s}}
routes:
  - name: flaky
    match: {{path: "/flaky/**"}}
    to: {flaky}
    retry: {{attempts: 3, when: [connect, reset, 5xx]}}
  - name: slow
    match: {{path: "/slow/**"}}
    to: {slow}
    timeout: 1s
  - name: soap
    match: {{path: "/soap/**"}}
    to: {soap}
  - name: hello
    match: {{path: /hello}}
    respond: {{status: 200, body: "hello from the ambassador\\n"}}
  - name: old
    match: {{path: /old}}
    redirect: {{location: /hello, status: 302}}
  - name: healthy
    to: {healthy}
"""

_TRY: Final = """\
listening on {listener}
admin on {admin}
state {state}

Sample upstreams are up, and a little traffic runs. Try:
  curl -i {listener}/                 # healthy: passed on
  curl -i {listener}/flaky/x          # every other answer of it is a 503, and yours is not: retried
  curl -i '{listener}/slow/x?seconds=3' # 504 after one second
  curl -i {listener}/soap/balance     # a legacy service, as it is
  curl -i {listener}/hello            # answered by the ambassador itself
  curl -i {listener}/old              # redirected
  curl -s {admin}/metrics | grep ambassador_retries
  curl -s {admin}/api/upstreams
  {program} top --control {control}
Dashboard: {admin}/
Config:    {directory}/demo.yaml   log: {directory}/access.log
Ctrl-C ends all of it."""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "demo",
        help="try it: sample upstreams, routes to them, and a little traffic",
        description="Start sample upstreams (healthy, flaky, slow, and a legacy SOAP service), routes to them, and a "
        "little traffic. Ctrl-C ends all of it and leaves nothing behind.",
    )
    parser.add_argument(
        "--listen", metavar="ADDR", default="127.0.0.1:8080", help="where to listen (%(default)s)"
    )
    parser.add_argument(
        "--admin", metavar="ADDR", default="127.0.0.1:9901", help="the admin API (%(default)s)"
    )
    parser.add_argument(
        "--control", metavar="unix:PATH", help="the control socket (default: a temporary one)"
    )
    parser.add_argument("--json", action="store_true", help="print what is served as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the demo until it is interrupted."""
    from ambassador.config.load import load
    from ambassador.control.service import serve

    with tempfile.TemporaryDirectory(prefix="ambassador-demo-") as directory, _samples() as samples:
        assert samples.stdin is not None
        assert samples.stdout is not None
        urls = json.loads(samples.stdout.readline())
        file = Path(directory) / "demo.yaml"
        file.write_text(_config(args, directory, urls))
        loaded = load(file)
        if loaded.config is None:
            for each in loaded.errors:
                print(f"ambassador demo: {option_of(each.path)}: {each.advice}", file=sys.stderr)
            return USAGE
        traffic = samples.stdin

        def announce(announcement: Announcement) -> str:
            _say(traffic, announcement.listeners[0])
            return _as_json(announcement) if args.json else _text(announcement, directory)

        return serve(loaded.config, announce, config_file=str(file), warm=False)


def _config(args: argparse.Namespace, directory: str, urls: Mapping[str, str]) -> str:
    """The demo's config, as YAML; what comes from the command line is quoted as JSON."""
    return _CONFIG.format(
        program=program(),
        directory=directory,
        listen=json.dumps(args.listen),
        admin=json.dumps(args.admin),
        control=json.dumps(args.control or f"unix:{directory}/control.sock"),
        **urls,
    )


def program() -> str:
    """How a shell runs the program that runs now: by its name where that finds it, else by its path."""
    own = sys.argv[0]
    if os.path.basename(own) == "__main__.py":
        return shlex.join([sys.executable, "-m", "ambassador"])
    found = shutil.which("ambassador")
    if found is not None and os.path.exists(own) and os.path.samefile(found, own):
        return "ambassador"
    return shlex.quote(own)


@contextmanager
def _samples() -> Iterator[subprocess.Popen[str]]:
    """The sample upstreams' process; it ends with its standard input."""
    command = [sys.executable, "-P", "-m", "ambassador.cli.samples"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _say(pipe: IO[str], line: str) -> None:
    try:
        pipe.write(line + "\n")
        pipe.flush()
    except OSError:
        # The samples have ended; what is served says so by itself, with 503s.
        return


def _text(announcement: Announcement, directory: str) -> str:
    return _TRY.format(
        listener=announcement.listeners[0],
        admin=announcement.admin,
        state=announcement.state,
        control=shlex.quote(f"unix:{announcement.control}"),
        program=program(),
        directory=directory,
    )


def _as_json(announcement: Announcement) -> str:
    import msgspec

    return msgspec.json.encode(announcement).decode()
