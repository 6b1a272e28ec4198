"""Real clients through a real ambassador to a real server: each must see what it would see without it."""

from __future__ import annotations

import hashlib
import http.client
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest

from tests.e2e.origins import blob
from tests.e2e.programs import DEADLINE_S, Ambassador, needs

MEBIBYTE = 1024 * 1024


def run(*command: str, stdin: bytes = b"") -> bytes:
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def curl(url: str, body: bytes | None = None) -> bytes:
    return run(
        "curl", "-sS", "--fail", *(() if body is None else ("--data-binary", "@-")), url, stdin=body or b""
    )


def with_urllib(url: str, body: bytes | None = None) -> bytes:
    with urllib.request.urlopen(url, data=body, timeout=DEADLINE_S) as answer:
        data: bytes = answer.read()
    return data


def with_httpx(url: str, body: bytes | None = None) -> bytes:
    answer = httpx.get(url) if body is None else httpx.post(url, content=body)
    return answer.raise_for_status().content


_FETCH = """
const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const options = process.argv[2] === "POST" ? {method: "POST", body: Buffer.concat(chunks)} : {};
const answer = await fetch(process.argv[1], options);
if (!answer.ok) throw new Error(answer.status);
process.stdout.write(Buffer.from(await answer.arrayBuffer()));
"""


def fetch(url: str, body: bytes | None = None) -> bytes:
    method = "GET" if body is None else "POST"
    return run("node", "--input-type=module", "-e", _FETCH, url, method, stdin=body or b"")


Client = Callable[..., bytes]
CLIENTS = [
    pytest.param(curl, marks=needs("curl"), id="curl"),
    pytest.param(with_urllib, id="urllib"),
    pytest.param(with_httpx, id="httpx"),
    pytest.param(fetch, marks=needs("node"), id="node"),
]


@pytest.mark.parametrize("client", CLIENTS)
def test_get_brings_the_answer(client: Client, proxy: Ambassador) -> None:
    seen = json.loads(client(f"{proxy.url}/echo?a=1&b=%20"))
    assert (seen["method"], seen["path"], seen["query"]) == ("GET", "/echo", "a=1&b=%20")
    assert seen["headers"]["x-request-id"]
    assert seen["headers"]["x-forwarded-for"] == "127.0.0.1"


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("size", [1, 65_537, 3 * MEBIBYTE])
def test_post_brings_the_body(client: Client, size: int, proxy: Ambassador) -> None:
    body = blob(size)
    seen = json.loads(client(f"{proxy.url}/echo", body))
    assert (seen["method"], seen["length"]) == ("POST", size)
    assert seen["sha256"] == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("size", [0, 1, 65_537, 3 * MEBIBYTE])
def test_download_is_the_same(client: Client, size: int, proxy: Ambassador) -> None:
    assert client(f"{proxy.url}/bytes/{size}") == blob(size)


@needs("curl")
def test_curl_waits_for_100_continue(proxy: Ambassador) -> None:
    body = blob(MEBIBYTE)
    answer = run(
        "curl", "-sS", "-v", "--stderr", "-", "-o", "/dev/null", "-H", "Expect: 100-continue", "--data-binary", "@-",
        f"{proxy.url}/echo", stdin=body,
    )  # fmt: skip
    assert b"< HTTP/1.1 100 Continue" in answer
    assert b"< HTTP/1.1 200" in answer


@needs("curl")
def test_curl_sends_chunks(proxy: Ambassador) -> None:
    body = blob(200_000)
    answer = run(
        "curl",
        "-sS",
        "-H",
        "Transfer-Encoding: chunked",
        "--data-binary",
        "@-",
        f"{proxy.url}/echo",
        stdin=body,
    )
    assert json.loads(answer)["sha256"] == hashlib.sha256(body).hexdigest()


@needs("curl")
def test_curl_uses_its_connection_again(proxy: Ambassador) -> None:
    said = run("curl", "-sS", "-v", "--stderr", "-", *[f"{proxy.url}/bytes/10"] * 3)
    assert said.count(b"Re-using existing connection") == 2


@needs("curl")
def test_curl_gets_http_1_0(proxy: Ambassador) -> None:
    assert run("curl", "-sS", "--http1.0", f"{proxy.url}/bytes/1000") == blob(1000)


@needs("curl")
def test_curl_asks_for_upgrade_to_http2_in_vain(proxy: Ambassador) -> None:
    assert run("curl", "-sS", "--http2", f"{proxy.url}/bytes/1000") == blob(1000)


def test_httpx_streams_an_upload(proxy: Ambassador) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(50):
            yield b"x" * 1000

    seen = httpx.post(f"{proxy.url}/echo", content=pieces()).json()
    assert seen["length"] == 50_000


def test_httpx_in_parallel_over_one_pool(proxy: Ambassador) -> None:
    with httpx.Client() as client, ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda n: client.get(f"{proxy.url}/bytes/{n}").content, range(200)))
    assert answers == [blob(size) for size in range(200)]


def test_gzip_passes_untouched(proxy: Ambassador) -> None:
    answer = httpx.get(f"{proxy.url}/gzip")
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.text == "squeezed"


def test_repeated_headers_stay_apart(proxy: Ambassador) -> None:
    assert httpx.get(f"{proxy.url}/cookies").headers.get_list("set-cookie") == ["a=1", "b=2"]


@pytest.mark.parametrize("status", [200, 201, 204, 304, 404, 418, 500])
def test_status_passes(status: int, proxy: Ambassador) -> None:
    answer = httpx.get(f"{proxy.url}/status/{status}")
    assert (answer.status_code, answer.headers["x-status"]) == (status, str(status))


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_method_passes(method: str, proxy: Ambassador) -> None:
    answer = httpx.request(method, f"{proxy.url}/echo")
    assert answer.status_code == 200
    assert method == "HEAD" or answer.json()["method"] == method


def test_head_then_get_on_one_connection(proxy: Ambassador) -> None:
    connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=DEADLINE_S)
    connection.connect()
    first_socket = connection.sock
    connection.request("HEAD", "/bytes/1000")
    head = connection.getresponse()
    assert (head.status, head.getheader("content-length"), head.read()) == (200, "1000", b"")
    connection.request("GET", "/bytes/1000")
    assert connection.getresponse().read() == blob(1000)
    assert connection.sock is first_socket
    connection.close()


def test_flaky_answers_are_retried(proxy: Ambassador) -> None:
    assert [httpx.get(f"{proxy.url}/flaky").status_code for _ in range(4)] == [200] * 4


def test_no_upstream_is_a_problem_document(proxy: Ambassador) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{proxy.url}/../../etc/passwd", timeout=DEADLINE_S)
    with refused.value as answer:
        assert answer.code == 400
        assert answer.headers["content-type"] == "application/problem+json"
        assert json.loads(answer.read())["code"] == "bad_request"
