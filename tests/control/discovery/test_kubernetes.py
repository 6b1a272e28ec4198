"""Against a server that does what the API's documentation says (`fake_api`), over real sockets."""

from __future__ import annotations

import json
import math
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from ambassador.config.discover import Kubernetes
from ambassador.control import http_client
from ambassador.control.discovery import kubernetes
from ambassador.control.discovery.kubernetes import SliceWatch, access
from ambassador.control.discovery.slices import Merged
from ambassador.control.http_client import CallFailed
from tests.control.discovery.fake_api import FakeApi, serving


class Heard:
    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[list[str]](math.inf)
        self._troubled, self._troubles = trio.open_memory_channel[str](math.inf)
        self.problem: str | None = None
        self.pauses: list[int] = []
        self.pause_s = 0.001
        self.answers = 0
        """How often it was told that all is well."""

    async def tell(self, merged: Merged) -> None:
        self._send.send_nowait(
            [server.url.removeprefix("http://10.0.0.").removesuffix(":8080") for server in merged.servers]
        )

    def trouble(self, problem: str | None) -> None:
        if problem is not None and problem != self.problem:
            self._troubled.send_nowait(problem)
        self.problem = problem
        self.answers += problem is None

    def pause(self, failures: int, chance: float) -> float:
        self.pauses.append(failures)
        return self.pause_s

    async def until(self, *last: str) -> None:
        """Wait until the pods with these last numbers are told."""
        while await self._receive.receive() != list(last):
            pass

    async def trouble_of(self, part: str) -> None:
        while part not in await self._troubles.receive():
            pass


@asynccontextmanager
async def watching(api: FakeApi, **settings: str) -> AsyncIterator[Heard]:
    heard = Heard()
    config = Kubernetes(service="web", namespace="shop", server=api.url, **settings)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(SliceWatch(config, heard.tell, heard.trouble, pause_s=heard.pause).run)
        yield heard
        nursery.cancel_scope.cancel()


async def test_pods_are_listed_then_watched() -> None:
    async with serving(FakeApi()) as api:
        api.put("web-a", "10.0.0.1")
        api.put("other", "10.0.0.9", service="api")
        async with watching(api) as heard:
            await heard.until("1")
            api.put("web-b", "10.0.0.2", "10.0.0.3")
            await heard.until("1", "2", "3")
            api.put("web-b", "10.0.0.3")
            await heard.until("1", "3")
            api.put("other", "10.0.0.8", service="api")
            api.delete("web-a")
            await heard.until("3")
            api.put("web-b", "10.0.0.3", ready=False)
            await heard.until()
        assert [kind for kind, _ in api.requests] == ["list", "watch"]
        assert api.requests[1][1]["allowWatchBookmarks"] == "true"
        assert 240 <= int(api.requests[1][1]["timeoutSeconds"]) <= 480
        assert heard.pauses == []


async def test_events_that_are_cut_anywhere_are_put_together() -> None:
    async with serving(FakeApi()) as api:
        api.chunk = 7
        async with watching(api) as heard:
            await heard.until()
            api.put("web-a", "10.0.0.1")
            await heard.until("1")


async def test_long_list_comes_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "PAGE", 2)
    async with serving(FakeApi()) as api:
        for number in range(1, 6):
            api.put(f"web-{number}", f"10.0.0.{number}")
        async with watching(api) as heard:
            await heard.until("1", "2", "3", "4", "5")
        assert [kind for kind, _ in api.requests][:3] == ["list"] * 3


async def test_watch_that_ends_goes_on_from_its_last_version() -> None:
    async with serving(FakeApi()) as api:
        api.put("web-a", "10.0.0.1")
        async with watching(api) as heard:
            await heard.until("1")
            api.put("web-b", "10.0.0.2")
            await heard.until("1", "2")
            api.end_watches()
            api.put("web-c", "10.0.0.3")
            await heard.until("1", "2", "3")
        versions = [query["resourceVersion"] for kind, query in api.requests if kind == "watch"]
        assert versions == ["101", "102"]
        assert [kind for kind, _ in api.requests] == ["list", "watch", "watch"]
        assert heard.pauses == []


