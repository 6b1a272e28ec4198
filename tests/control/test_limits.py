"""What workers say of limits, added up."""

from __future__ import annotations

import msgspec

from ambassador.control.limits import (
    LimitView,
    LimitViews,
    PastCounts,
    PermitView,
    answer,
    counted,
    permit_answer,
    permits,
)
from ambassador.control.orders import Counted
from ambassador.proxy.limit_keys import MOST_TOLD, LimitStatus
from ambassador.proxy.policies.concurrency import PermitStatus


def a_status(
    name: str = "r/limit",
    key: str = "r",
    *,
    held: float = 0.0,
    left: float = 80.0,
    age_s: float | None = None,
    admitted: int = 0,
    limited: int = 0,
) -> LimitStatus:
    return LimitStatus(
        name=name,
        rate="100/s",
        burst=100,
        key=key,
        held=held,
        left=left,
        age_s=age_s,
        admitted=admitted,
        fallback=admitted // 10,
        credit=admitted // 6,
        limited=limited,
    )


def views_of(*workers: list[LimitStatus]) -> LimitViews:
    views = LimitViews()
    steps = sum(1 for _ in views.add(answer(each) for each in workers))
    assert steps == sum(map(len, workers))
    return views


def test_counts_are_added_and_the_youngest_answer_says_what_is_left() -> None:
    views = views_of(
        [a_status(held=2.5, left=80.0, admitted=30, limited=1)],
        [a_status(held=3.0, left=20.4, age_s=0.1, admitted=12, limited=2), a_status("@u/limit", "u")],
        [a_status(left=60.0, age_s=5.0)],
    )
    upstreams, route = views.views()
    assert (route.name, route.rate, route.burst, route.key) == ("r/limit", "100/s", 100, "r")
    assert (route.balance, route.admitted, route.limited, route.fallback) == (25, 42, 3, 4)
    assert route.credit == 7
    assert (upstreams.name, upstreams.balance) == ("@u/limit", 80)


def test_balance_is_never_more_than_the_burst() -> None:
    (view,) = views_of([a_status(held=30.0)], [a_status(held=30.0)]).views()
    assert view.balance == 100


def test_busiest_keys_come_first_and_not_all_are_told() -> None:
    keys = [a_status(key=f"k{number}", admitted=number) for number in range(MOST_TOLD)]
    more = [a_status(key=f"m{number}", limited=100 - number) for number in range(MOST_TOLD)]
    views = list(views_of(keys, more).views())
    assert [view.key for view in views] == [each.key for each in more]


def counts(generation: int, *statuses: LimitStatus) -> Counted:
    return Counted(generation=generation, lines=counted(list(statuses)))


def test_counts_of_workers_that_have_ended_stay_in_the_sums() -> None:
    past = PastCounts()
    past.fold(
        counts(1, a_status(held=9.0, left=0.0, age_s=0.0, admitted=30, limited=4), a_status(key="never"))
    )
    past.fold(counts(1, a_status(admitted=12), a_status("@u/limit", "u", admitted=1)))
    views = views_of([a_status(left=20.0, age_s=0.1, admitted=5)])
    assert sum(1 for _ in views.add_past(past.of(1))) == 2
    upstreams, route = views.views()
    assert (route.admitted, route.fallback, route.credit, route.limited) == (47, 4, 7, 4)
    assert route.balance == 20  # of the bucket only those know that live
    assert (upstreams.admitted, upstreams.balance) == (1, 100)


def test_counts_of_an_earlier_config_are_over() -> None:
    past = PastCounts()
    past.fold(counts(1, a_status(admitted=30)))
    assert not list(past.of(2))
    past.fold(counts(2, a_status(admitted=4)))
    past.fold(counts(1, a_status(admitted=30)))
    assert [each.admitted for each in past.of(2)] == [4]
    assert not list(past.of(1))


def test_past_keys_that_were_used_least_are_forgotten_first() -> None:
    past = PastCounts()
    past.fold(counts(1, *(a_status(key=str(number), admitted=number) for number in range(1, 10_002))))
    kept = [each.admitted for each in past.of(1)]
    assert len(kept) == 5000
    assert min(kept) == 5002


def of_permits(name: str, in_hand: int, in_use: int, queued: int = 0, *, limit: int = 100) -> PermitStatus:
    return PermitStatus(
        name=name, key=name[0], most=100, limit=limit, in_hand=in_hand, in_use=in_use, queued=queued,
        admitted=in_use + 2, limited=1,
    )  # fmt: skip


def test_permits_are_added_and_the_limit_is_as_who_has_some_knows_it() -> None:
    workers = [
        [of_permits("r/concurrency", 0, 0), of_permits("a/concurrency", 1, 1)],
        [of_permits("r/concurrency", 30, 29, 2, limit=40)],
        [of_permits("r/concurrency", 10, 10, 3, limit=41)],
    ]
    assert permits(map(permit_answer, workers)) == [
        PermitView(
            name="a/concurrency", key="a", balance=99, admitted=3, limited=1,
            max=100, limit=100, in_use=1, queued=0,
        ),
        PermitView(
            name="r/concurrency", key="r", balance=1, admitted=45, limited=3,
            max=100, limit=40, in_use=39, queued=5,
        ),
    ]  # fmt: skip
    assert permits([permit_answer([])]) == []


def test_permits_have_every_key_of_a_limit_and_no_less_than_nothing_left() -> None:
    (view,) = permits([permit_answer([of_permits("r/concurrency", 5, 12, limit=10)])])  # the limit has shrunk
    told = msgspec.to_builtins(view)
    assert set(LimitView.__struct_fields__) - {"fallback", "credit"} <= set(told)
    assert (told["rate"], told["burst"], told["balance"]) == (None, None, 0)
