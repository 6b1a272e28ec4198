"""The ambassador: its supervisor and one worker, run by this interpreter from a configuration file.

`custom` measures another command line in its place (a prototype, another checkout).
"""

import json
import shlex
import sys
from typing import Any

from loadtest.bulk import PATH
from loadtest.job import (
    BREAKER_ERRORS_PERCENT,
    CLIENT_IDLE_S,
    CONNECT_TIMEOUT_S,
    EXTRA_ATTEMPTS,
    LIMIT_PER_S,
    RETRY_BUDGET_PERCENT,
    TOTAL_TIMEOUT_S,
    UPSTREAM_IDLE_CONNECTIONS,
    Job,
    Launch,
    Proxy,
)

NAME = "ambassador"


def configuration(job: Job) -> dict[str, object]:
    """The configuration (JSON, which is YAML)."""
    upstreams, routes = {"origin": _upstream(job.endpoints, job.upstream_port)}, []
    listener: dict[str, object] = {
        "address": f"127.0.0.1:{job.port}",
        "limits": {"idle": f"{CLIENT_IDLE_S}s"},
    }
    if job.tls is not None:
        listener["tls"] = {"cert": str(job.tls.cert), "key": str(job.tls.key)}
        upstreams["origin"] |= {
            "endpoints": [f"https://{host}:{job.upstream_port}" for host in job.endpoints],
            "tls": {"ca": str(job.tls.cert)},
        }
    if job.bulk_port is not None:
        upstreams["bulk"] = _upstream(["127.0.0.1"], job.bulk_port)
        routes.append(_route("bulk", PATH, "bulk"))
    routes += [
        _route(f"route-{number:03}", f"{prefix}**", "origin")
        for number, prefix in enumerate(job.scenario.prefixes())
    ]
    if job.scenario.policies:
        upstreams["origin"]["breaker"] = {"errors": f"{BREAKER_ERRORS_PERCENT}%", "window": "10s"}
        for route in routes:
            route["limit"] = {"rate": f"{LIMIT_PER_S}/s"}
            route["retry"]["budget"] = {"percent": f"{RETRY_BUDGET_PERCENT}%"}
    return {
        "version": 1,
        "listeners": [listener],
        "admin": f"127.0.0.1:{job.admin_port}",
        "control": f"unix:{job.directory}/ambassador.sock",
        "workers": 1,
        "telemetry": {"access_log": str(job.access_log) if job.access_log else "off"},
        "drain": {"delay": "0s", "timeout": "1s"},
        "state": job.store_url or "local",
        "upstreams": upstreams,
        "routes": routes,
    }


def _upstream(hosts: list[str], port: int) -> dict[str, Any]:
    return {
        "endpoints": [f"http://{host}:{port}" for host in hosts],
        "connections": {"max": UPSTREAM_IDLE_CONNECTIONS},
    }


def _route(name: str, path: str, upstream: str) -> dict[str, Any]:
    return {
        "name": name,
        "match": {"path": path},
        "to": upstream,
        "timeout": {"connect": f"{CONNECT_TIMEOUT_S}s", "total": f"{TOTAL_TIMEOUT_S}s"},
        "retry": {"attempts": EXTRA_ATTEMPTS, "when": ["connect", "refused_stream", "5xx"]},
    }


def configure(job: Job, binary: str) -> Launch:
    """Write the configuration and return the command line."""
    path = _write(job)
    return Launch([binary, "-m", "ambassador", "run", "-c", str(path), "--workers", "1"])


def _write(job: Job) -> str:
    path = job.directory / "ambassador.yaml"
    path.write_text(json.dumps(configuration(job), indent=1))
    return str(path)


def fill(template: str, values: dict[str, str]) -> list[str]:
    """Split a command line as a shell would and replace `{name}` in its words; other braces stay."""
    words = shlex.split(template)
    for name, value in values.items():
        words = [word.replace(f"{{{name}}}", value) for word in words]
    return words


def custom(template: str) -> Proxy:
    """A proxy called `ambassador` that is started by a command line with placeholders.

    `{listen}` and `{upstream}` become host:port, `{listen_port}` and `{upstream_port}` the port alone, `{config}` the
    path of the ambassador's configuration file, `{python}` this interpreter.
    """

    def configure_custom(job: Job, binary: str) -> Launch:
        values = {
            "listen": f"127.0.0.1:{job.port}",
            "upstream": job.upstream,
            "listen_port": str(job.port),
            "upstream_port": str(job.upstream_port),
            "config": _write(job),
            "python": binary,
        }
        return Launch(fill(template, values))

    return Proxy(
        name=NAME,
        install="",
        find=lambda: sys.executable,
        version=("--version",),
        configure=configure_custom,
        has_policies=True,
    )


def _find() -> str | None:
    return sys.executable


PROXY = Proxy(
    name=NAME,
    install="pip install -e .",
    find=_find,
    version=("-m", "ambassador", "version"),
    configure=configure,
    has_policies=True,
)
