"""The upstream of every proxy: one nginx worker without logs.

It answers 92 bytes of JSON on every path, a 64 KiB and a 1 MiB file, a large one (a hole, it takes no room on the
disk), and POSTs on /post. `return` alone would answer a
POST before its body is there, and proxies rightly close such a connection; the mirror module reads
the body first, then the static module refuses the method, and that refusal is turned into the answer.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from loadtest import nginx_common, processes
from loadtest.identity import CIPHERSUITE, Identity

ANSWER = '{"id":"0001","status":"active","currency":"EUR","amount":"1250.00","name":"account-0001-x"}'
assert len(ANSWER) == 91, len(ANSWER)
BULK_BYTES = 16 << 30


@contextlib.contextmanager
def serving(directory: Path, core: int | None, tls: Identity | None = None) -> Iterator[int]:
    """Start it in a directory that it makes; gives its port. With `tls` it speaks only that. Raises StartError."""
    binary = nginx_common.find()
    if binary is None:
        raise processes.StartError(f"the origin needs nginx: {nginx_common.INSTALL}")
    directory.mkdir(exist_ok=True)
    [port] = processes.free_ports(1)
    command = nginx_common.command(binary, write(directory, port, tls))
    with processes.running("origin", command, port=port, core=core, directory=directory, tls=tls is not None):
        yield port


def write(directory: Path, port: int, tls: Identity | None = None) -> Path:
    """Write the files and the configuration of the origin; returns the configuration's path."""
    files = directory / "origin"
    files.mkdir()
    _state(directory).mkdir()
    for name, size in (("64k", 64 * 1024), ("1m", 1024 * 1024)):
        (files / name).write_bytes(b"x" * size)
    with (files / "bulk").open("wb") as bulk:
        bulk.truncate(BULK_BYTES)
    (files / "post").touch()  # the static module looks for the file before it refuses the method
    path = directory / "origin.conf"
    path.write_text(configuration(directory, files, port, tls))
    return path


# A longer piece of /bulk would hold the kernel, and with it the generator, longer than what is measured there.
def configuration(directory: Path, files: Path, port: int, tls: Identity | None = None) -> str:
    """The text of the origin's configuration."""
    ssl = settings = ""
    if tls is not None:
        ssl = " ssl"
        settings = (
            f"ssl_certificate {tls.cert}; ssl_certificate_key {tls.key}; ssl_protocols TLSv1.3;"
            f" ssl_conf_command Ciphersuites {CIPHERSUITE};"
        )
    http = f"""
    sendfile on;
    default_type application/octet-stream;
    open_file_cache max=16;
    server {{
        listen 127.0.0.1:{port}{ssl} backlog=4096;
        listen 127.0.0.2:{port}{ssl} backlog=4096;
        {settings}
        root {files};
        location / {{ default_type application/json; return 200 '{ANSWER}\\n'; }}
        location = /64k {{ }}
        location = /1m {{ }}
        location = /bulk {{ sendfile_max_chunk 32k; }}
        location = /post {{
            client_body_buffer_size 64k;
            mirror /read;
            error_page 405 =200 @posted;
        }}
        location = /read {{ internal; return 204; }}
        location @posted {{ default_type application/json; return 200 '{ANSWER}\\n'; }}
    }}
"""
    return nginx_common.configuration(_state(directory), http)


def _state(directory: Path) -> Path:
    return directory / "origin-state"
