"""What `check` says of the files of TLS, with its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ambassador.certificate import Certificate
from ambassador.config.certificates import ends
from ambassador.config.load import load_string
from tests.proxy.pem import Authority

DAY_S = 86400.0


def problems(text: str) -> list[str]:
    """Of a config that answers everything by itself; without the place of the file."""
    found = load_string(f"version: 1\n{text}routes: [{{name: r, respond: 200}}]\n").problems
    return [str(problem).removeprefix("-:") for problem in found]


def listener(tls: str) -> list[str]:
    return problems(f"listeners: [{{address: 127.0.0.1:8443, tls: {{{tls}}}}}]\n")


def test_good_files_are_not_told_of(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair, other = authority.issue("a.b"), authority.issue("c.d")
    more = f"certificates: [{{cert: {other.cert}, key: {other.key}}}]"
    assert listener(f"cert: {pair.cert}, key: 'file:{pair.key}', client_ca: {authority.ca}, {more}") == []


def test_files_that_are_missing_are_errors_at_their_places(tmp_path: Path) -> None:
    path = tmp_path / "x"
    text = f"cert: {path}.crt, key: {path}.key, client_ca: {path}.ca"
    line = f"listeners: [{{address: 127.0.0.1:8443, tls: {{{text}}}}}]"
    for label, file, problem in zip(
        ("cert", "key", "client_ca"),
        (f"{path}.crt", f"{path}.key", f"{path}.ca"),
        listener(text),
        strict=True,
    ):
        place = f"2:{line.index(file) + 1}: error: listeners[0].tls.{label}"
        assert problem == f"{place}: '{file}' cannot be read: No such file or directory"


def test_key_that_does_not_fit_is_an_error_at_the_key(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, two = authority.issue("a.b"), authority.issue("c.d")
    [problem] = listener(f"certificates: [{{cert: {one.cert}, key: {two.key}}}]")
    assert "error: listeners[0].tls.certificates[0].key: " in problem
    assert problem.endswith(f"'{two.key}' does not belong to the certificate in '{one.cert}'")


def test_file_without_a_certificate_is_told_once(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("a.b")
    Path(pair.cert).write_text("nothing")
    [problem] = listener(f"cert: {pair.cert}, key: {pair.key}")
    assert problem.endswith(f"listeners[0].tls.cert: '{pair.cert}' holds no certificate in PEM form")


def test_key_that_everybody_may_read_is_a_warning(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("a.b")
    Path(pair.key).chmod(0o644)
    [problem] = listener(f"cert: {pair.cert}, key: {pair.key}")
    assert f"warning: listeners[0].tls.key: everybody on this machine can read '{pair.key}'" in problem


@pytest.mark.parametrize(("days", "text"), [(-1, "expired on "), (13, "expires on ")])
def test_end_of_a_certificate_is_a_warning(tmp_path: Path, days: int, text: str) -> None:
    pair = Authority(tmp_path).issue("a.b", days=days)
    [problem] = listener(f"cert: {pair.cert}, key: {pair.key}")
    assert f"warning: listeners[0].tls.cert: the certificate in '{pair.cert}' {text}" in problem


def test_upstream_without_verification_is_a_warning() -> None:
    text = "listen: a:1\nupstreams: {u: {discover: {dns: 'a.b:443'}, tls: {verify: false}}}\n"
    assert any(
        "3:59: warning: upstreams.u.tls.verify: anybody on the way can pretend to be the endpoint" in problem
        for problem in problems(text)
    )


def test_upstreams_authority_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ca"
    path.write_text("nothing")
    text = f"listen: a:1\nupstreams: {{u: {{discover: {{dns: 'a.b:443'}}, tls: {{ca: {path}}}}}}}\n"
    assert any(
        f"error: upstreams.u.tls.ca: '{path}' holds no certificate in PEM form" in problem
        for problem in problems(text)
    )


@pytest.mark.parametrize(
    ("tls", "problem"),
    [
        ("min_version: 1.2", "listeners[0].tls: needs 'cert' and 'key', or 'certificates'"),
        ("cert: /x", "listeners[0].tls.cert: needs its 'key'"),
        ("key: /x", "listeners[0].tls.key: needs its 'cert'"),
        ("cert: x", "listeners[0].tls.cert: 'x' is not the absolute path of a file"),
        ("min_version: 1.1", "listeners[0].tls.min_version: must be 1.2 or 1.3, not '1.1'; older ones are"),
        (
            "cert: /x, key: /x, require_client_cert: true",
            "listeners[0].tls.require_client_cert: needs 'client_ca', the authorities",
        ),
        ("certificates: [{cert: /x}]", "listeners[0].tls.certificates[0]: missing required key 'key'"),
    ],
)
def test_settings_that_make_no_sense_are_errors(tls: str, problem: str) -> None:
    assert any(f"error: {problem}" in each for each in listener(tls))


@pytest.mark.parametrize(
    ("tls", "problem"),
    [
        ("cert: /x", "upstreams.u.tls.cert: needs its 'key'"),
        ("key: /x", "upstreams.u.tls.key: needs its 'cert'"),
        ("ca: /x, verify: off", "upstreams.u.tls.ca: has no effect with 'verify: false'"),
        ("sni: 'a.b:443'", "upstreams.u.tls.sni: 'a.b:443' is not the name of a server; write it without"),
    ],
)
def test_settings_of_an_upstream_that_make_no_sense_are_errors(tls: str, problem: str) -> None:
    text = f"listen: a:1\nupstreams: {{u: {{discover: {{dns: 'a.b:443'}}, tls: {{{tls}}}}}}}\n"
    assert any(f"error: {problem}" in each for each in problems(text))


@pytest.mark.parametrize(
    ("first", "last", "text"),
    [
        (-1.0, 14 * DAY_S + 1, None),
        (-1.0, 14 * DAY_S, "expires on 1970-03-07 00:00 UTC, in 14 days"),
        (-1.0, 1.5 * DAY_S, "expires on 1970-02-22 12:00 UTC, in 1 day"),
        (-1.0, 60.0, "expires on 1970-02-21 00:01 UTC, in less than a day"),
        (-1.0, 0.0, "expired on 1970-02-21 00:00 UTC"),
        (1.0, 60 * DAY_S, "is not good before 1970-02-21 00:00 UTC"),
    ],
)
def test_end_is_told_in_days(first: float, last: float, text: str | None) -> None:
    now = 51 * DAY_S
    certificate = Certificate(names=(), not_before=now + first, not_after=now + last)
    assert ends(certificate, now) == text


def state(options: str, *, short: bool = False) -> list[str]:
    url = f"'rediss://r.test:6379?{options}'"
    return problems(f"listen: 127.0.0.1:8080\nstate: {url if short else f'{{url: {url}}}'}\n")


def test_files_of_the_store_are_looked_at_like_those_of_an_upstream(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, two = authority.issue("a.b"), authority.issue("c.d")
    assert state(f"ca={authority.ca}&cert={one.cert}&key={one.key}") == []
    [missing] = state("ca=/nowhere/ca.pem", short=True)
    assert missing.endswith("`ca`: '/nowhere/ca.pem' cannot be read: No such file or directory")
    [missing] = state("ca=/nowhere/ca.pem")
    assert missing.startswith("3:14: error: state.url: ")
    [apart] = state(f"cert={one.cert}&key={two.key}")
    assert apart.endswith(f"`key`: '{two.key}' does not belong to the certificate in '{one.cert}'")


CALLS = {
    "upstreams.u.auth.oauth2.ca": "upstreams: {{u: {{endpoints: ['https://a'], auth: {{oauth2: {{token_url: 'https://x',"
    " client_id: a, client_secret: 'env:HOME', ca: {0}}}}}}}}}",
    "upstreams.u.auth.exchange.ca": "upstreams: {{u: {{endpoints: ['https://a'], auth: {{exchange:"
    " {{token_url: 'https://x', ca: {0}}}}}}}}}",
    "upstreams.u.discover.kubernetes.ca": "upstreams: {{u: {{discover: {{kubernetes: {{service: w, namespace: n,"
    " server: 'https://a:1', ca: {0}}}}}}}}}",
    "clients.c.jwt.ca": "clients: {{c: {{jwt: {{issuer: i, audience: a, jwks: 'https://x', ca: {0}}}}}}}",
}


@pytest.mark.parametrize("setting", CALLS)
def test_authorities_of_the_ambassadors_own_calls_are_warned_of(tmp_path: Path, setting: str) -> None:
    def told(ca: str) -> list[str]:
        found = problems("listen: 127.0.0.1:8080\n" + CALLS[setting].format(ca) + "\n")
        return [each.partition(": ")[2] for each in found if setting in each]

    authority = Authority(tmp_path)
    pair = authority.issue("a.b", days=1)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "junk").write_text("junk")
    assert told(authority.ca) == []
    assert told("/nowhere") == [f"warning: {setting}: '/nowhere' cannot be read: No such file or directory"]
    assert told(f"{tmp_path}/pipe") == [f"warning: {setting}: '{tmp_path}/pipe' is not a file"]
    assert told(f"{tmp_path}/junk") == [
        f"warning: {setting}: '{tmp_path}/junk' holds no certificate in PEM form"
    ]
    (ending,) = told(pair.cert)
    assert ending.startswith(f"warning: {setting}: the authority in '{pair.cert}' expires on ")
