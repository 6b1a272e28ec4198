"""A token service that is down is asked now and then, and not for every token."""

from __future__ import annotations

import pytest

from ambassador.proxy.tokens.answer import CONNECT, FAILED, REFUSED, TIMEOUT, Failure, Granted
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
    assert outage.refusal(112.0, "another") is None
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


STUMBLED = Failure(FAILED, "answered 500")


def test_failures_of_one_callers_tokens_leave_the_others_alone() -> None:
    outage = Outage()
    for _ in range(100):
        outage.heard(STUMBLED, 50.0, 0.5, "mallory")
    assert outage.refusal(50.0, "alice") is None


def test_failures_answered_to_several_callers_in_a_row_are_an_outage() -> None:
    outage = Outage()
    for caller in ("alice", "bob", "carol"):
        assert outage.refusal(50.0, "dave") is None
        outage.heard(STUMBLED, 50.0, 0.5, caller)
    assert outage.refusal(50.5, "dave") is not None


@pytest.mark.parametrize("failure", [STUMBLED, Failure(TIMEOUT, "no answer")])
def test_service_that_answers_others_is_not_down(failure: Failure) -> None:
    outage = Outage()
    for now in range(20):
        outage.heard(Granted("t", 1.0), now, 0.5, "alice")
        for caller in ("bob", "carol", "dave", "erin"):
            outage.heard(failure, now + 0.5, 0.5, caller)
        assert outage.refusal(now + 0.5, "frank") is None


def test_answer_begins_the_count_of_callers_again() -> None:
    outage = Outage()
    outage.heard(STUMBLED, 50.0, 0.5, "alice")
    outage.heard(STUMBLED, 50.0, 0.5, "bob")
    outage.heard(Granted("t", 1.0), 50.0, 0.5, "carol")
    outage.heard(STUMBLED, 60.0, 0.5, "dave")
    assert outage.refusal(60.0, "erin") is None


def test_service_without_answers_in_time_is_down() -> None:
    outage = Outage()
    for _ in range(TRUST):
        outage.heard(Failure(TIMEOUT, "no answer"), 50.0, 0.5, "alice")
    assert outage.refusal(50.0, "alice") is not None


def test_caller_that_tried_last_lets_others_try_first() -> None:
    outage = broken()
    assert outage.refusal(104.0, "mallory") is None
    outage.heard(STUMBLED, 104.0, 1.0, "mallory")
    assert outage.refusal(112.0, "mallory") is not None
    assert outage.refusal(112.0, "alice") is None


def test_failures_of_many_tokens_do_not_fill_the_log() -> None:
    outage = Outage()
    assert [now for now in range(50, 75) if outage.may_tell(now)] == [50, 60, 70]


def test_caller_without_others_tries_again_a_little_later() -> None:
    outage = broken()
    assert outage.refusal(104.0, "alice") is None
    outage.heard(DOWN, 104.0, 1.0, "alice")
    refusal = outage.refusal(112.0, "alice")
    assert refusal is not None
    assert refusal.after_s == 4.0
    assert outage.refusal(116.0, "alice") is None


def test_what_was_asked_before_the_pause_does_not_make_it_longer() -> None:
    outage = broken()
    for _ in range(20):
        outage.heard(DOWN, 101.0, 0.5, asked_at=95.0)
    assert outage.refusal(104.0, "alice") is None
    outage.heard(DOWN, 104.5, 0.5, asked_at=99.0)
    outage.heard(DOWN, 105.0, 1.0, "alice", asked_at=104.0)
    refusal = outage.refusal(105.0, "bob")
    assert refusal is not None
    assert refusal.after_s == 8.0


def test_question_that_hangs_says_nothing_if_others_got_answers_meanwhile() -> None:
    outage = Outage()
    outage.heard(Granted("t", 1.0), 51.0, 0.5, "alice")
    for _ in range(TRUST):
        outage.heard(Failure(TIMEOUT, "no answer"), 60.0, 0.5, "mallory", asked_at=50.0)
    assert outage.refusal(60.0, "bob") is None
