"""The generator of TLS connections: what it tells is believed only when its handshakes were of the kind asked for."""

import pytest

from loadtest import handshakes, wrk
from loadtest.scenarios import SCENARIOS

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
TOLD = {"requests": 100.0, "duration_s": 2.0, "p50_s": 0.01, "p99_s": 0.02, "failed": 3.0}


@pytest.mark.parametrize(("name", "resumed"), [("handshakes", 0), ("handshakes-resumed", 92)])
def test_result_has_what_was_told(name: str, resumed: int) -> None:
    found = handshakes.result({**TOLD, "resumed": resumed}, BY_NAME[name])
    assert (found.requests, found.duration_s, found.p50_s, found.p99_s) == (100, 2.0, 0.01, 0.02)
    assert found.errors == 3


@pytest.mark.parametrize(("name", "resumed"), [("handshakes", 1), ("handshakes-resumed", 91)])
def test_result_of_other_handshakes_is_refused(name: str, resumed: int) -> None:
    with pytest.raises(wrk.WrkError, match=f"{resumed} of 100 handshakes were resumed"):
        handshakes.result({**TOLD, "resumed": resumed}, BY_NAME[name])