async def test_bookmark_brings_the_version_on() -> None:
    async with serving(FakeApi()) as api:
        api.put("web-a", "10.0.0.1")
        async with watching(api) as heard:
            await heard.until("1")
            api.advance()
            await api.bookmarked.wait()
            api.compact()
            api.end_watches()
            api.put("web-b", "10.0.0.2")
            await heard.until("1", "2")
        assert api.requests[-1][1]["resourceVersion"] == "111"
        assert [kind for kind, _ in api.requests].count("list") == 1


@pytest.mark.parametrize("gone_as", ["status", "event"])
async def test_version_that_is_gone_is_a_new_list_at_once(gone_as: str) -> None:
    async with serving(FakeApi()) as api:
        api.gone_as = gone_as
        api.put("web-a", "10.0.0.1")
        async with watching(api) as heard:
            await heard.until("1")
            api.put("web-b", "10.0.0.2")
            await heard.until("1", "2")
            # While nobody watches, slices come and go, and the history is forgotten.
            api.end_watches()
            api.put("web-c", "10.0.0.3")
            api.delete("web-a")
            api.compact()
            await heard.until("2", "3")
        assert [kind for kind, _ in api.requests][:3] == ["list", "watch", "watch"]
        assert "list" in [kind for kind, _ in api.requests][3:]
        assert heard.pauses == []


async def test_page_that_is_gone_is_a_new_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "PAGE", 1)
    async with serving(FakeApi()) as api:
        api.put("web-a", "10.0.0.1")
        api.put("web-b", "10.0.0.2")
        serve_list, lists = api._list, []

        async def list_and_forget(stream: trio.abc.Stream, query: dict[str, str], service: str) -> None:
            await serve_list(stream, query, service)
            lists.append(query)
            if len(lists) == 1:
                api.advance()
                api.compact()

        monkeypatch.setattr(api, "_list", list_and_forget)
        async with watching(api) as heard:
            await heard.until("1", "2")
        assert ["continue" in query for query in lists] == [False, True, False, True]


async def test_server_that_always_forgets_is_not_asked_in_a_frenzy() -> None:
    async with serving(FakeApi()) as api:
        api.put("web-a", "10.0.0.1")
        api.oldest = 10**9
        api.status = (410, "Expired")
        async with watching(api) as heard:
            while len(heard.pauses) < 3:
                await trio.lowlevel.checkpoint()
        assert heard.pauses[:3] == [1, 2, 3]


async def test_failure_keeps_what_is_known_and_backs_off() -> None:
    async with serving(FakeApi()) as api:
        api.put("web-a", "10.0.0.1")
        async with watching(api) as heard:
            await heard.until("1")
            api.status = (503, "etcd is away")
            api.end_watches()
            await heard.trouble_of("the API server answers 503: etcd is away")
            while len(heard.pauses) < 3:
                await trio.lowlevel.checkpoint()
            assert heard.pauses[:3] == [1, 2, 3]
            api.status = None
            api.put("web-b", "10.0.0.2")
            await heard.until("1", "2")
            assert heard.problem is None
        assert [kind for kind, _ in api.requests].count("list") == 1


async def test_server_that_is_away_is_told() -> None:
    async with serving(FakeApi()) as api:
        pass
    async with watching(api) as heard:
        await heard.trouble_of("refused")


async def test_error_event_is_told_and_watched_on() -> None:
    async with serving(FakeApi()) as api:
        async with watching(api) as heard:
            await heard.until()
            status = {"kind": "Status", "code": 500, "message": "storage is (re)initializing"}
            api.say(json.dumps({"type": "ERROR", "object": status}).encode())
            await heard.trouble_of("the watch ended: storage is (re)initializing")
            api.put("web-a", "10.0.0.1")
            await heard.until("1")


async def test_nonsense_is_told_and_listed_anew() -> None:
    async with serving(FakeApi()) as api:
        async with watching(api) as heard:
            await heard.until()
            api.say(b'{"type": "ADDED", "object": {"metadata": 7}}')
            await heard.trouble_of("makes no sense")
            api.put("web-a", "10.0.0.1")
            await heard.until("1")
        assert [kind for kind, _ in api.requests].count("list") >= 2


