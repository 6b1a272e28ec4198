"""Endpoints that come and go while a real service runs: from a file, a name and an API server of Kubernetes."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from tests.control.discovery.fake_api import FakeApi, serving
from tests.e2e.programs import Ambassador, ambassador, wait_until
from tests.e2e.raw import Client, Message, Origin, Wire, answer, fetch, upstream


def routed(discover: str) -> str:
    return f"""\
        defaults: {{retry: off}}
        upstreams: {{u: {{discover: {discover}}}}}
        routes: [{{name: r, to: u}}]
    """


def write(path: Path, *urls: str) -> None:
    """As most tools do: another file in its place."""
    path.with_suffix(".new").write_text(json.dumps(urls))
    path.with_suffix(".new").replace(path)


def served(proxy: Ambassador, *bodies: bytes) -> Callable[[], bool]:
    """Whether every worker answers from these origins alone."""

    def look() -> bool:
        seen = {fetch(proxy.url, "/").body for _ in range(16)}
        return seen == set(bodies)

    return look


@contextmanager
def origin(body: bytes) -> Iterator[Origin]:
    with upstream() as running:
        running.on("/", answer(body))
        yield running


def test_file_that_changes_moves_the_traffic_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.json"
    with origin(b"one") as one, origin(b"two") as two:
        write(path, one.url)
        with ambassador(routed(f"{{file: {path}}}"), workers=2) as proxy:
            release = threading.Event()

            def hold(wire: Wire, request: Message) -> None:
                release.wait(20)
                wire.send(answer(b"held"))

            one.on("/held", hold)
            with Client(proxy.url) as client:
                client.ask("/held")
                wait_until(lambda: one.seen["/held"], "the request upstream")
                statuses: list[int] = []
                stop = threading.Event()

                def load() -> None:
                    while not stop.is_set():
                        statuses.append(fetch(proxy.url, "/").status)

                threads = [threading.Thread(target=load) for _ in range(3)]
                for thread in threads:
                    thread.start()
                try:
                    for _ in range(2):
                        write(path, two.url)
                        wait_until(served(proxy, b"two"), "the move to the second")
                        write(path, one.url, two.url)
                        wait_until(served(proxy, b"one", b"two"), "the way back")
                    write(path, two.url)
                    wait_until(served(proxy, b"two"), "the move to the second")
                finally:
                    stop.set()
                    for thread in threads:
                        thread.join()
                assert set(statuses) == {200}
                # Its endpoint went long ago.
                release.set()
                assert client.answer().body == b"held"


def test_file_with_mistakes_is_told_and_an_empty_list_leaves_no_endpoint(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.yaml"
    with origin(b"one") as one:
        path.write_text(f"- {one.url}\n")
        with ambassador(routed(f"{{file: {path}}}")) as proxy:
            assert fetch(proxy.url, "/").status == 200
            path.write_text(f"- {one.url}\n- {{url: {one.url}0, wieght: 3}}\n")

            def problem() -> str | None:
                (source,) = json.loads(proxy.admin_get("/api/status"))["discovery"]
                found: str | None = source["problem"]
                return found

            told = wait_until(problem, "the problem")
            assert told.startswith(f"{path}:2:")
            assert "did you mean 'weight'?" in told
            assert told in proxy.command("upstreams").stdout
            assert told in proxy.running.stderr.read_text()
            assert fetch(proxy.url, "/").status == 200
            path.write_text("[]")
            wait_until(lambda: fetch(proxy.url, "/").status == 503, "the end of all endpoints")
            assert json.loads(fetch(proxy.url, "/").body)["code"] == "no_endpoint"
            assert "no endpoint" in proxy.command("upstreams").stdout
            path.write_text(f"- {one.url}\n")
            wait_until(lambda: fetch(proxy.url, "/").status == 200, "the endpoint's return")


def test_endpoints_that_a_name_leads_to_are_checked() -> None:
    with origin(b"one") as one:
        found = f"discover: {{dns: 'localhost:{one.url.rpartition(':')[2]}'}}"
        body = f"""\
            upstreams: {{u: {{{found}, health: {{path: /up, every: 1s}}}}}}
            routes: [{{name: r, to: u}}]
        """
        with ambassador(body) as proxy:
            wait_until(lambda: len(one.seen["/up"]) >= 3, "the checks")
            (upstream,) = json.loads(proxy.admin_get("/api/upstreams"))
            reached = [each for each in upstream["endpoints"] if each["address"].startswith("127.0.0.1")]
            assert [each["healthy"] for each in reached] == [True]


def test_worker_that_starts_and_config_that_is_reloaded_have_the_present_list(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.json"
    with origin(b"one") as one, origin(b"two") as two:
        write(path, one.url)
        with ambassador(routed(f"{{file: {path}}}"), workers=2) as proxy:
            write(path, two.url)
            wait_until(served(proxy, b"two"), "the move to the second")
            path.write_text("broken: [")  # from here on only what is known can be had
            wait_until(lambda: "is not YAML" in proxy.running.stderr.read_text(), "the complaint")
            assert proxy.command("reload").returncode == 0
            assert served(proxy, b"two")()
            before = {worker["pid"] for worker in json.loads(proxy.admin_get("/api/status"))["workers"]}
            for pid in before:
                os.kill(pid, signal.SIGTERM)

            def replaced() -> bool:
                workers = json.loads(proxy.admin_get("/api/status"))["workers"]
                return len(workers) == 2 and not before & {each["pid"] for each in workers if each["ready"]}

            wait_until(replaced, "two new workers")
            assert served(proxy, b"two")()


def test_name_is_an_endpoint_for_each_address_and_the_host() -> None:
    with origin(b"one") as one:
        port = one.url.rpartition(":")[2]
        with ambassador(routed(f'{{dns: "localhost:{port}"}}')) as proxy:
            wait_until(lambda: fetch(proxy.url, "/").status == 200, "the name's address")
            (told,) = json.loads(proxy.admin_get("/api/upstreams"))
            assert f"http://127.0.0.1:{port}" in {each["url"] for each in told["endpoints"]}
            assert told["source"] == f"dns localhost:{port}"
        assert {request.get("host") for request in one.seen["/"]} == {f"localhost:{port}"}


@contextmanager
def api_server() -> Iterator[tuple[FakeApi, Callable[[Callable[[], None]], None]]]:
    """The API in a thread with a loop of its own, and what runs a function there."""
    api = FakeApi()
    there = threading.Event()
    loop: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []

    async def serve() -> None:
        async with serving(api):
            with trio.CancelScope() as scope:
                loop.append((trio.lowlevel.current_trio_token(), scope))
                there.set()
                await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    there.wait()
    ((token, scope),) = loop
    try:
        yield api, lambda do: trio.from_thread.run_sync(do, trio_token=token)
    finally:
        token.run_sync_soon(scope.cancel)
        thread.join()


def test_pods_come_and_go() -> None:
    with origin(b"one") as one, origin(b"two") as two, api_server() as (api, inside):
        ports = {"http-1": int(one.url.rpartition(":")[2]), "http-2": int(two.url.rpartition(":")[2])}
        inside(lambda: api.put("web-1", "127.0.0.1", port=ports["http-1"]))
        where = f"{{service: web, namespace: shop, port: http, server: '{api.url}'}}"
        with ambassador(routed(f"{{kubernetes: {where}}}"), workers=2) as proxy:
            assert served(proxy, b"one")()
            inside(lambda: api.put("web-2", "127.0.0.1", port=ports["http-2"]))
            wait_until(served(proxy, b"one", b"two"), "the second pod")
            inside(lambda: api.delete("web-1"))
            wait_until(served(proxy, b"two"), "the end of the first pod")
            inside(lambda: setattr(api, "status", (500, "etcd is away")))
            inside(api.end_watches)
            wait_until(lambda: "etcd is away" in proxy.running.stderr.read_text(), "the complaint")
            assert served(proxy, b"two")()
            inside(lambda: setattr(api, "status", None))
            inside(lambda: api.put("web-2", "127.0.0.1", port=ports["http-2"], ready=False))
            wait_until(lambda: fetch(proxy.url, "/").status == 503, "the end of the last pod")
            assert json.loads(fetch(proxy.url, "/").body)["code"] == "no_endpoint"
