from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.samples import Sample

from ambassador.observe.exposition import OPENMETRICS, PROMETHEUS, render, wants_openmetrics
from ambassador.observe.metrics import BlockKey, Family, Figures, Page, Registry, Totals, collect

FIGURES = Figures(version="0.1", instance='odd "name"', generation=1, restarts=0, workers=1, started=1.5)
HOSTILE = 'a"b\\c\nd'


def samples(text: bytes, *, openmetrics: bool = False) -> list[Sample]:
    parse = (
        openmetrics_parser.text_string_to_metric_families
        if openmetrics
        else parser.text_string_to_metric_families
    )
    return [sample for family in parse(text.decode()) for sample in family.samples]


def busy_families() -> list[Family]:
    registry = Registry()
    offsets = registry.place([BlockKey(HOSTILE, "u")])
    page = Page.create(registry.size)
    route = page.route(offsets[BlockKey(HOSTILE, "u")])
    route.settled(2, 0.02)
    route.attempt("reset", 0.001)
    route.retry("reset")
    families = collect(registry, [page], Totals(), FIGURES)
    page.close()
    return families


@pytest.mark.parametrize("openmetrics", [False, True])
def test_render_is_read_by_the_reference_parser(openmetrics: bool) -> None:
    text, kind = render(busy_families(), "application/openmetrics-text" if openmetrics else "")
    assert kind == (OPENMETRICS if openmetrics else PROMETHEUS)
    found = {
        (each.name, *each.labels.values()): each.value for each in samples(text, openmetrics=openmetrics)
    }
    assert found["ambassador_requests_total", HOSTILE, "u", "2xx"] == 1
    assert found["ambassador_requests_total", "-", "-", "4xx"] == 0
    assert found["ambassador_retries_total", HOSTILE, "u", "reset"] == 1
    assert found["ambassador_request_seconds_bucket", HOSTILE, "u", "0.01"] == 0
    assert found["ambassador_request_seconds_bucket", HOSTILE, "u", "0.025"] == 1
    assert found["ambassador_request_seconds_bucket", HOSTILE, "u", "+Inf"] == 1
    assert found["ambassador_request_seconds_count", HOSTILE, "u"] == 1
    assert found["ambassador_request_seconds_sum", HOSTILE, "u"] == 0.02
    assert found["ambassador_build_info", 'odd "name"', "0.1"] == 1
    assert found["ambassador_start_time_seconds",] == 1.5


def test_render_names_types_and_help_for_every_family() -> None:
    families = busy_families()
    parsed = list(parser.text_string_to_metric_families(render(families)[0].decode()))
    assert len(parsed) == len(families)
    assert all(family.documentation for family in parsed)
    assert {family.type for family in parsed} == {"counter", "gauge", "histogram"}


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_label_value_survives_whatever_it_holds(value: str) -> None:
    text, _ = render(
        [Family("x", "gauge", "Help.", [((("name", value),), 1.0)])], "application/openmetrics-text"
    )
    (sample,) = samples(text, openmetrics=True)
    assert sample.labels == {"name": value}


def test_surrogate_does_not_cost_the_scrape() -> None:
    text, _ = render([Family("x", "gauge", "Help.", [((("name", "\ud800"),), 1.0)])])
    assert text.endswith(b'x{name="?"} 1.0\n')


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1", True),
        ("application/openmetrics-text;q=0.2, text/plain;q=0.9", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=x", False),
        ("Application/OpenMetrics-Text; Q=1", True),
    ],
)
def test_accept_chooses_the_format(accept: str, wanted: bool) -> None:
    assert wants_openmetrics(accept) is wanted