async def test_unknown_events_are_passed_over() -> None:
    async with serving(FakeApi()) as api:
        async with watching(api) as heard:
            await heard.until()
            api.say(b'{"type": "NOVELTY", "object": {"metadata": {"name": "x", "resourceVersion": "101"}}}')
            api.put("web-a", "10.0.0.1")
            await heard.until("1")
        assert heard.pauses == []


async def test_token_that_was_rotated_is_read_again_at_once(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("one\n")
    async with serving(FakeApi()) as api:
        api.token = "one"
        async with watching(api, token=f"file:{path}") as heard:
            await heard.until()
            api.token = "two"
            api.end_watches()
            await heard.trouble_of("401: Unauthorized")
            path.write_text("two\n")
            api.put("web-a", "10.0.0.1")
            await heard.until("1")
        assert api.tokens[0] == "one"
        assert api.tokens[-1] == "two"


async def test_new_token_ends_the_pause_after_one_that_was_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "_LOOK_EVERY_S", 0.001)
    path = tmp_path / "token"
    path.write_text("one\n")
    async with serving(FakeApi()) as api:
        api.token = "two"
        async with watching(api, token=f"file:{path}") as heard:
            heard.pause_s = math.inf
            await heard.trouble_of("401: Unauthorized")
            while not heard.pauses:
                await trio.lowlevel.checkpoint()
            path.unlink()
            await trio.testing.wait_all_tasks_blocked()
            path.write_text("two\n")
            api.put("web-a", "10.0.0.1")
            await heard.until("1")
        assert api.tokens[:2] == ["one", "two"]


async def test_list_that_succeeds_begins_the_pauses_anew() -> None:
    async with serving(FakeApi()) as api:
        api.status = (503, "etcd is away")
        async with watching(api) as heard:
            while len(heard.pauses) < 4:
                await trio.lowlevel.checkpoint()
            api.watch_status = (403, "may not watch")
            api.status = None
            await heard.trouble_of("may not watch")
            failed = len(heard.pauses)
            while len(heard.pauses) < failed + 3:
                await trio.lowlevel.checkpoint()
        assert 1 in heard.pauses[3:]
        assert [kind for kind, _ in api.requests].count("list") == 1
        assert heard.pauses[-3:] == sorted(heard.pauses[-3:])


async def test_watch_that_lasted_begins_the_pauses_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """However it ends, and though it has said nothing."""
    monkeypatch.setattr(kubernetes, "_SHORT_S", 0.0)
    async with serving(FakeApi()) as api:
        api.put("web-a", "10.0.0.1")
        async with watching(api) as heard:
            await heard.until("1")
            for number in range(3):
                while heard.answers < 2 + number:  # the list, and the watches
                    await trio.lowlevel.checkpoint()
                api.break_watches()
                while len(heard.pauses) == number:
                    await trio.lowlevel.checkpoint()
        assert heard.pauses[:3] == [1, 1, 1]


async def test_list_that_the_watch_makes_needed_does_not_begin_the_pauses_anew() -> None:
    """Each watch costs its version at once, and is followed by a list that succeeds."""
    async with serving(FakeApi()) as api:
        api.gone_as = "event"
        api.forgets_always = True
        async with watching(api) as heard:
            while len(heard.pauses) < 3:
                await trio.lowlevel.checkpoint()
        assert heard.pauses[:3] == [1, 2, 3]
        assert [kind for kind, _ in api.requests][:4] == ["list", "watch", "list", "watch"]


async def test_pod_reaches_the_server_of_its_cluster(tmp_path: Path) -> None:
    ca = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(tls)
    ca.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    (tmp_path / "token").write_text("secret")
    (tmp_path / "namespace").write_text("shop")
    async with serving(FakeApi(), tls) as api:
        api.token = "secret"
        api.put("web-a", "10.0.0.1")
        environ = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": api.url.rpartition(":")[2],
        }
        heard = Heard()
        watch = SliceWatch(
            Kubernetes(service="web"), heard.tell, heard.trouble,
            account=str(tmp_path), environ=environ, pause_s=heard.pause,
        )  # fmt: skip
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run)
            await heard.until("1")
            nursery.cancel_scope.cancel()


