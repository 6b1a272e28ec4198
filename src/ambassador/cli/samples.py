"""The demo's sample upstreams and its light traffic: `python -m ambassador.cli.samples`, a child of `ambassador demo`.

Prints the upstreams' URLs as one line of JSON. Then a line on standard input says where the ambassador listens, and a
few requests a second go there. Ends when standard input does, that is with its parent, whatever happened to it.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final
from urllib.parse import parse_qs, urlsplit

from ambassador.cli import OK

_TRAFFIC_EVERY_S: Final = 0.4
_SLOW_S: Final = (0.1, 1.3)  # against a timeout of one second: one answer in four comes too late

_SOAP: Final = (
    '<?xml version="1.0"?><soap:Envelope xmlns:soap="http://schemas.xmlsoap.org/soap/envelope/"><soap:Body>'
    "<GetBalanceResponse><Balance>1234.56</Balance></GetBalanceResponse></soap:Body></soap:Envelope>"
)

Answer = tuple[int, str, str]
"""Status, content type, body."""


def _json(status: int, **members: object) -> Answer:
    return status, "application/json", json.dumps(members) + "\n"


def _healthy(path: str) -> Answer:
    return _json(200, upstream="healthy", path=path)


def _flaky(turns: Iterator[int]) -> Callable[[str], Answer]:
    def answer(path: str) -> Answer:
        turn = next(turns)
        if turn % 2:
            return _json(503, upstream="flaky", failed="every other time", request=turn)
        return _json(200, upstream="flaky", path=path, request=turn)

    return answer


def _slow(path: str) -> Answer:
    asked = parse_qs(urlsplit(path).query).get("seconds")
    took_s = min(float(asked[0]), 30.0) if asked else random.uniform(*_SLOW_S)  # noqa: S311
    time.sleep(took_s)
    return _json(200, upstream="slow", took_s=round(took_s, 3))


def _soap(_: str) -> Answer:
    return 200, "text/xml; charset=utf-8", _SOAP


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Somebody hung up: the demo does that on purpose."""


def _serve(answer: Callable[[str], Answer]) -> str:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            status, content_type, text = answer(self.path)
            body = text.encode()
            self.send_response(status)
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the library's names

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


def _send_traffic(url: str) -> None:
    where = urlsplit(url)
    for path in itertools.cycle(["/", "/flaky/a", "/slow/a", "/hello", "/flaky/b", "/soap/balance"]):
        time.sleep(_TRAFFIC_EVERY_S)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=5)
        try:
            connection.request("GET", path, headers={"user-agent": "ambassador-demo"})
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            continue
        finally:
            connection.close()


def main() -> int:
    """Serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    turns = itertools.count(1)
    upstreams = {"healthy": _healthy, "flaky": _flaky(turns), "slow": _slow, "soap": _soap}
    print(json.dumps({name: _serve(answer) for name, answer in upstreams.items()}), flush=True)
    url = sys.stdin.readline().strip()
    if url:
        threading.Thread(target=_send_traffic, args=(url,), daemon=True).start()
        sys.stdin.read()
    return OK


if __name__ == "__main__":
    sys.exit(main())
