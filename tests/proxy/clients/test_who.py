from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ambassador.messages import Request
from ambassador.observe.metrics import REFUSALS
from ambassador.proxy.clients.key_sets import COOL_DOWN_S
from ambassador.proxy.clients.who import DOUBTS
from tests.proxy.clients import tokens
from tests.proxy.clients.tokens import ATTACKS
from tests.proxy.clients.world import NOW, TOKEN_CLIENT, Conn, World, bearer


def basic(pair: bytes) -> tuple[bytes, bytes]:
    return (b"authorization", b"Basic " + base64.b64encode(pair))


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("A", "B"):
        monkeypatch.setenv(f"WHO_{name}", f"key-{name}")


def test_doubts_are_what_is_counted() -> None:
    assert (*DOUBTS, "forbidden") == REFUSALS


def test_token_may_have_spaces_around_it() -> None:
    name, _ = bearer(b"")
    found = World(TOKEN_CLIENT).find((name, b"Bearer   " + tokens.sign(NOW) + b"  "))
    assert found.doubt is None
    assert found.name is not None


@pytest.mark.parametrize(("name", "make", "doubt"), ATTACKS, ids=[name for name, _, _ in ATTACKS])
def test_no_attack_on_tokens_gets_through(name: str, make: Callable[[float], bytes], doubt: str) -> None:
    found = World(TOKEN_CLIENT).find(bearer(make(NOW)))
    assert (found.name, found.doubt, found.proof) == (None, doubt, ())


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        ("rsa", "RS256"),
        ("rsa", "RS512"),
        ("rsa", "PS384"),
        ("ec", "ES256"),
        ("ed", "EdDSA"),
        ("ed", "Ed25519"),
    ],
)
def test_a_good_token_proves_its_client(key: str, algorithm: str) -> None:
    found = World(TOKEN_CLIENT).find(bearer(tokens.sign(NOW, key=key, algorithm=algorithm)))
    assert (found.name, found.doubt, found.proof, found.spent) == (
        "a", None, (b"authorization",), (b"authorization",),
    )  # fmt: skip


def test_an_algorithm_that_the_config_leaves_out_is_not_taken() -> None:
    world = World(TOKEN_CLIENT.replace("claims:", "algorithms: [ES256], claims:"))
    assert world.find(bearer(tokens.sign(NOW))).doubt == "algorithm"
    assert world.find(bearer(tokens.sign(NOW, key="ec", algorithm="ES256"))).name == "a"


def test_the_first_client_in_the_file_has_a_token_that_is_of_several() -> None:
    both = TOKEN_CLIENT + TOKEN_CLIENT.replace("  a:", "  b:").replace("sub: svc-a", "scope: read")
    world = World(both)
    assert world.find(bearer(tokens.sign(NOW))).name == "a"
    assert world.find(bearer(tokens.sign(NOW, sub="svc-x"))).name == "b"


def test_a_token_in_a_header_of_its_own() -> None:
    world = World(TOKEN_CLIENT.replace("claims:", "header: x-token, claims:"))
    token = tokens.sign(NOW)
    assert world.find((b"X-Token", token)).name == "a"
    assert world.find(bearer(token)).name is None


KEYS = "  a: {api_key: 'env:WHO_A'}\n  b: {api_key: {header: x-other, keys: ['env:WHO_B']}, forward: true}\n"


def test_an_api_key_proves_its_client() -> None:
    world = World(KEYS)
    assert world.find((b"X-API-Key", b" key-A ")).name == "a"
    assert world.find((b"x-other", b"key-B")).name == "b"
    assert world.find((b"x-api-key", b"key-B")).doubt == "unknown"
    assert world.find((b"x-api-key", b"")).doubt == "unknown"
    assert world.find().doubt is None


