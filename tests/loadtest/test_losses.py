from __future__ import annotations

import pytest

from loadtest.losses import Death, Request, measure_return


def test_return_is_measured_from_the_first_answer_of_an_endpoint() -> None:
    requests = [
        Request(9.0, 9.1, 503),
        Request(9.9, 10.2, 200),  # was waiting for an endpoint
        Request(10.1, 10.3, 503),
        Request(10.2, 10.25, 0),
        Request(10.4, 10.5, 200),
    ]
    outage = measure_return(requests, answered_at=10.0, healthy_at=11.0)
    assert [outage.back_s, outage.clean_s, outage.healthy_s] == pytest.approx([0.2, 0.3, 1.0])
    assert "answered 200 ms after" in outage.text()
    assert "the last refusal 300 ms after" in outage.text()


def test_return_without_a_refusal_says_so() -> None:
    outage = measure_return([Request(10.0, 10.1, 200)], answered_at=10.0, healthy_at=10.5)
    assert "none refused" in outage.text()


def test_death_says_how_many_failed() -> None:
    assert "0 of 7 requests failed" in Death(requests=7, failed=0, slowest_s=0.01).text()
