"""AWS signatures, held against botocore's, and what of a request is signed."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch
from urllib.parse import quote, unquote, unquote_plus

import pytest
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from ambassador.errors import BodyTooLarge, CredentialUnavailable
from ambassador.messages import Fields, Request, RequestHead
from ambassador.proxy.credentials.aws_sigv4 import (
    UNSIGNED,
    Config,
    canonical_query,
    canonical_request,
    credential,
    describe,
)
from tests.proxy.credentials.shown import ENDPOINT, WALL_S, means
from tests.proxy.credentials.stage import ANSWER, FAILED, a_stage, authed, begun
from tests.proxy.harness import Origin

ACCESS, SECRET, SESSION = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "t0ken=="
SEGMENT = st.text("abcXYZ019-._~", min_size=0, max_size=4) | st.sampled_from(
    ["%20", "%2B", "%C3%A9", "%E2%82%AC", "%25", "%2525", "a%3Db", "..", "."]
)
WORD = st.sampled_from(["a", "b", "aa", "A", "~", "-", "%20", "%2B", "%C3%A9", "%25", "%2F", "x.y", "", "0"])
PATHS = st.lists(SEGMENT, max_size=5).map(lambda segments: "/" + "/".join(segments))
QUERIES = st.lists(st.tuples(WORD.filter(bool), WORD), max_size=5)
VALUES = st.text('ab ,;=\t"é', max_size=8)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "content-type": VALUES,
        "Content-MD5": VALUES,
        "x-amz-target": VALUES,
        "X-Amz-Meta-A": VALUES,
        "x-amz-meta-": VALUES,
    },
)
METHODS = st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD"])


def config(service: str = "execute-api", **settings: Any) -> Config:
    return Config(
        service=service, region="eu-west-1", access_key="env:ACCESS", secret_key="env:SECRET", **settings
    )


def signed(
    head: RequestHead,
    settings: Config,
    *,
    length: int | None = None,
    chunked: bool = False,
    at: float = WALL_S,
) -> dict[str, str]:
    """The fields that were put in."""
    request = Request(head.method, b"/", [], 1, content_length=length, chunked=chunked)
    request.complete = head.body is not None
    before = len(head.fields)
    made = credential(settings, "u", means(at, ACCESS=ACCESS, SECRET=SECRET, SESSION=SESSION))
    made.in_hand(request)
    made.put(request, head, ENDPOINT)
    return {name.decode(): value.decode() for name, value in head.fields[before:]}


def theirs(
    method: str, target: str, fields: dict[str, str], body: bytes, *, service: str, token: str | None
) -> dict[str, str]:
    """The fields that botocore puts in."""
    url = f"http://api.example:8443{target}"
    request = AWSRequest(method=method, url=url, headers=dict(fields), data=body)
    auth = (S3SigV4Auth if service == "s3" else SigV4Auth)(
        Credentials(ACCESS, SECRET, token), service, "eu-west-1"
    )
    moment = datetime.fromtimestamp(WALL_S, UTC).replace(tzinfo=None)
    with patch("botocore.auth.get_current_datetime", lambda: moment):
        auth.add_auth(request)
    return {name.lower(): value for name, value in request.headers.items() if name not in fields}


@given(METHODS, PATHS, QUERIES, FIELDS, st.data())
def test_signature_is_botocores(
    method: str, path: str, pairs: list[tuple[str, str]], fields: dict[str, str], data: st.DataObject
) -> None:
    body = data.draw(st.binary(max_size=20))
    service = data.draw(st.sampled_from(["s3", "sqs"]))
    session = data.draw(st.sampled_from([None, "env:SESSION"]))
    query = "&".join(f"{name}={value}" for name, value in pairs)
    target = path + (f"?{query}" if query else "")
    sent: Fields = [(name.encode(), value.encode()) for name, value in fields.items()]
    head = RequestHead(method, target.encode(), b"api.example:8443", sent, body=body)
    expected = theirs(method, target, fields, body, service=service, token=SESSION if session else None)
    assert signed(head, config(service, session_token=session)) == expected


def test_fields_that_change_on_the_way_are_not_signed_and_doubles_are_joined() -> None:
    fields = [
        (b"User-Agent", b"x"), (b"via", b"1.1 x"), (b"X-AMZ-B", b" b  c\t"), (b"x-amz-a", b"1"), (b"x-amz-b", b"2"),
        (b"traceparent", b"t"),
    ]  # fmt: skip
    names, canonical = canonical_request(RequestHead("GET", b"/", b"h", fields), "d", s3=False)
    assert names == "host;x-amz-a;x-amz-b"
    assert canonical == b"GET\n/\n\nhost:h\nx-amz-a:1\nx-amz-b:b c,2\n\nhost;x-amz-a;x-amz-b\nd"


@pytest.mark.parametrize(
    ("query", "canonical"),
    [
        (b"", b""),
        (b"acl", b"acl="),
        (b"b=2&a=1", b"a=1&b=2"),
        (b"a=2&a=1&a", b"a=&a=1&a=2"),
        (b"&&a=1&", b"a=1"),
        (b"=v", b"=v"),
        (b"a=b=c", b"a=b%3Dc"),
        (b"a=b+c&d=%2B", b"a=b%20c&d=%2B"),
        (b"a=%7e%c3%a9:/@", b"a=~%C3%A9%3A%2F%40"),
        ("é=ü".encode(), b"%C3%A9=%C3%BC"),
        (b"a=%zz", b"a=%25zz"),
    ],
)
def test_query_is_made_canonical_as_the_server_reads_it(query: bytes, canonical: bytes) -> None:
    assert canonical_query(query) == canonical


@pytest.mark.parametrize(
    ("path", "once", "twice"),
    [
        (b"/a:b@c!", b"/a%3Ab%40c%21", b"/a%3Ab%40c%21"),
        (b"/a%3ab", b"/a%3Ab", b"/a%253ab"),
        (b"/a%2Fb//c/", b"/a%2Fb//c/", b"/a%252Fb/c/"),
        (b"/a b", b"/a%20b", b"/a%20b"),
        ("/é".encode(), b"/%C3%A9", b"/%C3%A9"),
        (b"//", b"//", b"/"),
    ],
)
def test_path_is_encoded_once_for_s3_and_twice_for_others(path: bytes, once: bytes, twice: bytes) -> None:
    for s3, wanted in ((True, once), (False, twice)):
        _, canonical = canonical_request(RequestHead("GET", path, b"h", []), "d", s3=s3)
        assert canonical.split(b"\n")[1] == wanted


def test_what_the_client_sent_under_these_names_is_replaced() -> None:
    sent = [
        (b"Authorization", b"AWS4-HMAC-SHA256 theirs"), (b"X-Amz-Date", b"19700101T000000Z"),
        (b"x-amz-security-token", b"theirs"), (b"x-amz-content-sha256", b"theirs"),
    ]  # fmt: skip
    head = RequestHead("GET", b"/", b"h", list(sent), body=b"")
    signed(head, config("s3"))
    assert [name for name, _ in head.fields] == [b"x-amz-date", b"x-amz-content-sha256", b"authorization"]
    assert b"theirs" not in b"".join(value for _, value in head.fields)


def test_key_of_a_day_is_of_that_day() -> None:
    made = credential(config(), "u", means(ACCESS=ACCESS, SECRET=SECRET))
    assert made._key("20261127") == made._key("20261127") != made._key("20261128")


def test_long_body_is_unsigned_for_s3_and_refused_by_others() -> None:
    head = RequestHead("PUT", b"/", b"h", [])
    assert signed(head, config("s3"), length=2_000_000)["x-amz-content-sha256"] == UNSIGNED
    for service, length, chunked in (("sqs", 2_000_000, False), ("sqs", None, True)):
        with pytest.raises(BodyTooLarge):
            signed(RequestHead("PUT", b"/", b"h", []), config(service), length=length, chunked=chunked)
    with pytest.raises(BodyTooLarge):
        signed(RequestHead("PUT", b"/", b"h", [], body=b"four"), config("sqs", buffer=3), chunked=True)


def test_unsigned_payload_reads_no_body() -> None:
    settings = config("s3", unsigned_payload=True)
    assert credential(settings, "u", means()).reads == 0
    head = RequestHead("PUT", b"/", b"h", [], body=b"body")
    assert signed(head, settings, length=4)["x-amz-content-sha256"] == UNSIGNED
    head = RequestHead("GET", b"/", b"h", [], body=b"")
    assert signed(head, settings)["x-amz-content-sha256"] == hashlib.sha256(b"").hexdigest()
    assert [key for key, _ in config("sqs", unsigned_payload=True).conflicts()] == ["unsigned_payload"]
    assert not list(settings.conflicts())


@pytest.mark.parametrize("missing", ["ACCESS", "SECRET", "SESSION"])
def test_key_that_is_missing_is_an_error_without_it(missing: str) -> None:
    values = {"ACCESS": ACCESS, "SECRET": SECRET, "SESSION": SESSION}
    del values[missing]
    made = credential(config(session_token="env:SESSION"), "u", means(WALL_S, **values))
    with pytest.raises(CredentialUnavailable) as raised:
        made.in_hand(Request("GET", b"/", [], 1))
    assert made.problem() == raised.value.detail
    assert not any(value in raised.value.detail for value in values.values())
    values[missing] = "two\nlines"
    if missing != "SECRET":
        with pytest.raises(CredentialUnavailable):
            credential(config(session_token="env:SESSION"), "u", means(WALL_S, **values)).in_hand(
                Request("GET", b"/", [], 1)
            )


def test_signature_is_told_of_without_its_keys() -> None:
    assert describe(config("s3")) == "an AWS signature (v4) for s3 in eu-west-1"


TARGETS = [
    b"/", b"/a/b", b"/a%20b/%C3%A9", b"/a/../b//c/", b"/%7euser/%41", b"/a:b@c!$&'()*+,;=d", b"/a?", b"/?b=2&a=1&a=0&a",
    b"/?a=b+c&d=%2B&e=%7e&f=/?:@", b"/?prefix=x%2Fy&list-type=2&&", b"/a?acl",
]  # fmt: skip


def of_wire(head: bytes, body: bytes, service: str) -> tuple[str, str]:
    """The signature of a request as it arrived, and what botocore makes of the same for the server's canonical URL."""
    first, *lines = head.decode().rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    fields = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
    authorization = next(value for name, value in fields if name == "authorization")
    names = authorization.partition("SignedHeaders=")[2].partition(",")[0].split(";")
    path, _, query = target.partition("?")
    made = {name.lower(): value for name, value in fields if name.lower() in names}
    date = made.pop("x-amz-date")
    if service == "s3":
        del made["x-amz-content-sha256"]
        path = "/".join(quote(unquote(segment), safe="~") for segment in path.split("/"))
    pairs = [each for each in query.split("&") if each]
    canonical = "&".join(
        "=".join(quote(unquote_plus(part), safe="~") for part in each.partition("=")[::2]) for each in pairs
    )
    request = AWSRequest(
        method=method,
        url=f"http://{made['host']}{path}" + (f"?{canonical}" if canonical else ""),
        headers=made,
        data=body,
    )
    moment = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).replace(tzinfo=None)
    with patch("botocore.auth.get_current_datetime", lambda: moment):
        (S3SigV4Auth if service == "s3" else SigV4Auth)(
            Credentials(ACCESS, SECRET), service, "eu-west-1"
        ).add_auth(request)
    return authorization, request.headers["Authorization"]


