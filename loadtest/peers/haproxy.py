"""HAProxy, from Debian: one thread.

Pooled upstream connections (`http-reuse always`), retries on connect failures, empty answers and 5xx (not of POST,
as the ambassador). It has no total time-out; `timeout server` stands for it. It makes no request id and no
`x-forwarded-for` unless told, and it is not told. Many routes are a `map_beg` file, its own way to hold many
prefixes.
"""

import os
import shutil

from loadtest.bulk import PATH
from loadtest.identity import NAME
from loadtest.job import (
    CLIENT_IDLE_S,
    CONNECT_TIMEOUT_S,
    EXTRA_ATTEMPTS,
    MAX_CLIENT_CONNECTIONS,
    TOTAL_TIMEOUT_S,
    UPSTREAM_IDLE_CONNECTIONS,
    Job,
    Launch,
    Proxy,
)

_LOG_FORMAT = (
    r'{"time":%Ts.%ms,"method":"%HM","path":"%HP","status":%ST,"duration_ms":%Ta,"bytes":%B,'
    r'"upstream":"%si:%sp","client":"%ci"}'
)


def find() -> str | None:
    """The program on PATH or in /usr/sbin."""
    return shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def configuration(job: Job) -> str:
    """The text of the configuration; the map of prefixes, where there are many, lies beside it."""
    log_target = "    log stdout format raw local0" if job.access_log else ""
    log = f"    log global\n    log-format '{_LOG_FORMAT}'" if job.access_log else ""
    chosen = "    default_backend origin"
    if job.scenario.routes > 1:
        chosen = f"    use_backend %[path,map_beg({job.directory}/haproxy.map,none)]"
    bulk = bulk_backend = ""
    if job.bulk_port is not None:
        bulk = f"    use_backend bulk if {{ path {PATH} }}"
        bulk_backend = f"backend bulk\n    server bulk 127.0.0.1:{job.bulk_port}"
    shown = verified = ""
    if job.tls is not None:
        shown = f" ssl crt {job.tls.both} alpn http/1.1 ssl-min-ver TLSv1.2"
        verified = (
            f" ssl verify required ca-file {job.tls.cert} sni str({NAME}) verifyhost {NAME} alpn http/1.1"
        )
    return f"""global
    nbthread 1
    maxconn {MAX_CLIENT_CONNECTIONS}
{log_target}
defaults
    mode http
    http-reuse always
    retries {EXTRA_ATTEMPTS}
    retry-on conn-failure empty-response 500 502 503 504
    option redispatch
    timeout connect {CONNECT_TIMEOUT_S}s
    timeout client {CLIENT_IDLE_S}s
    timeout http-keep-alive {CLIENT_IDLE_S}s
    timeout server {TOTAL_TIMEOUT_S}s
frontend all
    bind 127.0.0.1:{job.port}{shown}
{log}
{bulk}
    http-request disable-l7-retry if METH_POST
{chosen}
backend origin
    server origin {job.upstream} pool-max-conn {UPSTREAM_IDLE_CONNECTIONS}{verified}
{bulk_backend}
"""


def configure(job: Job, binary: str) -> Launch:
    """Write the configuration and return the command line; the master stays away: one process."""
    path = job.directory / "haproxy.cfg"
    path.write_text(configuration(job))
    if job.scenario.routes > 1:
        lines = "".join(f"{prefix} origin\n" for prefix in job.scenario.prefixes())
        (job.directory / "haproxy.map").write_text(lines)
    return Launch([binary, "-db", "-f", str(path)])


PROXY = Proxy(
    name="haproxy",
    install="apt-get install haproxy",
    find=find,
    version=("-v",),
    configure=configure,
)
