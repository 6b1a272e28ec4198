from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.state.backends import OPENERS, Backend


@pytest.fixture(params=sorted(OPENERS))
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """A store of each kind, old and empty."""
    with OPENERS[request.param]() as opened:
        yield opened


@pytest.fixture
def stepping(backend: Backend) -> Backend:
    """Those whose clock may be moved by any distance."""
    if not backend.steps_freely:
        pytest.skip("this store's clock is real")
    return backend
