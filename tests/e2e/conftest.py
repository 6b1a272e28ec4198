"""Fixtures: one ambassador for the tests that only send requests, with the upstreams it needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.origins import Application, wsgi
from tests.e2e.programs import Ambassador, ambassador


@pytest.fixture(scope="module")
def application() -> Iterator[Application]:
    application = Application()
    yield application
    application.release.set()


@pytest.fixture(scope="module")
def origin(application: Application) -> Iterator[str]:
    with wsgi(application) as url:
        yield url


@pytest.fixture(scope="module")
def proxy(origin: str) -> Iterator[Ambassador]:
    """In front of `application`, with the defaults; `/flaky` is retried on 503."""
    routes = f"""\
        routes:
          - name: flaky
            match: {{path: /flaky}}
            to: {origin}
            retry: {{attempts: 2, when: [503], backoff: 1ms..2ms}}
          - name: everything
            to: {origin}
        """
    with ambassador(routes, workers=2) as running:
        yield running