def test_access_says_what_is_missing(tmp_path: Path) -> None:
    account = str(tmp_path)
    with pytest.raises(CallFailed, match="no pod of a cluster"):
        access(Kubernetes(service="web"), account, {})
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1"}
    with pytest.raises(CallFailed, match="namespace: cannot be read"):
        access(Kubernetes(service="web"), account, environ)
    (tmp_path / "token").write_text("t")
    with pytest.raises(CallFailed, match=r"ca\.crt' cannot be read: No such file"):
        access(Kubernetes(service="web", namespace="n"), account, environ)
    (tmp_path / "ca.crt").write_text("none")
    with pytest.raises(CallFailed, match="holds no certificate"):
        access(Kubernetes(service="web", namespace="n"), account, environ)


def test_access_of_a_named_server_needs_no_pod() -> None:
    found = access(Kubernetes(service="web", namespace="n", server="https://api:6443"), "/none", {})
    assert (found.server, found.namespace, found.token, found.tls) == ("https://api:6443", "n", None, None)


@pytest.mark.parametrize(
    ("server", "token", "only"),
    [("http://localhost:1", "t", True), ("http://api:1", None, False), ("https://api:1", "t", False)],
)
def test_access_with_a_token_in_plaintext_is_for_this_host(
    tmp_path: Path, server: str, token: str | None, *, only: bool
) -> None:
    (tmp_path / "t").write_text("t")
    secret = None if token is None else f"file:{tmp_path}/{token}"
    found = access(Kubernetes(service="web", namespace="n", server=server, token=secret), "/none", {})
    assert found.only_loopback is only


async def test_watch_shows_no_token_in_plaintext_where_a_name_leads_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t").write_text("t")
    monkeypatch.setattr(http_client, "is_loopback", lambda _address: False)
    async with serving(FakeApi()) as api:
        async with watching(api, token=f"file:{tmp_path}/t") as heard:
            await heard.trouble_of("is not on this host")
        assert api.requests == []


NAMES = st.sampled_from(["web-a", "web-b", "web-c"])
PODS = st.lists(st.integers(1, 9), max_size=3, unique=True)
STEP = st.one_of(
    st.tuples(st.just("put"), NAMES, PODS),
    st.tuples(st.just("delete"), NAMES),
    st.tuples(st.just("advance")),
    st.tuples(st.just("compact")),
    st.tuples(st.just("end")),
    st.tuples(st.just("fail")),
    st.tuples(st.just("recover")),
    st.tuples(st.just("garble")),
    st.tuples(st.just("pause")),
)


async def carry_out(api: FakeApi, step: tuple[Any, ...]) -> None:
    kind, *rest = step
    if kind == "put":
        name, pods = rest
        api.put(name, *(f"10.0.0.{last}" for last in pods))
    elif kind == "delete" and rest[0] in api.slices:
        api.delete(rest[0])
    elif kind == "advance":
        api.advance()
    elif kind == "compact":
        api.compact()
    elif kind == "end":
        api.end_watches()
    elif kind in ("fail", "recover"):
        api.status = (500, "etcd is away") if kind == "fail" else None
        api.end_watches()
    elif kind == "garble":
        api.say(b'{"type": "ADDED", "object": []}')
    elif kind == "pause":
        for _ in range(30):
            await trio.lowlevel.checkpoint()


@given(
    st.lists(STEP, max_size=30), st.sampled_from(["status", "event"]), st.integers(1, 3), st.integers(5, 400)
)
@settings(max_examples=40)
def test_watch_ends_up_with_what_the_cluster_has(
    steps: list[tuple[Any, ...]], gone_as: str, page: int, chunk: int
) -> None:
    """Whatever happens between: pods, restarts, forgotten versions, errors and nonsense, at any point of a request."""

    async def live() -> None:
        async with serving(FakeApi()) as api:
            api.gone_as, api.chunk = gone_as, chunk
            async with watching(api) as heard:
                for step in steps:
                    await carry_out(api, step)
                api.status = None
                api.put("web-last", "10.0.0.0")
                pods = {each["addresses"][0] for made in api.slices.values() for each in made["endpoints"]}
                with trio.fail_after(20):
                    await heard.until(*sorted(pod.removeprefix("10.0.0.") for pod in pods))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kubernetes, "PAGE", page)
        patch.setattr(kubernetes, "_GATHER_S", 0.0)
        trio.run(live)