def test_what_proved_the_client_does_not_go_on_unless_it_may() -> None:
    world = World(KEYS)
    other = (b"Authorization", b"Bearer of-the-upstream")
    request = world.request((b"X-Api-Key", b"key-A"), other, (b"a", b"b"))
    assert world.clients.identify(request, Conn(), world.wall_s) is None
    assert (request.client, request.passing) == ("a", [other, (b"a", b"b")])
    assert request.lines == b"Authorization: Bearer of-the-upstream\r\na: b\r\n"
    assert len(request.headers) == 3
    request = world.request((b"X-Other", b"key-B"))
    assert world.clients.identify(request, Conn(), world.wall_s) is None
    assert (request.client, request.passing) == ("b", [(b"X-Other", b"key-B")])
    assert world.asked == ["a", "b"]


def test_what_proves_nothing_goes_on_as_it_came() -> None:
    world = World(KEYS)
    fields = [(b"X-Api-Key", b"another's"), (b"authorization", b"Bearer x")]
    request = world.request(*fields)
    assert world.clients.identify(request, Conn(), world.wall_s) is None
    assert (request.client, request.doubt, request.passing) == (None, "unknown", fields)
    assert world.asked == []


def test_a_field_that_is_there_twice_proves_nothing() -> None:
    world = World(KEYS)
    for second in (b"key-A", b"x"):
        found = world.find((b"x-api-key", b"key-A"), (b"X-Api-Key", second))
        assert (found.name, found.doubt, found.spent) == (None, "malformed", (b"x-api-key",))
    found = world.find((b"x-api-key", b"x"), (b"X-Api-Key", b"y"))
    assert (found.name, found.doubt, found.spent) == (None, "malformed", ())


def test_what_would_prove_a_client_does_not_go_on_in_other_shapes() -> None:
    world = World(KEYS)
    rest = (b"a", b"b")
    key = (b"X-Api-Key", b"key-A")
    for fields, name in (
        ([key, (b"x-api-key", b"other")], None),
        ([key, key], None),
        ([(b"X_Api_Key", b"key-A")], None),
        ([key, (b"x_api_key", b"key-A")], "a"),
        ([key, (b"x-api_key", b"anything")], "a"),
    ):
        for _ in range(2):  # the second is remembered
            request = world.request(*fields, rest)
            world.clients.identify(request, Conn(), world.wall_s)
            assert (request.client, request.passing) == (name, [rest])
    request = world.request((b"x_api_key", b"another's"), rest)
    world.clients.identify(request, Conn(), world.wall_s)
    assert request.passing == [(b"x_api_key", b"another's"), rest]


@pytest.mark.parametrize("header", ["x_token", "x-token", "x_long-token_name", "a_b_c_d_e_f_g"])
def test_key_does_not_go_on_in_another_spelling_of_its_header(header: str) -> None:
    world = World(f"  a: {{api_key: {{header: {header}, keys: 'env:WHO_A'}}}}\n")
    rest = (b"a", b"b")
    own = header.encode()
    for twin in {own.replace(b"_", b"-"), own.replace(b"-", b"_")} - {own}:
        for fields, name in (
            ([(own, b"key-A")], "a"),
            ([(own, b"key-A"), (twin, b"other")], "a"),
            ([(twin.upper(), b"key-A")], None),
        ):
            request = world.request(*fields, rest)
            world.clients.identify(request, Conn(), world.wall_s)
            assert (request.client, request.passing) == (name, [rest])


def test_each_of_two_clients_has_its_spelling_of_a_header() -> None:
    world = World(
        "  a: {api_key: {header: x_token, keys: 'env:WHO_A'}}\n  b: {api_key: {header: x-token, keys: 'env:WHO_B'}}\n"
    )
    assert world.find((b"x_token", b"key-A")).name == "a"
    assert world.find((b"x-token", b"key-B")).name == "b"
    assert world.find((b"x-token", b"key-A")).name is None


def test_two_clients_at_once_are_none() -> None:
    found = World(KEYS).find((b"x-api-key", b"key-A"), (b"x-other", b"key-B"))
    assert (found.name, found.doubt) == (None, "ambiguous")
    assert set(found.spent) == {b"x-api-key", b"x-other"}


