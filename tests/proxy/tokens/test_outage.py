"""A token service that is down is asked now and then, and not for every token."""

from __future__ import annotations

from ambassador.proxy.tokens.answer import CONNECT, REFUSED, Failure, Granted
from ambassador.proxy.tokens.outage import TRUST, Outage

DOWN = Failure(CONNECT, "cannot connect")


def broken() -> Outage:
    outage = Outage()
    for _ in range(TRUST):
        assert outage.refusal(100.0) is None
        outage.heard(DOWN, 100.0, 0.5)
    return outage


def test_outage_is_known_after_three_questions_without_an_answer() -> None:
    refusal = broken().refusal(101.0)
    assert refusal is not None
    assert (refusal.result, refusal.why) == (CONNECT, "cannot connect")
    assert refusal.after_s == 2.5


def test_outage_lets_one_question_try_again_after_a_pause() -> None:
    outage = broken()
    assert outage.refusal(104.0) is None
    assert outage.refusal(104.0) is not None
    outage.heard(DOWN, 104.5, 0.5)
    assert outage.refusal(110.0) is not None
    assert outage.refusal(112.0) is None
    outage.heard(Granted("t", 1.0), 112.5, 0.5)
    assert outage.refusal(112.5) is None
    assert outage.refusal(112.5) is None


def test_question_that_tried_again_and_never_ended_is_followed_by_another() -> None:
    outage = broken()
    assert outage.refusal(104.0) is None
    assert outage.refusal(200.0) is None


def test_refusal_of_a_token_is_an_answer() -> None:
    outage = Outage()
    for _ in range(10):
        outage.heard(Failure(REFUSED, "answered 400: invalid_grant", "invalid_grant"), 0.0, 0.5)
        assert outage.refusal(0.0) is None
    outage = broken()
    outage.heard(Failure(REFUSED, "answered 400"), 105.0, 0.5)
    assert outage.refusal(105.0) is None
