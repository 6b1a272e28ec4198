"""HTTP message signatures: the RFC's own example, and a verifier that knows only what is on the wire."""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import b64decode, b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambassador.config.load import load_string
from ambassador.errors import BodyTooLarge, CredentialUnavailable
from ambassador.messages import Request, RequestHead
from ambassador.proxy.credentials.message_signature import (
    DERIVED,
    Config,
    content_digest,
    credential,
    describe,
)
from ambassador.proxy.upstream.endpoint import Endpoint
from tests.proxy.credentials.shown import ENDPOINT, means
from tests.proxy.credentials.stage import ANSWER, FAILED, a_stage, authed, begun
from tests.proxy.harness import Origin

RFC_SECRET = "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ=="
SECRET = "a secret of both"
CREATED = 1618884473


def signed(
    head: RequestHead,
    *,
    key: str = SECRET,
    at: float = CREATED,
    endpoint: Endpoint = ENDPOINT,
    length: int | None = None,
    chunked: bool = False,
    **settings: Any,
) -> dict[str, str]:
    """The fields that were put in."""
    request = Request(head.method, b"/", [], 1, chunked=chunked)
    request.content_length = len(head.body or b"") if length is None else length
    made = credential(Config(key="env:KEY", **settings), "u", means(at, KEY=key))
    made.in_hand(request)
    made.put(request, head, endpoint)
    return {name.decode(): value.decode() for name, value in head.fields}


def test_signature_of_the_rfc_is_ours() -> None:
    """RFC 9421 B.2.5."""
    head = RequestHead(
        "POST",
        b"/foo?param=Value&Pet=dog",
        b"example.com",
        [
            (b"Date", b"Tue, 20 Apr 2021 02:07:55 GMT"),
            (b"Content-Type", b"application/json"),
            (
                b"Content-Digest",
                b"sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:",
            ),
            (b"Content-Length", b"18"),
        ],
        body=b'{"hello": "world"}',
    )
    fields = signed(
        head,
        key=RFC_SECRET,
        encoding="base64",
        key_id="test-shared-secret",
        label="sig-b25",
        headers=("date", "@authority", "content-type"),
    )
    assert fields["signature-input"] == (
        'sig-b25=("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret"'
    )
    assert fields["signature"] == "sig-b25=:pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=:"


def test_digest_of_the_rfc_is_ours() -> None:
    """RFC 9530, appendix D."""
    assert content_digest(b'{"hello": "world"}') == b"sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:"


def verify(
    scheme: str, method: str, host: str, target: str, *, fields: dict[str, str], body: bytes
) -> list[str]:
    """What is covered by the signature of a message, which must be good."""
    sent = {name.lower(): value.strip() for name, value in fields.items()}
    label, _, parameters = sent["signature-input"].partition("=")
    inner = re.fullmatch(r"\(([^)]*)\)(.*)", parameters)
    assert inner is not None
    covered = re.findall(r'"([^"]*)"', inner[1])
    assert len(covered) == len(set(covered))
    path, _, query = target.partition("?")
    port = {"http": ":80", "https": ":443"}[scheme]
    authority = host.lower().removesuffix(port)
    derived = {
        "@method": method,
        "@scheme": scheme,
        "@authority": authority,
        "@path": path,
        "@query": "?" + query,
        "@request-target": target,
        "@target-uri": f"{scheme}://{authority}{target}",
    }
    base = "".join(f'"{name}": {derived[name] if name[0] == "@" else sent[name]}\n' for name in covered)
    base += f'"@signature-params": {parameters}'
    match = re.fullmatch(rf"{re.escape(label)}=:(.*):", sent["signature"])
    assert match is not None
    assert b64decode(match[1]) == hmac.digest(SECRET.encode(), base.encode(), "sha256")
    if "content-digest" in sent:
        assert sent["content-digest"] == f"sha-256=:{b64encode(hashlib.sha256(body).digest()).decode()}:"
    return covered