def test_two_proofs_of_one_client_are_fine() -> None:
    world = World("  a: {api_key: 'env:WHO_A', basic: {user: a, password: 'env:WHO_B'}}\n")
    found = world.find((b"x-api-key", b"key-A"), basic(b"a:key-B"))
    assert (found.name, set(found.spent)) == ("a", {b"x-api-key", b"authorization"})


def test_user_and_password_prove_their_client() -> None:
    world = World("  a: {basic: {user: me, password: 'env:WHO_A'}}\n")
    assert world.find(basic(b"me:key-A")).name == "a"
    for wrong in (b"me:key-B", b"Me:key-A", b"me:", b":key-A", b"me:key-A:"):
        assert world.find(basic(wrong)).doubt == "unknown"
    assert world.find((b"authorization", b"Basic !!!")).doubt == "malformed"
    assert world.find((b"authorization", b"Digest x")).doubt == "unknown"


EVERY = (
    "  said: {api_key: 'env:WHO_A'}\n  shown: {mtls: {san: ['spiffe://t/ns/*', '*.internal']}}\n"
    "  there: {network: [10.0.0.0/8]}\n  nearer: {network: [10.1.0.0/16]}\n"
)
SHOWN = (("URI", "spiffe://t/ns/a"),)


def test_what_is_said_comes_before_what_is_shown_and_that_before_where_it_comes_from() -> None:
    world = World(EVERY)
    key = (b"x-api-key", b"key-A")
    assert world.find(key, ip="10.0.0.1", sans=SHOWN).name == "said"
    assert world.find(ip="10.0.0.1", sans=SHOWN).name == "shown"
    assert world.find(ip="10.0.0.1").name == "there"
    assert world.find(ip="10.1.0.1").name == "nearer"
    assert world.find(ip="11.0.0.1").name is None
    assert world.find(ip="").name is None


def test_a_certificate_proves_its_client_as_long_as_it_is_good() -> None:
    world = World(EVERY)
    conn = Conn(*SHOWN)
    conn.validity = (NOW - 10, NOW + 10)

    def shown() -> tuple[str | None, str | None]:
        found = world.clients.find([], conn, "", world.wall_s)
        return found.name, found.doubt

    assert shown() == ("shown", None)
    world.wall = NOW + 10
    assert shown() == (None, "expired")
    world.wall = NOW - 11
    assert shown() == (None, "early")


def test_a_certificate_of_nobody_is_not_known() -> None:
    found = World(EVERY).find(sans=(("DNS", "stranger.test"),))
    assert (found.name, found.doubt) == (None, "unknown")


def test_a_wrong_credential_takes_nothing_away() -> None:
    world = World(EVERY)
    found = world.find((b"x-api-key", b"wrong"), ip="10.0.0.1")
    assert (found.name, found.spent) == ("there", ())


