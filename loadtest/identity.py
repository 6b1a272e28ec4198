"""The certificate of the TLS scenarios: ECDSA P-256, its own authority, the same for proxies and origin.

Generators and origin speak one version and one cipher only, so that all proxies do the same work: left to themselves,
Envoy's library would choose a shorter key than OpenSSL.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from loadtest import processes

CIPHERSUITE = "TLS_AES_256_GCM_SHA384"
"""Of TLS 1.3."""
NAME = "localhost"

_CLIENT_CONF = f"""\
openssl_conf = init
[init]
ssl_conf = ssl
[ssl]
system_default = clients
[clients]
MinProtocol = TLSv1.3
Ciphersuites = {CIPHERSUITE}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Files: certificate, key, both in one, and what `OPENSSL_CONF` names for generators."""

    cert: Path
    key: Path
    both: Path
    client_conf: Path

    @property
    def client_env(self) -> dict[str, str]:
        """What is added to the environment of a generator."""
        return {"OPENSSL_CONF": str(self.client_conf)}


def make(directory: Path) -> Identity:
    """Write one for `localhost` and the loopback addresses that scenarios use. Raises StartError."""
    made = Identity(
        cert=directory / "cert.pem",
        key=directory / "key.pem",
        both=directory / "both.pem",
        client_conf=directory / "clients.cnf",
    )
    binary = shutil.which("openssl")
    if binary is None:
        raise processes.StartError("TLS scenarios need openssl: apt-get install openssl")
    command = [binary, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(made.key), "-out", str(made.cert), "-days", "30", "-subj", f"/CN={NAME}"]
    command += ["-addext", f"subjectAltName=DNS:{NAME},IP:127.0.0.1,IP:127.0.0.2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise processes.StartError(f"openssl made no certificate: {done.stderr}")
    made.both.write_bytes(made.cert.read_bytes() + made.key.read_bytes())
    made.client_conf.write_text(_CLIENT_CONF)
    return made