@given(
    st.sampled_from(["GET", "POST"]),
    st.sampled_from(["/", "/a%20b", "/a//b"]),
    st.sampled_from(["", "?", "?a=b&c=%C3%A9", "?a=?"]),
    st.sampled_from(["h", "H.Example:80", "h:443", "h:8443", "[::1]:80"]),
    st.data(),
)
def test_signature_is_good_to_whoever_checks_it(
    method: str, path: str, query: str, host: str, data: st.DataObject
) -> None:
    scheme = data.draw(st.sampled_from(["http", "https"]))
    fields = data.draw(
        st.dictionaries(st.sampled_from(["Date", "x-a", "Content-Type"]), st.text("ab, \t", max_size=5))
    )
    body = data.draw(st.binary(max_size=5))
    known = [*DERIVED, "date", "x-a", "content-type", "content-digest"]
    headers = tuple(data.draw(st.lists(st.sampled_from(known), min_size=1, unique=True)))
    head = RequestHead(
        method,
        (path + query).encode(),
        host.encode(),
        [(k.encode(), v.encode()) for k, v in fields.items()],
        body=body,
    )
    port = {"http": 80, "https": 443}[scheme]
    endpoint = Endpoint(f"http://127.0.0.1:{port}", host="127.0.0.1", port=port, default_port=port)
    found = signed(head, endpoint=endpoint, headers=headers)
    there = {name.lower() for name in fields} | ({"content-digest"} if body else set())
    covered = verify(scheme, method, host, path + query, fields=found, body=body)
    assert covered == [name for name in headers if name[0] == "@" or name in there]


def test_doubles_are_joined_and_each_attempt_has_its_time() -> None:
    head = RequestHead("GET", b"/", b"h", [(b"x-a", b" 1 "), (b"X-A", b"2")])
    fields = signed(head, at=CREATED + 0.9, headers=("x-a",), expires=60.0)
    assert fields["signature-input"] == f'sig1=("x-a");created={CREATED};expires={CREATED + 60}'
    base = f'"x-a": 1, 2\n"@signature-params": ("x-a");created={CREATED};expires={CREATED + 60}'
    assert (
        fields["signature"]
        == f"sig1=:{b64encode(hmac.digest(SECRET.encode(), base.encode(), 'sha256')).decode()}:"
    )


def test_host_is_covered_by_either_name() -> None:
    head = RequestHead("GET", b"/", b"H:80", [])
    base = '"@authority": h\n"host": H:80\n"@signature-params": ("@authority" "host");created=1618884473'
    signature = b64encode(hmac.digest(SECRET.encode(), base.encode(), "sha256")).decode()
    assert signed(head, headers=("@authority", "host"))["signature"] == f"sig1=:{signature}:"


def test_what_the_client_sent_under_these_names_is_replaced() -> None:
    sent = [(b"Signature", b"x=:theirs:"), (b"signature-INPUT", b"theirs"), (b"Content-Digest", b"theirs")]
    fields = signed(RequestHead("GET", b"/", b"h", sent))
    assert sorted(fields) == ["signature", "signature-input"]
    fields = signed(RequestHead("GET", b"/", b"h", sent), headers=("@method",))
    assert fields["Content-Digest"] == "theirs"  # nothing is said of it


def test_long_body_is_refused_if_a_digest_is_covered() -> None:
    for length, chunked, body in ((2_000_000, False, None), (0, True, None), (0, True, b"x" * 9)):
        with pytest.raises(BodyTooLarge):
            signed(RequestHead("PUT", b"/", b"h", [], body=body), length=length, chunked=chunked, buffer=8)
    assert "signature" in signed(RequestHead("PUT", b"/", b"h", []), length=2_000_000, headers=("@method",))
    assert credential(Config(key="env:KEY", headers=("@method",)), "u", means(KEY="k")).reads == 0


