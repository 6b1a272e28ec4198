"""Talking to a running service: plain HTTP over its control socket, or to its admin API.

Made of the standard library only: commands of this kind start in a few tens of milliseconds.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ambassador.cli import NO, UNREACHABLE, USAGE
from ambassador.control import socket_path

_TIMEOUT_S = 10.0


class Failure(Exception):
    """The command cannot do its work; `status` is its exit status."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """One service. `where` is `unix:/path` or an http URL; `token` is the secret itself."""

    def __init__(self, where: str, token: str | None = None, *, timeout_s: float = _TIMEOUT_S) -> None:
        self.where = where
        self._token = token
        self._timeout_s = timeout_s

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """(status, JSON or text). Raises `Failure` when the service does not answer."""
        connection = self._connection()
        headers = {"content-type": "application/json"} if body is not None else {}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            raw = response.read()
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Failure(f"cannot reach the service at {self.where}: {reason}", UNREACHABLE) from None
        finally:
            connection.close()
        is_json = "json" in (response.getheader("content-type") or "")
        try:
            return response.status, json.loads(raw) if is_json else raw.decode("utf-8", "replace")
        except ValueError:
            raise Failure(f"{self.where} did not answer as an ambassador does", UNREACHABLE) from None

    def _connection(self) -> http.client.HTTPConnection:
        if self.where.startswith("unix:"):
            return _UnixConnection(self.where.removeprefix("unix:"), self._timeout_s)
        try:
            url = urlsplit(self.where if "://" in self.where else f"http://{self.where}")
            port = url.port or 80
        except ValueError:
            raise Failure(f"{self.where} is not an http URL", USAGE) from None
        if url.scheme != "http" or not url.hostname:
            raise Failure(f"{self.where} is not an http URL", USAGE)
        return http.client.HTTPConnection(url.hostname, port, timeout=self._timeout_s)

    def get(self, path: str) -> Any:
        """The answer, if it is a good one. Raises `Failure`."""
        return self._good(*self.call("GET", path))

    def post(self, path: str, body: Any = None, *, refused: int | None = None) -> Any:
        """Likewise. An answer with the status `refused` tells why the service says no, and is returned too."""
        status, answer = self.call("POST", path, {} if body is None else body)
        return answer if status == refused else self._good(status, answer)

    def _good(self, status: int, answer: Any) -> Any:
        if status < 400:
            return answer
        detail = answer.get("detail") or answer.get("title") if isinstance(answer, dict) else answer
        raise Failure(f"{self.where} says no ({status}): {str(detail).strip()}", NO)


def client(args: argparse.Namespace, *, timeout_s: float = _TIMEOUT_S) -> Client:
    """The service that the command line means. Raises `Failure`."""
    if args.admin:
        return Client(args.admin, None if args.token is None else _secret(args.token), timeout_s=timeout_s)
    where = args.control or os.environ.get("AMBASSADOR_CONTROL")
    if where:
        return Client("unix:" + where.removeprefix("unix:"), timeout_s=timeout_s)
    return Client(f"unix:{_only_socket()}", timeout_s=timeout_s)


def _only_socket() -> Path:
    found = socket_path.present()
    live = [path for path in found if _answers(path)] if len(found) > 1 else found
    if len(live) > 1:
        names = ", ".join(map(str, live))
        raise Failure(f"several services run here; choose one with --control: {names}", USAGE)
    if not live:
        where = socket_path.directory()
        raise Failure(
            f"no service runs here (no control socket in {where}); see --control and --admin", UNREACHABLE
        )
    return live[0]


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def _secret(reference: str) -> str:
    kind, separator, where = reference.partition(":")
    if not separator or kind not in ("env", "file"):
        raise Failure("--token takes env:NAME or file:/path, never the secret itself", USAGE)
    try:
        return (os.environ[where] if kind == "env" else Path(where).read_text()).strip()
    except (KeyError, OSError):
        raise Failure(f"--token: {reference} cannot be read", USAGE) from None


def complain(failure: Failure, *, as_json: bool = False) -> int:
    """Print why, and return the exit status."""
    if as_json:
        print(json.dumps({"error": str(failure)}))
    print(f"ambassador: {failure}", file=sys.stderr)
    return failure.status


def note_unready(service: Client, found: list[Any]) -> None:
    """Say so where an empty list only means that no worker has told yet. Raises `Failure`."""
    if not found and not service.get("/api/status")["ready"]:
        print("ambassador: the service is not ready yet: ask again", file=sys.stderr)
