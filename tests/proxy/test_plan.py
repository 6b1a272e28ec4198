"""What a route is at run time."""

from __future__ import annotations

from random import Random

import pytest

from ambassador.errors import NoEndpoint
from ambassador.proxy.plan import RoutePlan, Timeouts, Upstream
from ambassador.proxy.upstream.endpoint import Endpoint
from tests.proxy.harness import Counts

TIMEOUTS = Timeouts(connect=1, first_byte=2, per_try=3, total=4, total_body=5, idle=6)


def endpoint(number: int) -> Endpoint:
    return Endpoint(f"http://e{number}:80", host=f"e{number}", port=80)


def test_upstream_picks_the_less_loaded_of_two() -> None:
    busy, free = endpoint(1), endpoint(2)
    busy.inflight = 3
    upstream = Upstream("u", [busy, free], Random(1).random)
    assert {upstream.pick(()) for _ in range(20)} == {free}
    assert upstream.pick((free,)) is busy


def test_upstream_without_endpoints_has_none_to_pick() -> None:
    with pytest.raises(NoEndpoint):
        Upstream("u", [], Random(1).random).pick(())


def test_plan_does_nothing_that_it_was_not_given() -> None:
    plan = RoutePlan("r", upstream=None, timeouts=TIMEOUTS, retry=None, metrics=Counts())
    assert (plan.admit, plan.shape_request, plan.shape_response) == ((), (), ())
    assert (plan.rewrite, plan.host, plan.map_location, plan.keep_host) == (None, None, None, False)
