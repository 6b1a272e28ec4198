from __future__ import annotations

import os
from typing import cast

from ambassador.config.load import load_text
from ambassador.control.incarnation import Incarnation
from ambassador.control.pages import Pages, block_keys
from ambassador.observe.families import Figures
from ambassador.observe.metrics import ACCESS, CACHED, CLIENT, EGRESS, TOKENS, BlockKey, Page, decode_blocks

FIGURES = Figures(version="1", instance="i", generation=1, restarts=0, workers=1, started=0.0)


def config(names: list[str]) -> str:
    routes = "".join(f"  - {{name: {name}, match: {{path: /{name}}}, respond: 200}}\n" for name in names)
    return f"version: 1\nlisten: 127.0.0.1:0\nroutes:\n{routes}"


def test_what_a_worker_counted_outlives_it_and_reloads() -> None:
    pages = Pages()
    pages.place(load_text(config(["a"])))
    worker = cast("Incarnation", object())
    fd = os.dup(pages.open(worker))
    size = pages.size
    blocks = decode_blocks(pages.place(load_text(config(["a", *(f"r{number}" for number in range(200))]))))
    assert pages.size > size
    page = Page.attach(fd, pages.size)
    page.route(blocks[BlockKey("a", "-")]).settled(2, 0.1)
    page.route(blocks[BlockKey("r199", "-")]).settled(5, 0.1)
    for _ in range(2):
        text = b"".join(pages.render(FIGURES, "")[0]).decode()
        assert 'ambassador_requests_total{route="a",upstream="-",code_class="2xx"} 1' in text
        assert 'ambassador_requests_total{route="r199",upstream="-",code_class="5xx"} 1' in text
        assert {part.route: part.requests for part in pages.traffic()}["r199"] == 1
        if worker in pages._pages:
            pages.settle(worker)
    page.close()


def test_what_routes_may_have_from_their_cache_or_repeat_is_told_from_the_start() -> None:
    pages = Pages()
    text = (
        "version: 1\nlisten: 127.0.0.1:0\n"
        "routes: [{name: a, match: {path: /a}, to: http://e, cache: {}},"
        " {name: b, match: {path: /b}, to: http://e, idempotency: {}}, {name: c, to: http://e}]"
    )
    pages.place(load_text(text))
    told = b"".join(pages.render(FIGURES, "")[0]).decode().splitlines()
    cached = [line for line in told if line.startswith("ambassador_cache_requests_total")]
    assert cached == [
        f'ambassador_cache_requests_total{{route="a",upstream="a",result="{result}"}} 0' for result in CACHED
    ]
    replays = [line for line in told if line.startswith("ambassador_idempotent_replays_total")]
    assert replays == ['ambassador_idempotent_replays_total{route="b",upstream="b"} 0']


def test_every_upstream_of_a_route_has_a_block() -> None:
    text = (
        "version: 1\nlisten: 127.0.0.1:0\n"
        "routes: [{name: a, to: http://e, fallback: {to: http://f}}, {name: b, to: http://e, fallback: {stale: 1m}}]"
    )
    assert list(block_keys(load_text(text))) == [
        BlockKey("a", "a"),
        BlockKey("a", "a.fallback"),
        BlockKey("b", "b"),
        *(BlockKey(name, "-", EGRESS) for name in ("a", "a.fallback", "b")),
    ]


def test_every_upstream_with_fetched_tokens_has_a_block() -> None:
    oauth2 = "{token_url: 'https://i/t', client_id: a, client_secret: 'env:S'}"
    text = (
        "version: 1\nlisten: 127.0.0.1:0\nroutes: [{name: a, to: u}]\n"
        "upstreams: {u: {endpoints: ['http://127.0.0.1:1'], auth: {oauth2: %s}},"
        " v: {endpoints: ['http://127.0.0.1:1'], auth: {bearer: 'env:S'}}}"
    )
    keys = list(block_keys(load_text(text % oauth2)))
    assert [key for key in keys if key.limit != EGRESS] == [
        BlockKey("a", "u"),
        BlockKey("-", "u", TOKENS),
    ]


def test_every_limit_has_a_block() -> None:
    text = (
        "version: 1\nlisten: 127.0.0.1:0\nupstreams: {u: {endpoints: ['http://e'], limit: {quota: 9/d}}}\n"
        "routes: [{name: a, to: u, limit: [1/s, {name: x, rate: 2/s}]}, {name: b, respond: 200}]"
    )
    assert list(block_keys(load_text(text))) == [
        BlockKey("a", "u"),
        BlockKey("a", "-", "limit"),
        BlockKey("a", "-", "x"),
        BlockKey("b", "-"),
        BlockKey("u", "-", EGRESS),
        BlockKey("@u", "-", "limit"),
    ]


def test_clients_and_routes_with_access_have_blocks() -> None:
    text = config(["a"]).replace("respond: 200", "respond: 200, access: ['*']")
    keys = list(block_keys(load_text(text + "clients: {shop: {network: [10.0.0.0/8]}}")))
    assert BlockKey("a", "-", ACCESS) in keys
    assert BlockKey("shop", "-", CLIENT) in keys
