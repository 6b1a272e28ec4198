"""What an upstream and a client see of each other: fields that are added, kept, dropped; routes that change them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import pytest

from tests.e2e.origins import free_port
from tests.e2e.programs import Ambassador, ambassador, wait_until
from tests.e2e.raw import OK, Client, Message, Origin, answer, fetch, upstream

HEALTH = "/.well-known/ambassador/health"
LISTEN = """
  - {{address: "127.0.0.1:{}"}}
  - {{address: "127.0.0.1:{}", trusted: [127.0.0.0/8, 10.0.0.0/8]}}
"""


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with upstream() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(origin: Origin) -> Iterator[Ambassador]:
    body = f"""\
        name: tester
        routes:
          - {{name: moved, match: {{path: "/moved/**"}}, redirect: {{path: /now, status: 307}}}}
          - {{name: respond, match: {{path: "/respond/{{id}}"}},
              respond: {{status: 418, body: "short and stout", headers: {{x-pot: tea}}}}}}
          - {{name: prefix, match: {{path: "/old/**"}}, to: "{origin.url}", rewrite: {{prefix: /new}}}}
          - {{name: pattern, match: {{path: "/pattern/**"}}, to: "{origin.url}",
              rewrite: {{regex: ["^/pattern/([a-z]+)", '/by/\\1'], host: other.example}}}}
          - {{name: keep, match: {{path: "/keep/**"}}, to: "{origin.url}", rewrite: {{host: keep}}}}
          - name: fields
            match: {{path: "/fields/{{id}}"}}
            to: "{origin.url}"
            headers:
              request:
                set: {{x-set: "{{param.id}}", x-route: "{{route}}", x-who: "{{request_id}}"}}
                add: {{x-add: more}}
                remove: [x-gone, authorization]
              response: {{set: {{x-answer: "yes", server: hidden}}, remove: [x-internal]}}
          - {{name: method, match: {{path: /by, methods: [DELETE]}}, respond: {{status: 202}}}}
          - {{name: field, match: {{path: /by, headers: {{x-version: "2"}}}}, respond: {{status: 203}}}}
          - {{name: query, match: {{path: /by, query: {{v: "3"}}}}, respond: {{status: 206}}}}
          - {{name: host, match: {{host: "*.example"}}, respond: {{status: 207}}}}
          - {{name: api, match: {{host: test}}, to: "{origin.url}"}}
          - {{name: any, match: {{host: "*", path: "/any/**"}}, to: "{origin.url}"}}
        """
    with ambassador(body, listen=LISTEN.format(free_port(), free_port())) as running:
        yield running


def seen(origin: Origin, path: str) -> Message:
    return origin.seen[path][-1]


def test_what_is_added_to_a_request(proxy: Ambassador, origin: Origin) -> None:
    got = fetch(proxy.url, "/added")
    request = seen(origin, "/added")
    assert request.get("host") == origin.authority
    assert request.get("x-forwarded-for") == "127.0.0.1"
    assert request.get("x-forwarded-proto") == "http"
    assert request.get("x-forwarded-host") == "test"
    assert request.get("via") == "1.1 tester"
    assert request.get("x-request-id") == got.get("x-request-id")
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", request.get("traceparent") or "")
    assert request.get("x-ambassador-attempt") is None
    assert request.get("connection") in (None, "keep-alive")


def test_via_is_extended(proxy: Ambassador, origin: Origin) -> None:
    with Client(proxy.url) as client:
        client.send("GET /via HTTP/1.0\r\nhost: test\r\nvia: 1.1 a\r\nvia: 1.0 b (x)\r\n\r\n")
        assert client.answer().status == 200
    assert seen(origin, "/via").get("via") == "1.1 a, 1.0 b (x), 1.0 tester"


SPOOFED = (
    "X-Forwarded-For: 1.2.3.4, 10.0.0.7",
    "x-forwarded-for: 10.0.0.8",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: public.name",
    "X-Forwarded-Port: 6666",
    "X-Forwarded-Prefix: /evil",
    "X_Forwarded_Server: e",
    "X-Real-IP: 1.2.3.4",
)


def test_forwarded_fields_of_anybody_are_replaced(proxy: Ambassador, origin: Origin) -> None:
    fetch(proxy.url, "/spoof", *SPOOFED, "Forwarded: for=1.2.3.4", "x-request-id: spoof")
    request = seen(origin, "/spoof")
    assert request.get("x-forwarded-for") == "127.0.0.1"
    assert request.get("x-forwarded-proto") == "http"
    assert request.get("x-forwarded-host") == "test"
    for name in ("forwarded", "x-forwarded-port", "x-forwarded-prefix", "x_forwarded_server", "x-real-ip"):
        assert request.get(name) is None
    assert client_ip(proxy, "spoof") == "127.0.0.1"


def test_forwarded_fields_of_the_trusted_are_kept(proxy: Ambassador, origin: Origin) -> None:
    fetch(proxy.urls[1], "/trusted", *SPOOFED, "x-request-id: trusted")
    request = seen(origin, "/trusted")
    assert request.get("x-forwarded-for") == "1.2.3.4, 10.0.0.7, 10.0.0.8, 127.0.0.1"
    assert request.get("x-forwarded-proto") == "https"
    assert request.get("x-forwarded-host") == "public.name"
    assert (request.get("x-forwarded-port"), request.get("x-forwarded-prefix")) == ("6666", "/evil")
    assert request.get("x-real-ip") == "1.2.3.4"
    assert client_ip(proxy, "trusted") == "1.2.3.4"


def client_ip(proxy: Ambassador, request_id: str) -> object:
    def found() -> object | None:
        lines = [line for line in proxy.log() if line["request_id"] == request_id]
        return lines[0]["client_ip"] if lines else None

    return wait_until(found, "the log line")


def test_hop_by_hop_fields_do_not_pass(proxy: Ambassador, origin: Origin) -> None:
    hop = "X-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\nX-Keep: 1\r\n"
    origin.on(
        "/hop",
        f"HTTP/1.1 200 OK\r\nConnection: x-hop, set-cookie\r\n{hop}Set-Cookie: a=b\r\nContent-Length: 2\r\n\r\nok".encode(),
    )
    got = fetch(
        proxy.url,
        "/hop",
        "Connection: keep-alive, X-Hop, , authorization, x-forwarded-for, host, cookie",
        "Connection: x-hop-2",
        "X-Hop: 1",
        "X-Hop-2: 1",
        "Keep-Alive: 5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic abc",
        "TE: gzip, trailers",
        "Upgrade: h2c",
        "HTTP2-Settings: x",
        "X-Ambassador-Anything: 1",
        "x-ambassador-upstream-ms: 1",
        "Authorization: Bearer t",
        "Cookie: a=b",
        "X-Kept: 1",
    )
    request = seen(origin, "/hop")
    names = {name for name, _ in request.fields}
    assert not names & {
        "x-hop", "x-hop-2", "keep-alive", "proxy-connection", "proxy-authorization", "upgrade", "http2-settings",
        "x-ambassador-anything", "x-ambassador-upstream-ms",
    }  # fmt: skip
    assert names >= {"authorization", "cookie", "x-kept", "x-forwarded-for", "host"}
    assert request.get("te") == "trailers"
    answered = {name for name, _ in got.fields}
    assert not answered & {"x-hop", "keep-alive", "proxy-authenticate", "upgrade"}
    assert answered >= {"set-cookie", "x-keep"}


def test_mark_of_a_retry_passes_from_the_trusted_only(proxy: Ambassador, origin: Origin) -> None:
    fetch(proxy.url, "/mark", "x-ambassador-attempt: 2")
    assert seen(origin, "/mark").get("x-ambassador-attempt") is None
    fetch(proxy.urls[1], "/mark", "x-ambassador-attempt: 2")
    assert seen(origin, "/mark").get("x-ambassador-attempt") == "2"


def test_upgrade_that_no_route_takes_is_ignored(proxy: Ambassador, origin: Origin) -> None:
    with Client(proxy.url) as client:
        client.ask(
            "/upgrade",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Key: x",
            method="POST",
            body=b"data",
        )
        client.ask("/after-upgrade")
        assert [client.answer().status, client.answer().status] == [200, 200]
    request = seen(origin, "/upgrade")
    assert (request.body, request.get("upgrade"), request.get("connection")) == (b"data", None, None)


def test_fields_keep_order_case_and_repetition(proxy: Ambassador, origin: Origin) -> None:
    fetch(proxy.url, "/order", "X-B: 1", "x-a: 2", "X-B: 3", "Accept:")
    named = [field for field in seen(origin, "/order").fields if field[0] in ("x-a", "x-b", "accept")]
    assert named == [("x-b", "1"), ("x-a", "2"), ("x-b", "3"), ("accept", "")]


@pytest.mark.parametrize(
    ("sent", "kept"), [("mine-1", True), ("a" * 128, True), ("a" * 129, False), ("a b", False)]
)
def test_request_id_is_kept_if_it_is_one(proxy: Ambassador, origin: Origin, sent: str, kept: bool) -> None:
    got = fetch(proxy.url, "/id", f"x-request-id: {sent}")
    assert (got.get("x-request-id") == sent) is kept
    assert seen(origin, "/id").get("x-request-id") == got.get("x-request-id")


def test_request_ids_are_never_the_same(proxy: Ambassador) -> None:
    with Client(proxy.url) as client:
        for _ in range(20):
            client.ask("/respond/x")
        assert len({client.answer().get("x-request-id") for _ in range(20)}) == 20


def test_trace_goes_on(proxy: Ambassador, origin: Origin) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    fetch(proxy.url, "/trace", f"traceparent: 00-{trace}-{parent}-01", "tracestate: a=1", "tracestate: b=2")
    request = seen(origin, "/trace")
    version, passed, span, flags = (request.get("traceparent") or "").split("-")
    assert (version, passed, flags) == ("00", trace, "01")
    assert span != parent
    assert (request.get("tracestate") or "").replace(" ", "") == "a=1,b=2"


@pytest.mark.parametrize(
    "parent", ["junk", f"00-{'0' * 32}-b7ad6b7169203331-01", f"ff-{'a' * 32}-b7ad6b7169203331-01"]
)
def test_trace_that_is_none_begins_anew(proxy: Ambassador, origin: Origin, parent: str) -> None:
    fetch(proxy.url, "/new-trace", f"traceparent: {parent}", "tracestate: a=1")
    request = seen(origin, "/new-trace")
    assert re.fullmatch(r"00-(?!0{32})[0-9a-f]{32}-[0-9a-f]{16}-0[01]", request.get("traceparent") or "")
    assert parent[3:35] not in (request.get("traceparent") or "")
    assert request.get("tracestate") is None


def test_date_is_added_or_kept(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/dated", answer(b"ok", "200 OK", "Date: Mon, 01 Jan 2024 00:00:00 GMT"))
    assert fetch(proxy.url, "/dated").get("date") == "Mon, 01 Jan 2024 00:00:00 GMT"
    added = fetch(proxy.url, "/undated").get("date") or ""
    assert added.endswith(" GMT")
    assert parsedate_to_datetime(added).year >= 2024


def test_debug_headers_are_off(proxy: Ambassador) -> None:
    names = {name for name, _ in fetch(proxy.url, "/plain").fields}
    assert names == {"content-length", "date", "x-request-id"}


# Targets


def test_absolute_form_replaces_host(proxy: Ambassador, origin: Origin) -> None:
    assert fetch(proxy.url, "http://test/absolute?q=1", host="ignored").status == 200
    request = seen(origin, "/absolute")
    assert (request.target, request.get("x-forwarded-host")) == ("/absolute?q=1", "test")
    assert fetch(proxy.url, "http://a.example/", host="test").status == 207


@pytest.mark.parametrize(
    ("sent", "forwarded"),
    [
        ("/n/a/../b", "/n/b"),
        ("/n/./b/.", "/n/b/"),
        ("/n/%2e%2e/n/c", "/n/c"),
        ("/n/%7Eme/%41", "/n/~me/A"),
        ("/n/a%2Fb%5cc%00", "/n/a%2Fb%5Cc%00"),
        ("/n//x", "/n//x"),
        ("/n/?a=%2e%2e/../&b", "/n/?a=%2e%2e/../&b"),
        ("/n/x?", "/n/x?"),
        ("/n/;p=1/x", "/n/;p=1/x"),
        ("/n/*", "/n/*"),
        ("/*", "/*"),
        ("/n/../*", "/*"),
    ],
)
def test_normalised_path_is_forwarded(proxy: Ambassador, origin: Origin, sent: str, forwarded: str) -> None:
    assert fetch(proxy.url, sent).status == 200
    assert seen(origin, forwarded.partition("?")[0]).target == forwarded


def test_options_star(proxy: Ambassador, origin: Origin) -> None:
    origin.on("*", answer(b"", "200 OK", "Allow: GET"))
    assert fetch(proxy.url, "*", method="OPTIONS").get("allow") == "GET"
    assert seen(origin, "*").start == "OPTIONS * HTTP/1.1"


def test_max_forwards_counts_down(proxy: Ambassador, origin: Origin) -> None:
    assert fetch(proxy.url, "/hops", "max-forwards: 3", method="OPTIONS").status == 200
    assert seen(origin, "/hops").get("max-forwards") == "2"
    assert fetch(proxy.url, "/last", "max-forwards: 0", method="OPTIONS").get("allow")
    assert not origin.seen["/last"]


def test_trace_ends_here_without_credentials(proxy: Ambassador, origin: Origin) -> None:
    got = fetch(
        proxy.url,
        "/traced",
        "max-forwards: 0",
        "Authorization: secret",
        "Cookie: secret",
        "X-A: b",
        method="TRACE",
    )
    assert (got.status, got.get("content-type")) == (200, "message/http")
    assert got.body.startswith(b"TRACE /traced HTTP/1.1\r\n")
    assert b"X-A: b" in got.body
    assert b"secret" not in got.body
    assert not origin.seen["/traced"]


# Routes


def test_redirect(proxy: Ambassador) -> None:
    got = fetch(proxy.url, "/moved/a?x=1")
    assert got.status == 307
    assert (got.get("location") or "").endswith("/now?x=1")


def test_respond(proxy: Ambassador) -> None:
    got = fetch(proxy.url, "/respond/1")
    assert (got.status, got.body, got.get("x-pot")) == (418, b"short and stout", "tea")


def test_rewritten_prefix_and_the_way_back(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/new/a", answer(b"", "302 Found", f"Location: {origin.url}/new/b?c"))
    got = fetch(proxy.url, "/old/a?q")
    assert seen(origin, "/new/a").target == "/new/a?q"
    assert (got.get("location") or "").endswith("/old/b?c")
    assert origin.authority not in (got.get("location") or "")


def test_location_passes_as_it_is_without_a_rewrite(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/created", answer(b"", "201 Created", f"Location: {origin.url}/created/1"))
    assert fetch(proxy.url, "/created").get("location") == f"{origin.url}/created/1"


def test_rewritten_by_a_pattern(proxy: Ambassador, origin: Origin) -> None:
    assert fetch(proxy.url, "/pattern/abc/1").status == 200
    assert seen(origin, "/by/abc/1").get("host") == "other.example"


def test_host_is_kept(proxy: Ambassador, origin: Origin) -> None:
    assert fetch(proxy.url, "/keep/x", host="kept.name:81").status == 200
    assert seen(origin, "/keep/x").get("host") == "kept.name:81"


def test_fields_of_a_route(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/fields/7", answer(b"ok", "200 OK", "Server: secret/1", "X-Internal: 1"))
    got = fetch(
        proxy.url,
        "/fields/7",
        "X-Set: mine",
        "x-gone: 1",
        "x-add: one",
        "Authorization: t",
        "x-request-id: me",
    )
    request = seen(origin, "/fields/7")
    assert (request.get("x-set"), request.get("x-route"), request.get("x-who")) == ("7", "fields", "me")
    assert request.all("x-add") == ["one", "more"]
    assert (request.get("x-gone"), request.get("authorization")) == (None, None)
    assert (got.get("server"), got.get("x-answer"), got.get("x-internal")) == ("hidden", "yes", None)


def test_parameter_with_a_line_break_is_put_nowhere(proxy: Ambassador, origin: Origin) -> None:
    fetch(proxy.url, "/fields/a%0D%0Aevil:%201")
    for request in origin.seen["/fields/a%0D%0Aevil:%201"]:
        assert not request.all("evil")
        assert all("\n" not in value and "\r" not in value for _, value in request.fields)


def test_matches(proxy: Ambassador) -> None:
    assert fetch(proxy.url, "/by", method="DELETE").status == 202
    assert fetch(proxy.url, "/by", "x-version: 2").status == 203
    assert fetch(proxy.url, "/by?a=1&v=3").status == 206
    assert fetch(proxy.url, "/x", host="A.EXAMPLE:99").status == 207
    assert fetch(proxy.url, "/x", host="nobody").status == 404
    assert fetch(proxy.url, "/any", host="nobody").status == 200


def test_no_route_keeps_the_connection(proxy: Ambassador) -> None:
    with Client(proxy.url) as client:
        for _ in range(2):
            client.ask("/x", host="nobody", method="POST", body=b"data")
            got = client.answer()
            assert (got.status, b'"no_route"' in got.body, b'"route":"-"' in got.body) == (404, True, True)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("POST /x HTTP/1.1\r\nhost: nobody\r\n", "12"),
        ("POST /.. HTTP/1.1\r\nhost: test\r\n", "3"),
        ("POST /x HTTP/1.1\r\nhost: test\r\nx-request-deadline: 1\r\n", "4"),
        ("POST /x HTTP/1.1\r\nhost: test\r\nvia: 1.1 tester\r\n", "13"),
        ("POST /x HTTP/1.1\r\nhost: test\r\nhost: other\r\n", "3"),
        ("POST /x HTTP/1.1\r\nhost: test\r\ntransfer-encoding: gzip\r\n", "12"),
        ("POST /x HTTP/1.1\r\nhost: test\r\nexpect: nothing\r\n", "3"),
    ],
)
def test_grpc_callers_are_told_by_grpc_status(proxy: Ambassador, head: str, status: str) -> None:
    with Client(proxy.url) as client:
        client.send(f"{head}content-type: application/grpc+proto\r\n\r\n")
        got = client.answer()
    assert (got.status, got.get("content-type"), got.body) == (200, "application/grpc", b"")
    assert got.get("grpc-status") == status
    assert (got.get("proxy-status") or "").startswith("tester; error=")


# Health


@pytest.mark.parametrize(
    "request_head",
    [
        "GET {} HTTP/1.1\r\nhost: test\r\n\r\n",
        "GET {} HTTP/1.1\r\nhost: nobody\r\n\r\n",
        "GET {} HTTP/1.1\r\n\r\n",
        "GET {} HTTP/1.0\r\n\r\n",
        "HEAD {} HTTP/1.1\r\n\r\n",
        "GET {}? HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET {}? HTTP/1.1\r\n\r\n",
    ],
)
def test_health_needs_no_host(proxy: Ambassador, request_head: str) -> None:
    method = request_head.partition(" ")[0]
    with Client(proxy.url) as client:
        client.send(request_head.format(HEALTH))
        got = client.answer(method=method)
        assert got.status == 200
        assert got.body.strip() == (b"" if method == "HEAD" else b"ok")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_health_refuses_other_methods_and_reads_their_body(proxy: Ambassador, method: str) -> None:
    with Client(proxy.url) as client:
        client.ask(HEALTH, method=method, body=b"x" * 1000)
        refused = client.answer()
        assert (refused.status, refused.get("allow"), refused.get("connection")) == (405, "GET, HEAD", None)
        client.ask(HEALTH, body=b"GET / HTTP/1.1\r\n\r\n")
        assert client.answer().body == b"ok\n"
        client.ask(HEALTH, "transfer-encoding: chunked", method=method)
        client.send("3\r\nabc\r\n0\r\n\r\n")
        assert client.answer().status == 405
        client.ask(HEALTH, method="HEAD")
        head = client.answer(method="HEAD")
        assert (head.status, head.get("content-length")) == (200, "3")
        client.ask(HEALTH, "connection: close", method="HEAD")
        assert client.answer(method="HEAD").get("connection") == "close"
        assert client.is_ended()


@pytest.mark.parametrize("line", ["content-length: 10000000", "expect: 100-continue\r\ncontent-length: 10"])
def test_health_closes_where_a_body_is_too_much_to_read(proxy: Ambassador, line: str) -> None:
    with Client(proxy.url) as client:
        client.ask(HEALTH, *line.split("\r\n"), method="POST")
        refused = client.answer()
        assert (refused.status, refused.get("connection")) == (405, "close")
        assert client.is_ended()


def test_admin_health(proxy: Ambassador) -> None:
    assert proxy.admin_get("/livez").strip() == b"ok"
    assert proxy.admin_get("/readyz").strip() == b"ok"


def test_attempts_are_counted_by_result(proxy: Ambassador, origin: Origin) -> None:
    origin.on("/keep/counted", lambda wire, request: wire.close())
    assert fetch(proxy.url, "/keep/counted", method="POST").status == 502
    origin.on("/keep/counted", OK)
    assert fetch(proxy.url, "/keep/counted").status == 200

    def counted() -> bool:
        mine = proxy.samples('ambassador_attempts_total{route="keep"')
        return any('result="reset"' in line and not line.endswith(" 0") for line in mine)

    wait_until(counted, "the failed attempt in the metrics", 3.0)
