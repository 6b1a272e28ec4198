"""What many tests of the data plane begin with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.proxy.harness import Origin


@pytest.fixture
def origin() -> Iterator[Origin]:
    """An origin that the test itself answers for."""
    origin = Origin()
    yield origin
    origin.close()
