"""nginx, from Debian: a master and one worker.

Its open edition retries only on *another* server of an upstream, so the origin is listed twice. Buffers never go to
disk (`proxy_max_temp_file_size 0`): the others stream too. It makes no request id and no `x-forwarded-for` unless
told, and it is not told.
"""

from loadtest import nginx_common
from loadtest.bulk import PATH
from loadtest.identity import NAME
from loadtest.job import (
    CONNECT_TIMEOUT_S,
    EXTRA_ATTEMPTS,
    TOTAL_TIMEOUT_S,
    UPSTREAM_IDLE_CONNECTIONS,
    Job,
    Launch,
    Proxy,
)

_LOG_FORMAT = (
    '\'{"time":"$time_iso8601","method":"$request_method","path":"$uri","status":$status,'
    '"duration_s":$request_time,"bytes":$body_bytes_sent,"upstream":"$upstream_addr","client":"$remote_addr"}\''
)


def configuration(job: Job) -> str:
    """The text of the configuration."""
    log = ""
    if job.access_log is not None:
        log = (
            f"log_format json escape=json {_LOG_FORMAT};\n"
            f"        access_log {job.access_log} json buffer=64k flush=1s;"
        )
    scheme, shown, verified = "http", "", ""
    if job.tls is not None:
        scheme = "https"
        shown = f" ssl; ssl_certificate {job.tls.cert}; ssl_certificate_key {job.tls.key}"
        verified = (
            f"ssl_protocols TLSv1.2 TLSv1.3; proxy_ssl_protocols TLSv1.2 TLSv1.3; proxy_ssl_name {NAME};"
            f" proxy_ssl_server_name on; proxy_ssl_verify on; proxy_ssl_trusted_certificate {job.tls.cert};"
        )
    locations = "\n".join(
        f"        location {prefix} {{ proxy_pass {scheme}://origin; }}" for prefix in job.scenario.prefixes()
    )
    if job.bulk_port is not None:
        locations += f"\n        location = {PATH} {{ proxy_pass http://127.0.0.1:{job.bulk_port}; }}"
    http = f"""
    upstream origin {{
        server {job.upstream} max_fails=0;
        server {job.upstream} max_fails=0;
        keepalive {UPSTREAM_IDLE_CONNECTIONS};
        keepalive_requests 1000000000;
    }}
    {log}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_connect_timeout {CONNECT_TIMEOUT_S}s;
    proxy_read_timeout {TOTAL_TIMEOUT_S}s;
    proxy_next_upstream error timeout http_500 http_502 http_503 http_504;
    proxy_next_upstream_tries {EXTRA_ATTEMPTS + 1};
    proxy_next_upstream_timeout {TOTAL_TIMEOUT_S}s;
    proxy_max_temp_file_size 0;
    {verified}
    server {{
        listen 127.0.0.1:{job.port} backlog=4096{shown};
{locations}
    }}
"""
    return nginx_common.configuration(job.directory / "nginx-state", http)


def configure(job: Job, binary: str) -> Launch:
    """Write the configuration and return the command line."""
    (job.directory / "nginx-state").mkdir()
    path = job.directory / "nginx.conf"
    path.write_text(configuration(job))
    return Launch(nginx_common.command(binary, path))


PROXY = Proxy(
    name="nginx",
    install=nginx_common.INSTALL,
    find=nginx_common.find,
    version=("-v",),
    configure=configure,
)
