"""Header changes: order, case, duplicates, and what may not be touched."""

from __future__ import annotations

import pytest

from ambassador.messages import Fields, Reply, Request
from ambassador.proxy.framing import FRAMING
from ambassador.proxy.policies.headers import Changes, on_replies, shaper


def shaped(changes: Changes, fields: Fields, **params: str) -> Fields:
    request = Request("GET", b"/", [], 1)
    request.params = params
    hook = shaper(changes)
    assert hook is not None
    hook(request, fields)
    return fields


def test_nothing_to_change_is_no_hook() -> None:
    assert shaper(None) is None
    assert shaper(Changes()) is None


def test_set_replaces_every_spelling_and_keeps_the_rest_in_order() -> None:
    fields = [(b"A", b"1"), (b"x-tenant", b"evil"), (b"B", b"2"), (b"X-TENANT", b"evil"), (b"a", b"3")]
    assert shaped(Changes(set={"X-Tenant": "acme"}), fields) == [
        (b"A", b"1"),
        (b"B", b"2"),
        (b"a", b"3"),
        (b"X-Tenant", b"acme"),
    ]


def test_add_keeps_what_is_there() -> None:
    assert shaped(Changes(add={"x": "2"}), [(b"x", b"1")]) == [(b"x", b"1"), (b"x", b"2")]


def test_remove_then_set_then_add() -> None:
    changes = Changes(remove=("x", "Y"), set={"x": "set"}, add={"x": "{param.id}"})
    assert shaped(changes, [(b"X", b"1"), (b"y", b"1"), (b"z", b"1")], id="7") == [
        (b"z", b"1"),
        (b"x", b"set"),
        (b"x", b"7"),
    ]


def test_value_that_cannot_be_made_is_left_out_but_the_clients_own_is_gone() -> None:
    changes = Changes(set={"x-account": "{param.id}"})
    assert shaped(changes, [(b"x-account", b"forged")], id="a%0d%0ax-admin: 1") == []


def test_what_is_known_of_a_request_is_not_to_be_spoofed_by_a_twin() -> None:
    spoofed = [
        (b"X_Client", b"admin"),
        (b"x-client", b"admin"),
        (b"X-CLIENT", b"admin"),
        (b"x_other", b"kept"),
    ]
    for client, left in ((None, []), ("shop", [(b"x-client", b"shop")])):
        request = Request("GET", b"/", [], 1)
        request.client = client
        hook = shaper(Changes(set={"x-client": "{client}", "x-other": "constant"}))
        assert hook is not None
        fields = [*spoofed]
        hook(request, fields)
        assert fields == [(b"x_other", b"kept"), *left, (b"x-other", b"constant")]


def test_hook_of_constants_only_extends() -> None:
    fields: Fields = [(b"a", b"1")]
    assert shaped(Changes(add={"b": "2", "c": "3"}), fields) == [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]


@pytest.mark.parametrize("name", sorted(FRAMING))
def test_framing_headers_are_refused(name: str) -> None:
    for changes in (
        Changes(set={name.title(): "x"}),
        Changes(add={name: "x"}),
        Changes(remove=(name.upper(),)),
    ):
        assert len(list(changes.conflicts())) == 1
        with pytest.raises(ValueError, match="own"):
            shaper(changes)


def test_replies_are_changed_each_on_its_own() -> None:
    kept = [(b"location", b"/u")]
    made = on_replies(lambda _: Reply(302, kept, b"x"), Changes(set={"x-who": "{client}"}, remove=("x-b",)))
    for client in ("a", "b"):
        asks = Request("GET", b"/", [], 1)
        asks.client = client
        reply = made(asks)
        assert (reply.status, reply.body) == (302, b"x")
        assert reply.headers == [(b"location", b"/u"), (b"x-who", client.encode())]
    assert kept == [(b"location", b"/u")]


def test_replies_without_changes_are_made_as_before() -> None:
    def make(_: Request) -> Reply:
        return Reply(200, [])

    assert on_replies(make, None) is make
