from __future__ import annotations

from collections.abc import Iterator

import pytest

from ambassador.observe.families import (
    CertificateFigures,
    Figures,
    HealthFigures,
    KeySetFigures,
    Reader,
    Traffic,
)
from ambassador.observe.metrics import (
    ACCESS,
    CACHED,
    CLIENT,
    CODE_CLASSES,
    REFUSALS,
    TOKENS,
    BlockKey,
    Page,
    Registry,
    Totals,
)

BILLING = BlockKey("billing", "backend")
STATIC = BlockKey("static", "-")


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.place([BILLING, STATIC])
    return registry


@pytest.fixture
def page(registry: Registry) -> Iterator[Page]:
    page = Page.create(registry.size)
    yield page
    page.close()


def test_supervisor_tells_of_itself(registry: Registry) -> None:
    figures = Figures(version="1", instance="a", generation=3, restarts=2, workers=4, started=10.0)
    found = {family.name: family.samples for family in Reader(registry, [], Totals()).families(figures)}
    assert found["ambassador_worker_restarts"] == [((), 2)]
    assert found["ambassador_config_generation"] == [((), 3)]


def test_a_route_without_an_upstream_has_no_attempts(registry: Registry, page: Page) -> None:
    page.route(registry.blocks[STATIC]).settled(2, 0.1)
    page.route(registry.blocks[BILLING]).attempt("connect", 0.1)
    told = {
        family.name: [dict(labels)["route"] for labels, _ in family.samples]
        for family in Reader(registry, [page], Totals()).families()
        if family.kind == "histogram"
        or (family.word is not None and family.name != "ambassador_tls_handshakes")
    }
    assert told == {
        "ambassador_requests": ["-", "billing", "static"],
        "ambassador_request_seconds": ["billing", "static"],
        "ambassador_upstream_seconds": ["billing"],
        "ambassador_attempts": ["billing"],
        "ambassador_retries": ["billing"],
        "ambassador_cache_requests": [],
    }


def test_what_caches_and_first_requests_gave_is_told_of_the_routes_that_have_some(
    registry: Registry, page: Page
) -> None:
    for key in (BILLING, STATIC):
        page.route(registry.blocks[key]).settled(2, 0.1)
    billing = page.route(registry.blocks[BILLING])
    for result in CACHED:
        for _ in range(1 + CACHED.index(result)):
            billing.cached(result)
    billing.replayed()
    told = {
        family.name: (list(family.samples), family.word)
        for family in Reader(registry, [page, page], Totals()).families()
    }
    labels = (("route", "billing"), ("upstream", "backend"))
    samples, word = told["ambassador_cache_requests"]
    assert samples == [(labels, [2, 4, 6, 8])]
    assert word is not None
    assert word.values == ("hit", "validated", "coalesced", "miss")
    assert told["ambassador_idempotent_replays"] == ([(labels, 2)], None)


def test_a_worker_that_ends_while_it_is_read_is_counted_once(registry: Registry, page: Page) -> None:
    totals = Totals()
    pages = {"a worker": page}
    for key in (BILLING, STATIC):
        page.route(registry.blocks[key]).settled(2, 0.1)
    requests = next(Reader(registry, pages.values(), totals).families())
    samples = iter(requests.samples)
    answered = CODE_CLASSES.index("2xx")
    counts = [next(samples)[1], next(samples)[1]]
    totals.fold(pages.pop("a worker"))
    registry.place([BlockKey("new", "backend")])
    counts += [count for _, count in samples]
    assert [count[answered] for count in counts if isinstance(count, list)] == [0, 1, 1]


def test_traffic_tells_each_route_in_short(registry: Registry, page: Page) -> None:
    route = page.route(registry.blocks[BILLING])
    for status_class in (2, 2, 4, 5, 0):
        route.settled(status_class, 0.5)
    route.retry("connect")
    route.retry("503")
    unrouted, billing, static = Reader(registry, [page, page], Totals()).traffic()
    assert billing == Traffic(
        route="billing", upstream="backend", requests=10, errors=2, unanswered=2, retries=4, seconds=5.0
    )
    assert (unrouted.route, unrouted.requests, static.upstream, static.seconds) == ("-", 0, "-", 0.0)


def test_tokens_are_told_by_upstream_and_their_expiry_by_the_living(registry: Registry, page: Page) -> None:
    key = BlockKey("-", "api", TOKENS)
    offset = registry.place([key])[key]
    gone, totals = Page.create(registry.size), Totals()
    gone.tokens(offset).expires(9_000_000_000.0)
    for each, until in ((page, 1_800_000_000.5), (gone, 9_000_000_000.0)):
        each.grow(registry.size)
        block = each.tokens(offset)
        block.asked("ok")
        block.asked("timeout")
        block.expires(until)
    totals.fold(gone)
    gone.close()
    told = {family.name: list(family.samples) for family in Reader(registry, [page], totals).families()}
    labels = (("upstream", "api"),)
    assert told["ambassador_token_requests"] == [(labels, [2, 0, 0, 2, 0, 0, 0])]
    assert told["ambassador_token_expiry_seconds"] == [(labels, 1_800_000_000)]
    assert not [each for each in told["ambassador_requests"] if "api" in str(each)]


