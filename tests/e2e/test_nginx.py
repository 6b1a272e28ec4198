"""nginx behind the ambassador: keep-alive, sendfile, chunked gzip, ranges, conditional requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.origins import blob, nginx
from tests.e2e.programs import ambassador, needs

pytestmark = needs("nginx")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    directory: Path = tmp_path_factory.mktemp("nginx")
    files = directory / "www" / "files"
    files.mkdir(parents=True)
    (files / "large.bin").write_bytes(blob(8_000_000))
    (files / "page.txt").write_text("words " * 10_000)
    with nginx(directory) as origin, ambassador(f"routes: [{{name: all, to: '{origin}'}}]") as proxy:
        with httpx.Client(base_url=proxy.url) as client:
            yield client


def test_large_file_is_the_same(client: httpx.Client) -> None:
    assert client.get("/files/large.bin").content == blob(8_000_000)


def test_range_is_a_part(client: httpx.Client) -> None:
    answer = client.get("/files/large.bin", headers={"range": "bytes=1000-1999"})
    assert (answer.status_code, answer.content) == (206, blob(2000)[1000:])


def test_etag_saves_the_body(client: httpx.Client) -> None:
    tag = client.head("/files/large.bin").headers["etag"]
    answer = client.get("/files/large.bin", headers={"if-none-match": tag})
    assert (answer.status_code, answer.content) == (304, b"")


def test_compressed_chunks_pass(client: httpx.Client) -> None:
    answer = client.get("/files/page.txt", headers={"accept-encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.text == "words " * 10_000


def test_upload_is_taken(client: httpx.Client) -> None:
    assert client.post("/upload", content=blob(5_000_000)).text == "taken\n"


def test_no_content_then_more_on_the_same_connection(client: httpx.Client) -> None:
    assert [client.get("/none").status_code for _ in range(3)] == [204] * 3
    assert client.get("/files/page.txt").status_code == 200


def test_a_client_that_leaves_in_the_middle_does_no_harm(client: httpx.Client) -> None:
    for _ in range(5):
        with client.stream("GET", "/files/large.bin") as answer:
            next(answer.iter_raw(1000))
    assert client.get("/files/large.bin").content == blob(8_000_000)
