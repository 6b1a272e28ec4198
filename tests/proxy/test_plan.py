"""What a route is at run time."""

from __future__ import annotations

from ambassador.proxy.plan import RoutePlan, Timeouts
from tests.proxy.harness import Counts

TIMEOUTS = Timeouts(connect=1, first_byte=2, per_try=3, total=4, total_body=5, idle=6)


def test_plan_does_nothing_that_it_was_not_given() -> None:
    plan = RoutePlan("r", upstream=None, timeouts=TIMEOUTS, retry=None, metrics=Counts())
    assert (plan.admit, plan.shape_request, plan.shape_response) == ((), (), ())
    assert (plan.rewrite, plan.host, plan.map_location, plan.keep_host) == (None, None, None, False)
