from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.samples import Sample

from ambassador.observe.exposition import OPENMETRICS, PROMETHEUS, render, wants_openmetrics
from ambassador.observe.families import Family, Figures, Histogram, Reader, Word
from ambassador.observe.metrics import BlockKey, Page, Registry, Totals

FIGURES = Figures(version="0.1", instance='odd "name"', generation=1, restarts=0, workers=1, started=1.5)
HOSTILE = 'a"b\\c\nd'


def samples(text: bytes, *, openmetrics: bool = False) -> list[Sample]:
    parse = (
        openmetrics_parser.text_string_to_metric_families
        if openmetrics
        else parser.text_string_to_metric_families
    )
    return [sample for family in parse(text.decode()) for sample in family.samples]


def text_of(families: Iterable[Family], accept: str = "") -> bytes:
    pieces, _ = render(families, accept)
    return b"".join(pieces)


@pytest.fixture
def busy() -> Iterator[Reader]:
    registry = Registry()
    offsets = registry.place([BlockKey(HOSTILE, "u")])
    page = Page.create(registry.size)
    route = page.route(offsets[BlockKey(HOSTILE, "u")])
    route.settled(2, 0.02)
    route.attempt("reset", 0.001)
    route.retry("reset")
    yield Reader(registry, [page], Totals())
    page.close()


@pytest.mark.parametrize("openmetrics", [False, True])
def test_render_is_read_by_the_reference_parser(busy: Reader, openmetrics: bool) -> None:
    pieces, kind = render(busy.families(FIGURES), "application/openmetrics-text" if openmetrics else "")
    text = b"".join(pieces)
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


def test_render_names_types_and_help_for_every_family(busy: Reader) -> None:
    parsed = list(parser.text_string_to_metric_families(text_of(busy.families(FIGURES)).decode()))
    assert len(parsed) == len(list(busy.families(FIGURES)))
    assert all(family.documentation for family in parsed)
    assert {family.type for family in parsed} == {"counter", "gauge", "histogram"}


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_label_value_survives_whatever_it_holds(value: str) -> None:
    text = text_of(
        [Family("x", "gauge", "Help.", [((("name", value),), 1.0)])], "application/openmetrics-text"
    )
    (sample,) = samples(text, openmetrics=True)
    assert sample.labels == {"name": value}


def test_surrogate_does_not_cost_the_scrape() -> None:
    text = text_of([Family("x", "gauge", "Help.", [((("name", "\ud800"),), 1.0)])])
    assert text.endswith(b'x{name="?"} 1.0\n')


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_label_value_survives_in_every_kind_of_series(value: str) -> None:
    labels = (("name", value),)
    text = text_of(
        [
            Family("h", "histogram", "Help.", [(labels, Histogram((1,) * 18, 0.5))]),
            Family("w", "counter", "Help.", [(labels, [1, 2])], Word("word", ("a", "b"))),
        ]
    )
    found = samples(text)
    assert {sample.labels["name"] for sample in found} == {value}
    assert [(sample.labels["word"], sample.value) for sample in found[-2:]] == [("a", 1), ("b", 2)]


def test_series_without_labels() -> None:
    text = text_of(
        [
            Family("h", "histogram", "Help.", [((), Histogram((1,) * 18, 0.5))]),
            Family("w", "counter", "Help.", [((), [3])], Word("word", ("a",))),
        ]
    )
    lines = text.decode().splitlines()
    assert lines[2] == 'h_bucket{le="0.0005"} 1'
    assert lines[19:22] == ['h_bucket{le="+Inf"} 18', "h_count 18", "h_sum 0.5"]
    assert lines[-1] == 'w_total{word="a"} 3'


def test_rare_words_are_told_once_they_have_counted() -> None:
    word = Word("class", ("none", "1xx", "2xx"), rare=2)
    text = text_of([Family("w", "counter", "Help.", [((), [0, 0, 0]), ((), [0, 4, 5])], word)])
    assert text.decode().splitlines()[2:] == [
        'w_total{class="2xx"} 0',
        'w_total{class="1xx"} 4',
        'w_total{class="2xx"} 5',
    ]


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
