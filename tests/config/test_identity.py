"""Who would be known, as `explain` and `check` tell it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ambassador.config.explain import Explanation, explain, render
from ambassador.config.identity import credential_headers, identifier, secret_values
from ambassador.config.load import load_string, load_text
from ambassador.config.schema import Config
from tests.proxy.clients import tokens

NOW = 1_800_000_000.0


def config(clients: str, route: str = "access: [a]", listen: str = "127.0.0.1:80") -> Config:
    return load_text(
        f"version: 1\nlisten: {listen}\nclients: {clients}\nroutes: [{{name: r, to: 'http://u', {route}}}]"
    )


def explained(made: Config, *headers: tuple[str, str]) -> tuple[Explanation, dict[str, str]]:
    explanation = explain(made, "GET", "http://h/", headers, identify=identifier(made, lambda: NOW))
    return explanation, {line.what: line.text for line in explanation.lines}


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ID_A", "canary-a")
    monkeypatch.setenv("ID_B", "canary-b")
    monkeypatch.delenv("ID_GONE", raising=False)


def test_a_known_client_that_may_call() -> None:
    explanation, lines = explained(config("{a: {api_key: 'env:ID_A'}}"), ("X-API-Key", "canary-a"))
    assert lines["client"] == "a, by x-api-key, which does not go on to the upstream"
    assert lines["access"] == "a may call, of a"
    assert explanation.code is None
    assert "canary" not in render(explanation)
    assert explanation.headers == (("X-API-Key", "***"),)


def test_a_known_client_that_may_not_call() -> None:
    made = config("{a: {api_key: 'env:ID_A'}, b: {api_key: 'env:ID_B', forward: true}}")
    explanation, lines = explained(made, ("x-api-key", "canary-b"))
    assert lines["client"] == "b, by x-api-key, which goes on to the upstream"
    assert lines["access"] == "403 forbidden: client 'b' may not call this route; for a"
    assert (explanation.route, explanation.status, explanation.code) == ("r", 403, "forbidden")


def test_nobody_known() -> None:
    made = config("{a: {api_key: 'env:ID_A', network: [10.0.0.0/8]}}")
    explanation, lines = explained(made, ("x-api-key", "guess"))
    assert lines["client"] == "nobody known (unknown); by certificate or address it may be a"
    assert explanation.code == "unauthenticated"
    assert "guess" not in render(explanation)


def test_a_secret_that_cannot_be_read_leaves_open_who_asks() -> None:
    made = config("{a: {api_key: ['env:ID_A', 'env:ID_GONE']}}")
    explanation, lines = explained(made, ("x-api-key", "guess"))
    assert lines["client"] == (
        "not known here: 1 secret of clients cannot be read; where they can, ask with -c FILE"
    )
    assert lines["access"] == "for a; whether that is who asks is not known here"
    assert (explanation.route, explanation.code, explanation.status) == ("r", None, None)
    assert explained(made, ("x-api-key", "canary-a"))[1]["client"].startswith("a, by x-api-key")
    assert explained(made)[0].code == "unauthenticated", "who shows nothing is nobody"


def test_a_token_whose_keys_are_at_hand(tmp_path: Path) -> None:
    file = tmp_path / "jwks"
    file.write_bytes(tokens.jwks())
    made = config(f"{{a: {{jwt: {{issuer: '{tokens.ISSUER}', jwks: '{file}'}}}}}}")
    good = ("authorization", "Bearer " + tokens.sign(NOW).decode())
    assert explained(made, good)[1]["client"].startswith("a, by authorization")
    late = ("authorization", "Bearer " + tokens.sign(NOW, exp=int(NOW) - 100).decode())
    assert explained(made, late)[1]["client"] == "nobody known (expired)"


def test_a_token_whose_keys_are_elsewhere() -> None:
    made = config(f"{{a: {{jwt: {{issuer: '{tokens.ISSUER}', jwks: 'https://id.test/jwks'}}}}}}")
    token = ("authorization", "Bearer " + tokens.sign(NOW).decode())
    _, lines = explained(made, token)
    assert lines["client"] == "a, if the token's signature holds: its keys are not at hand here"
    assert lines["access"] == "a may call, of a"
    late = ("authorization", "Bearer " + tokens.sign(NOW, exp=int(NOW) - 100).decode())
    assert explained(made, late)[1]["client"] == "nobody known (keys_away)"


def test_a_key_file_that_cannot_be_read_is_like_one_that_is_elsewhere(tmp_path: Path) -> None:
    made = config(f"{{a: {{jwt: {{issuer: '{tokens.ISSUER}', jwks: '{tmp_path}/gone'}}}}}}")
    token = ("authorization", "Bearer " + tokens.sign(NOW).decode())
    assert "not at hand" in explained(made, token)[1]["client"]


def test_routes_are_chosen_by_client() -> None:
    made = config("{a: {api_key: 'env:ID_A'}}", "match: {client: a}")
    explanation, _ = explained(made, ("x-api-key", "canary-a"))
    assert (explanation.route, explanation.matched) == ("r", "host *, client a")
    explanation, _ = explained(made)
    assert explanation.route is None
    assert explanation.considered[0].why_not == "client a"


def test_without_clients_nobody_is_looked_for() -> None:
    assert identifier(load_text("version: 1\nlisten: 127.0.0.1:80\nroutes: []")) is None


def test_credential_headers_are_those_of_the_config() -> None:
    made = config("{a: {api_key: {header: X-Key, keys: 'env:ID_A'}, jwt: {issuer: i, jwks: /j}}}")
    assert credential_headers(made) == {"x-key", "authorization"}


def test_secret_values_are_those_that_can_be_read() -> None:
    made = config("{a: {api_key: ['env:ID_A', 'env:ID_GONE']}, b: {basic: {user: u, password: 'env:ID_B'}}}")
    assert list(secret_values(made)) == [("a", "x-api-key", "env:ID_A", "canary-a")]


def warnings(text: str) -> list[str]:
    loaded = load_string(text)
    assert not loaded.errors, [str(problem) for problem in loaded.errors]
    return [str(problem).removeprefix("-:") for problem in loaded.warnings]


HEAD = "version: 1\nlisten: 127.0.0.1:80\nroutes: [{name: r, to: 'http://u', access: ['*']}]\n"


def test_the_same_key_of_two_clients_is_told_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ID_B", "canary-a")
    assert warnings(HEAD + "clients: {a: {api_key: 'env:ID_A'}, b: {api_key: 'env:ID_B'}}") == [
        "4:50: warning: clients.b.api_key: env:ID_B holds the same key as client 'a' has, who it is then"
    ]


@pytest.mark.parametrize(
    ("clients", "warning"),
    [
        ("{a: {api_key: 'env:ID_GONE'}}", "the variable 'ID_GONE' is not set here"),
        ("{a: {basic: {user: u, password: 'env:ID_GONE'}}}", "the variable 'ID_GONE' is not set here"),
        ("{a: {jwt: {issuer: i, audience: b, jwks: /nowhere/jwks}}}", "'/nowhere/jwks' cannot be read here"),
        ("{a: {jwt: {issuer: i, audience: b, jwks: /dev/zero}}}", "'/dev/zero' is not a file"),
        ("{a: {jwt: {issuer: i, audience: b, jwks: /proc/self/status}}}", "is no JSON object"),
        ("{a: {jwt: {issuer: i, jwks: 'https://id.test'}}}", "takes every token of the issuer"),
        ("{a: {mtls: {san: [a.test]}}}", "no listener verifies clients' certificates"),
    ],
)
def test_what_a_client_may_lack_is_told(clients: str, warning: str) -> None:
    (told,) = warnings(HEAD + f"clients: {clients}")
    assert warning in told


def test_a_route_for_anybody_beside_others_is_told() -> None:
    text = (
        "version: 1\nlisten: 127.0.0.1:80\nclients: {a: {network: [10.0.0.0/8]}}\nroutes:\n"
        "- {name: r, match: {path: /r}, to: 'http://u', access: [a]}\n- {name: open, to: 'http://v'%s}\n"
    )
    (told,) = warnings(text % "")
    assert told.startswith("6:3: warning: routes[1]: the route 'open' takes anybody, known or not")
    assert warnings(text % ", access: off") == []


def test_a_route_for_fewer_clients_is_shadowed_by_one_for_more() -> None:
    text = (
        "version: 1\nlisten: 127.0.0.1:80\nclients: {a: {network: [10.0.0.0/8]}, b: {network: [11.0.0.0/8]}}\nroutes:\n"
        "- {name: one, match: {client: %s}, respond: 200}\n- {name: two, match: {client: %s}, respond: 200}\n"
    )
    assert len(warnings(text % ("'*'", "a"))) == 1
    assert len(warnings(text % ("[a, b]", "a"))) == 1
    assert warnings(text % ("a", "b")) == []
    assert warnings(text % ("a", "'*'")) == []


def test_a_key_of_two_clients_is_told_once() -> None:
    same = load_string(HEAD + "clients: {a: {api_key: 'env:ID_A'}, b: {api_key: 'env:ID_A'}}")
    (problem,) = [*same.errors, *same.warnings]
    assert "the same key in 'x-api-key' is client 'a's already" in str(problem)


@pytest.mark.parametrize(
    "header", ["host", "Connection", "content-type", "X-Forwarded-For", "x_real_ip", "via"]
)
@pytest.mark.parametrize(
    "way", ["api_key: {keys: 'env:ID_A', header: %s}", "jwt: {issuer: i, jwks: /j, header: %s}"]
)
def test_a_header_that_says_something_else_is_no_place_for_a_credential(header: str, way: str) -> None:
    (problem,) = load_string(HEAD + f"clients: {{a: {{{way % header}}}}}").errors
    assert "is no place for" in str(problem)


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "x_token", "cookie", "proxy-authorization"])
def test_a_header_of_any_other_name_may_hold_a_key(header: str) -> None:
    assert not load_string(
        HEAD + f"clients: {{a: {{api_key: {{keys: 'env:ID_A', header: {header}}}}}}}"
    ).errors


def test_a_set_without_keys_is_told(tmp_path: Path) -> None:
    (tmp_path / "jwks").write_text('{"keys": []}')
    (told,) = warnings(HEAD + f"clients: {{a: {{jwt: {{issuer: i, audience: b, jwks: '{tmp_path}/jwks'}}}}}}")
    assert "has no key that verifies signatures: no token is taken" in told