@pytest.mark.parametrize(("values", "encoding"), [({}, "text"), ({"KEY": "no base64!"}, "base64")])
def test_key_that_is_missing_is_an_error_without_it(values: dict[str, str], encoding: Any) -> None:
    made = credential(Config(key="env:KEY", encoding=encoding), "u", means(0.0, **values))
    with pytest.raises(CredentialUnavailable) as raised:
        made.in_hand(Request("GET", b"/", [], 1))
    assert made.problem() == raised.value.detail
    assert "no base64!" not in raised.value.detail


def test_settings_that_make_no_signature_are_refused() -> None:
    assert Config.refusal("label", "Sig1")
    assert Config.refusal("label", "1")
    assert not Config.refusal("label", "sig-b25")
    assert Config.refusal("expires", 0.5)
    assert Config.refusal("key_id", "é")
    assert not Config.refusal("key_id", 'a "b"')
    assert [key for key, _ in Config(key="env:K", headers=("@path", "a", "@path")).conflicts()] == [
        "headers.2"
    ]


def test_quotes_of_a_key_id_are_escaped() -> None:
    fields = signed(RequestHead("GET", b"/", b"h", []), headers=("@path",), key_id='a"\\')
    assert fields["signature-input"].endswith(';keyid="a\\"\\\\"')


def test_signature_is_told_of_without_its_key() -> None:
    assert describe(Config(key="env:K", headers=("@path", "a"))) == (
        "an HTTP message signature (hmac-sha256) over @path, a"
    )


async def test_what_is_signed_is_what_arrives(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that the proxy adds, after rewriting, the body's digest included; at each attempt."""
    monkeypatch.setenv("KEY", SECRET)
    headers = (
        "['@method', '@target-uri', '@authority', '@path', '@query', via, x-request-id, x-a, content-digest]"
    )
    route = ", rewrite: {prefix: /z}, retry: {attempts: 1, when: [503], methods: all, backoff: 1ms}"
    auth = f"{{hmac: {{key: env:KEY, headers: {headers}}}}}"
    async with a_stage(origin, authed(origin.url, auth, route=route)) as stage:
        client, upstream = await begun(stage)
        for target, body in ((b"/a/../b?c=d+e", b""), (b"/%7eb", b"some body")):
            await client.send(
                b"POST %b HTTP/1.1\r\nhost: a\r\nX-A: 1\r\nsignature: x=:theirs:\r\nx-a: 2\r\ntransfer-encoding: chunked\r\n"
                b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (target, len(body), body)
                if body
                else b"GET %b HTTP/1.1\r\nhost: a\r\nX-A: 1\r\nx-a: 2\r\n\r\n" % target
            )
            for said in (FAILED, ANSWER):
                head = await upstream.head()
                assert await upstream.exactly(len(body)) == body
                first, *lines = head.decode().rstrip("\r\n").split("\r\n")
                method, sent, _ = first.split(" ")
                found: dict[str, str] = {}
                for name, _, value in (line.partition(": ") for line in lines):
                    found[name.lower()] = (
                        f"{found[name.lower()]}, {value}" if name.lower() in found else value
                    )
                covered = verify("http", method, found["host"], sent, fields=found, body=body)
                assert len(covered) == (9 if body else 8)
                await upstream.send(said)
            assert (await client.answer())[0] == 200


@pytest.mark.parametrize("header", ["connection", "Transfer-Encoding", "te", "expect", "signature"])
def test_what_never_goes_on_cannot_be_covered(header: str) -> None:
    text = (
        "version: 1\nlisten: 127.0.0.1:80\nroutes: [{name: r, to: u}]\n"
        "upstreams: {u: {endpoints: ['http://127.0.0.1:1'], "
        f"auth: {{hmac: {{key: 'env:HOME', headers: ['@path', {header}]}}}}}}}}\n"
    )
    (problem,) = load_string(text).errors
    assert "hmac.headers[1]: " in str(problem)
    assert "does not go on to the upstream" in str(problem)