def test_secrets_are_taken_up_when_they_change(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("one\n")
    world = World(f"  a: {{api_key: 'file:{file}'}}\n")
    assert world.find((b"x-api-key", b"one")).name == "a"
    file.write_text("two\n")
    world.secrets.refresh()
    world.clients.refresh()
    assert world.find((b"x-api-key", b"one")).doubt == "unknown"
    assert world.find((b"x-api-key", b"two")).name == "a"
    file.unlink()
    world.secrets.refresh()
    world.clients.refresh()
    assert world.find((b"x-api-key", b"two")).name == "a"


class Resting:
    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    async def rest(self, until: float) -> None:
        self._then()

    def wake(self) -> None:
        pass


async def test_identify_waits_for_keys_that_are_not_at_hand() -> None:
    world = World(TOKEN_CLIENT, fed=False)
    request = world.request(bearer(tokens.sign(NOW)))
    request.waiter = Resting(lambda: world.feed(tokens.jwks()))
    waiting = world.clients.identify(request, Conn(), world.wall_s)
    assert waiting is not None
    await waiting
    assert (request.client, request.passing, world.asked) == ("a", [], ["a"])


async def test_identify_waits_for_a_new_key_once_in_a_while() -> None:
    world = World(TOKEN_CLIENT)
    world.feed(tokens.jwks("ec"))

    def identified(then: Callable[[], None]) -> Request:
        request = world.request(bearer(tokens.sign(NOW)))
        request.waiter = Resting(then)
        return request

    request = identified(lambda: None)
    assert world.clients.identify(request, Conn(), world.wall_s) is None
    assert (request.client, request.doubt) == (None, "key")
    world.clock.now += COOL_DOWN_S
    request = identified(lambda: world.feed(tokens.jwks()))
    waiting = world.clients.identify(request, Conn(), world.wall_s)
    assert waiting is not None
    await waiting
    assert request.client == "a"


@pytest.mark.parametrize(("published", "named"), [(None, "rsa-1"), ("rsa-1", None)])
async def test_identify_waits_for_a_key_that_may_have_been_replaced_under_no_name(
    published: str | None, named: str | None
) -> None:
    world = World(TOKEN_CLIENT)
    world.feed(json.dumps({"keys": [tokens.jwk("thief", kid=published)]}).encode())
    world.clock.now += COOL_DOWN_S
    request = world.request(bearer(tokens.sign(NOW, headers={"kid": named})))
    request.waiter = Resting(
        lambda: world.feed(json.dumps({"keys": [tokens.jwk("rsa", kid=published)]}).encode())
    )
    waiting = world.clients.identify(request, Conn(), world.wall_s)
    assert waiting is not None
    await waiting
    assert request.client == "a"


def test_identify_does_not_wait_where_the_key_is_known_by_name() -> None:
    world = World(TOKEN_CLIENT)
    world.clock.now += COOL_DOWN_S
    request = world.request(bearer(tokens.sign(NOW, key="thief", headers={"kid": "rsa-1"})))
    request.waiter = Resting(lambda: None)
    assert world.clients.identify(request, Conn(), world.wall_s) is None
    assert request.doubt == "signature"


def test_identify_decides_at_once_where_nobody_can_wait() -> None:
    world = World(TOKEN_CLIENT, fed=False)
    request = world.request(bearer(tokens.sign(NOW)))
    assert world.clients.identify(request, Conn(), world.wall_s) is None
    assert request.doubt == "keys_away"


EVERYTHING = (
    "  k: {api_key: 'env:WHO_A'}\n  j: {api_key: {header: authorization, keys: 'env:WHO_B'}}\n"
    "  p: {basic: {user: u, password: 'env:WHO_A'}}\n" + TOKEN_CLIENT
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"x-api-key", b"Authorization", b"AUTHORIZATION", b"x-other"]),
            st.one_of(
                st.binary(max_size=40),
                st.binary(max_size=40).map(lambda rest: b"Bearer " + rest),
                st.binary(max_size=40).map(lambda rest: b"Basic " + base64.b64encode(rest)),
                st.sampled_from([b"key-A", b"key-B", b"Bearer key-B", b"Basic dTprZXktQQ=="]),
            ),
        ),
        max_size=4,
    )
)
@settings(max_examples=200)
def test_whatever_is_said_is_one_client_or_a_doubt(fields: list[tuple[bytes, bytes]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("A", "B"):
            patch.setenv(f"WHO_{name}", f"key-{name}")
        found = World(EVERYTHING, fed=False).find(*fields)
    good = {
        (name.lower(), client)
        for name, value in fields
        for proof, client in (
            ((b"x-api-key", b"key-A"), "k"),
            ((b"authorization", b"key-B"), "j"),
            ((b"authorization", b"Bearer key-B"), "j"),
            ((b"authorization", b"Basic dTprZXktQQ=="), "p"),
        )
        if (name.lower(), value.strip(b" \t")) == proof
        and sum(other.lower() == name.lower() for other, _ in fields) == 1
    }
    clients = {client for _, client in good}
    if len(clients) == 1:
        assert (found.name, found.doubt) == (clients.pop(), None)
        assert {name for name, _ in good} <= set(found.spent) <= {name.lower() for name, _ in fields}
    else:
        assert found.name is None
        assert (found.doubt == "ambiguous") is (len(clients) > 1)
        assert found.doubt is None or found.doubt in DOUBTS
