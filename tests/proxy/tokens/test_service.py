"""The settings of who asks a token service: what is refused, and what is made of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ambassador.config.load import load_text
from ambassador.config.problem import ConfigError
from ambassador.proxy.credentials.oauth2 import Config
from ambassador.proxy.tokens.service import TokenService
from ambassador.secret import Secrets

URL = "https://id.test/token"


def conflicts(**settings: Any) -> list[tuple[str | None, str]]:
    return list(TokenService(**{"token_url": URL, **settings}).conflicts())


@pytest.mark.parametrize(
    "url",
    [
        "https://id.test/t",
        "http://127.0.0.1:8080/t",
        "http://[::1]/t",
        "http://localhost/t",
        "http://a.localhost:80/t?q",
        "http://[::ffff:127.0.0.1]:80/t",
    ],
)
def test_token_url_is_over_tls_or_on_this_host(url: str) -> None:
    assert not conflicts(token_url=url)


@pytest.mark.parametrize(
    "url", ["http://id.test/t", "http://10.0.0.1/t", "http://localhost.test/t", "http://[::2]/t"]
)
def test_token_url_beyond_this_host_in_plaintext_must_be_wanted(url: str) -> None:
    assert [key for key, _ in conflicts(token_url=url)] == ["token_url"]
    assert not conflicts(token_url=url, allow_plaintext=True)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"client_id": "a", "client_secret": "env:S", "private_key": "file:/k"}, "private_key"),
        ({"client_secret": "env:S"}, "client_secret"),
        ({"private_key": "file:/k"}, "private_key"),
        ({"params": {"grant_type": "password"}}, "params.grant_type"),
        ({"params": {"client_secret": "oops"}}, "params.client_secret"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], key: str) -> None:
    assert key in [found for found, _ in conflicts(**settings)]


def test_asker_is_made_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("secret")
    service = TokenService(
        token_url=URL + "?a=b",
        client_id="me",
        client_secret=f"file:{tmp_path}/s",
        auth_style="body",
        timeout=3.0,
    )
    asker = service.asker(Secrets())
    assert (asker.url, asker.client_id, asker.style, asker.timeout_s) == (URL + "?a=b", "me", "body", 3.0)
    assert asker.secret is not None
    assert asker.key is None
    assert service.place == URL


def test_common_form_has_scopes_audience_and_params() -> None:
    service = TokenService(token_url=URL, scopes=("a", "b"), audience="x", params={"resource": "https://r"})
    assert service.common() == [("scope", "a b"), ("audience", "x"), ("resource", "https://r")]
    assert TokenService(token_url=URL).common() == []


def config(oauth2: str) -> str:
    return f"""\
version: 1
listen: 127.0.0.1:0
upstreams: {{u: {{endpoints: ["http://127.0.0.1:1"], auth: {{oauth2: {oauth2}}}}}}}
routes: [{{name: r, to: u}}]
"""


def test_config_has_a_token_service() -> None:
    text = config(
        "{token_url: 'HTTPS://ID.test', client_id: me, client_secret: 'env:S', scopes: [a]}".replace(
            "HTTPS", "https"
        )
    )
    auth = load_text(text).upstreams["u"].auth
    assert auth is not None
    assert auth.oauth2 == Config(
        token_url="https://id.test/", client_id="me", client_secret="env:S", scopes=("a",)
    )


@pytest.mark.parametrize(
    ("oauth2", "problem"),
    [
        ("{token_url: 'ftp://x/', client_id: a, client_secret: 'env:S'}", "token endpoint"),
        ("{token_url: 'https://u:p@x/', client_id: a, client_secret: 'env:S'}", "credentials do not belong"),
        ("{token_url: 'https://x/#f', client_id: a, client_secret: 'env:S'}", "token endpoint"),
        ("{token_url: 'https://x:0/', client_id: a, client_secret: 'env:S'}", "port 0"),
        ("{token_url: 'https://x/ y', client_id: a, client_secret: 'env:S'}", "token endpoint"),
        ("{token_url: 'https://x/', client_id: a}", "client_secret"),
        ("{token_url: 'https://x/', client_secret: 'env:S'}", "client_id"),
        ("{token_url: 'https://x/', client_id: a, client_secret: plain}", "secret"),
        ("{token_url: 'http://x/', client_id: a, client_secret: 'env:S'}", "plaintext"),
    ],
)
def test_config_that_cannot_be_is_refused(oauth2: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(config(oauth2))
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "only"),
    [
        ({"token_url": "http://localhost/t"}, True),
        ({"token_url": "http://localhost/t", "allow_plaintext": True}, False),
        ({"token_url": URL}, False),
    ],
)
def test_question_in_plaintext_is_for_this_host_unless_more_is_wanted(
    settings: dict[str, Any], *, only: bool
) -> None:
    asker = TokenService(**settings).asker(Secrets())
    assert asker.question([], wall_s=0.0, nonce="n").only_loopback is only


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA", "Ed25519"])
def test_config_names_how_questions_are_signed(algorithm: str) -> None:
    auth = (
        load_text(
            config(
                f"{{token_url: 'https://x/', client_id: a, private_key: 'env:K', algorithm: {algorithm}, key_id: k1}}"
            )
        )
        .upstreams["u"]
        .auth
    )
    assert auth is not None
    assert auth.oauth2 is not None
    assert auth.oauth2.asker(Secrets()).algorithm == algorithm
