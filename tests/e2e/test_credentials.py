"""Credentials of a running service: secrets that are replaced, that come late, that go."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.e2e.origins import wsgi
from tests.e2e.programs import DEADLINE_S, Ambassador, ambassador, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment


class Guarded:
    """An upstream that takes the tokens of `valid`; remembers what it was shown last."""

    def __init__(self, *valid: str) -> None:
        self.valid = set(valid)
        self.shown: str | None = None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.shown = environ.get("HTTP_AUTHORIZATION")
        known = (self.shown or "").removeprefix("Bearer ") in self.valid
        start_response("200 OK" if known else "401 Unauthorized", [("Content-Length", "0")])
        return []


@contextmanager
def a_service(upstream: Guarded, secret: Path) -> Iterator[Ambassador]:
    with wsgi(upstream) as url:
        body = f"""\
        upstreams:
          u: {{endpoints: [{url}], auth: {{bearer: "file:{secret}"}}}}
        routes: [{{name: r, to: u}}]
        """
        with ambassador(body, workers=2) as service:
            yield service


def status(service: Ambassador) -> int:
    """The answer over a connection of its own, so that any worker may have it."""
    connection = http.client.HTTPConnection(urlsplit(service.url).netloc, timeout=DEADLINE_S)
    try:
        connection.request("GET", "/", headers={"Authorization": "Bearer theirs"})
        return connection.getresponse().status
    finally:
        connection.close()


def replace(secret: Path, value: str) -> None:
    """At once, as whoever renews it should."""
    fresh = secret.with_suffix(".new")
    fresh.write_text(value)
    fresh.replace(secret)


def test_secret_that_is_replaced_is_used_without_a_reload_and_without_a_failure(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("old")
    upstream = Guarded("old", "new")
    with a_service(upstream, secret) as service:
        assert status(service) == 200
        replace(secret, "new")

        def is_new() -> bool:
            assert status(service) == 200
            return upstream.shown == "Bearer new"

        wait_until(lambda: all(is_new() for _ in range(20)), "the new token in both workers")
        secret.unlink()
        wait_until(
            lambda: "cannot be read, what was read before is used" in service.running.stderr.read_text(),
            "the warning",
        )
        assert [status(service) for _ in range(10)] == [200] * 10
        assert service.running.stderr.read_text().count("cannot be read") == 1  # not by each worker


def test_secret_that_comes_late_opens_the_way(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    upstream = Guarded("late")
    with a_service(upstream, secret) as service:
        assert {status(service) for _ in range(5)} == {503}
        assert upstream.shown is None
        codes = wait_until(lambda: [line["code"] for line in service.log()] or None, "the log")
        assert set(codes) == {"credential_unavailable"}
        told = "the credential for upstream u cannot be read"
        assert told in service.command("upstreams").stdout
        assert told in service.command("doctor").stdout
        replace(secret, "late")
        wait_until(lambda: all(status(service) == 200 for _ in range(20)), "the secret in both workers")


def test_processes_that_hold_secrets_keep_to_themselves(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("t")
    with a_service(Guarded("t"), secret) as service:
        limits = Path(f"/proc/{service.running.process.pid}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert line.split()[4] == "0"