@pytest.mark.parametrize("service", ["s3", "sqs"])
async def test_what_is_signed_is_what_arrives(
    origin: Origin, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the client wrote, after normalising, rewriting and all that the proxy adds; at each attempt."""
    monkeypatch.setenv("ACCESS", ACCESS)
    monkeypatch.setenv("SECRET", SECRET)
    auth = f"{{aws_sigv4: {{service: {service}, region: eu-west-1, access_key: env:ACCESS, secret_key: env:SECRET}}}}"
    route = ", rewrite: {regex: ['^/a/', '/z%20y/'], host: 'Bucket.Example:8080'}, retry: {attempts: 1, when: [503], backoff: 1ms}"
    async with a_stage(origin, authed(origin.url, auth, route=route)) as stage:
        client, upstream = await begun(stage)
        for target in TARGETS:
            for start, body in ((b"GET", b""), (b"PUT", b"some body")):
                await client.send(
                    b"%b %b HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain;  a\r\nx-amz-meta-b:  c \r\nX-Amz-Date: theirs\r\n"
                    b"content-length: %d\r\n\r\n%b" % (start, target, len(body), body)
                )
                for said in (FAILED, ANSWER):
                    head = await upstream.head()
                    assert await upstream.exactly(len(body)) == body
                    ours, botocores = of_wire(head, body, service)
                    assert ours == botocores, head
                    await upstream.send(said)
                assert (await client.answer())[0] == 200
