"""What is told of sets of keys, from what each worker says of those that it cannot read."""

from __future__ import annotations

from ambassador.config.load import load_text
from ambassador.control.key_set_status import KeySetStatus, key_set_statuses
from ambassador.control.orders import KeySetTrouble

CONFIG = load_text("""\
version: 1
listen: 127.0.0.1:0
routes: [{name: r, respond: 204}]
clients:
  shop: {jwt: {issuer: a, jwks: "https://id.test/jwks?key=CANARY"}}
  till: {jwt: {issuer: b, jwks: "https://id.test/jwks?key=CANARY"}}
  file: {jwt: {issuer: c, jwks: /etc/jwks}}
  near: {network: [10.0.0.0/8]}
""")
URL = "https://id.test:443/jwks"


def test_key_sets_are_up_where_no_worker_says_otherwise() -> None:
    assert list(key_set_statuses(CONFIG, [{}, {}])) == [
        KeySetStatus(client="shop", source=URL),
        KeySetStatus(client="till", source=URL),
        KeySetStatus(client="file", source="file:/etc/jwks"),
    ]
    assert all(each.up for each in key_set_statuses(CONFIG, []))


def test_key_set_is_down_for_all_its_clients_while_one_worker_cannot_read_it() -> None:
    told = key_set_statuses(CONFIG, [{}, {"shop": KeySetTrouble(5.0, "gone", True)}])
    assert [(each.client, each.up, each.since, each.problem) for each in told] == [
        ("shop", False, 5.0, "gone"),
        ("till", False, 5.0, "gone"),
        ("file", True, None, None),
    ]


def test_key_set_is_told_of_by_the_worker_that_misses_it_longest() -> None:
    beats = [
        {"file": KeySetTrouble(9.0, "late", False)},
        {"file": KeySetTrouble(5.0, "early", True)},
        {"file": KeySetTrouble(7.0, "between", True), "gone": KeySetTrouble(1.0, "removed meanwhile", True)},
    ]
    *_, told = key_set_statuses(CONFIG, beats)
    assert told == KeySetStatus(
        client="file", source="file:/etc/jwks", up=False, since=5.0, problem="early", has_keys=False
    )