def test_limits_are_told_by_route_and_name(registry: Registry, page: Page) -> None:
    keys = [BlockKey("billing", "-", "limit"), BlockKey("@backend", "-", "day")]
    placed = registry.place(keys)
    page.grow(registry.size)
    for key in keys:
        block = page.limit(placed[key])
        block.limited()
        block.waited()
        block.expired(2.6)
    page.limit(placed[keys[0]]).limited()
    told = {family.name: list(family.samples) for family in Reader(registry, [page], Totals()).families()}
    assert told["ambassador_limited"] == [
        ((("route", "billing"), ("limit", "limit")), 2),
        ((("route", "@backend"), ("limit", "day")), 1),
    ]
    assert told["ambassador_limit_waits"] == [((), 2)]
    assert told["ambassador_limit_expired"] == [((), 6)]
    assert [dict(labels)["route"] for labels, _ in told["ambassador_requests"]] == ["-", "billing", "static"]


def test_health_and_ejections_are_told_of_the_upstreams_that_have_them(registry: Registry) -> None:
    health = HealthFigures(upstream="u", healthy=2, unhealthy=1, passed=30, failed=4)
    figures = Figures(
        version="1", instance="a", generation=1, restarts=0, workers=1, started=10.0,
        health=[health], ejections=[("u", 1, 7)],
    )  # fmt: skip
    found = {family.name: family for family in Reader(registry, [], Totals()).families(figures)}
    label = (("upstream", "u"),)
    assert found["ambassador_endpoints"].samples == [(label, (2, 1))]
    assert found["ambassador_health_checks"].samples == [(label, (30, 4))]
    assert found["ambassador_endpoints_ejected"].samples == [(label, 1)]
    assert found["ambassador_ejections"].samples == [(label, 7)]


def test_refusals_and_clients_are_told_and_are_no_limits(registry: Registry, page: Page) -> None:
    access, client = BlockKey("billing", "-", ACCESS), BlockKey("shop", "-", CLIENT)
    registry.place([access, client])
    page.grow(registry.size)
    refused = page.access(registry.blocks[access])
    for reason in ("expired", "forbidden", "expired", "a word that nobody knows"):
        refused.refused(reason)
    page.client(registry.blocks[client]).asked()
    told = {family.name: family for family in Reader(registry, [page], Totals()).families()}
    assert "ambassador_limited" not in told
    ((labels, counts),) = told["ambassador_auth_failures"].samples
    assert labels == (("route", "billing"),)
    assert isinstance(counts, list)
    assert {reason: count for reason, count in zip(REFUSALS, counts, strict=True) if count} == {
        "expired": 2, "forbidden": 1, "unknown": 1,
    }  # fmt: skip
    ((client_labels, count),) = told["ambassador_client_requests"].samples
    assert (client_labels, count) == ((("client", "shop"),), 1)


def test_handshakes_are_told_by_side_and_result(registry: Registry, page: Page) -> None:
    worker = page.worker()
    for result in ("full", "resumed", "resumed"):
        worker.client_handshake(result)
    worker.upstream_handshake("failed")
    [family] = [
        each
        for each in Reader(registry, [page], Totals()).families()
        if each.name == "ambassador_tls_handshakes"
    ]
    assert family.word is not None
    assert family.word.values == ("full", "resumed", "failed")
    assert [(labels, [*counts]) for labels, counts in family.samples] == [  # type: ignore[misc]
        ((("side", "client"),), [1, 2, 0]),
        ((("side", "upstream"),), [0, 0, 1]),
    ]


def test_sets_of_keys_are_told_by_client(registry: Registry) -> None:
    figures = Figures(
        version="1",
        instance="a",
        generation=3,
        restarts=2,
        workers=4,
        started=10.0,
        key_sets=(KeySetFigures("shop", "https://a/jwks", True), KeySetFigures("till", "file:/b", False)),
    )
    [family] = [
        each for each in Reader(registry, [], Totals()).families(figures) if each.name == "ambassador_jwks_up"
    ]
    assert list(family.samples) == [
        ((("client", "shop"), ("source", "https://a/jwks")), 1),
        ((("client", "till"), ("source", "file:/b")), 0),
    ]


def test_certificates_are_told_once_by_side_name_and_file(registry: Registry) -> None:
    shown = CertificateFigures("client", "127.0.0.1:8443", "/tls.crt", 1.8e9)
    figures = Figures(
        version="1",
        instance="a",
        generation=3,
        restarts=2,
        workers=4,
        started=10.0,
        certificates=(shown, shown, CertificateFigures("upstream", "pay", "/ca", 1.9e9)),
    )
    [family] = [
        each
        for each in Reader(registry, [], Totals()).families(figures)
        if each.name == "ambassador_certificate_expiry_seconds"
    ]
    assert list(family.samples) == [
        ((("side", "client"), ("name", "127.0.0.1:8443"), ("file", "/tls.crt")), 1.8e9),
        ((("side", "upstream"), ("name", "pay"), ("file", "/ca")), 1.9e9),
    ]
