"""The certificate of the TLS scenarios."""

from pathlib import Path

from ambassador.certificate import certificates, is_key
from loadtest import identity


def test_identity_is_for_where_the_scenarios_are(tmp_path: Path) -> None:
    made = identity.make(tmp_path)
    [found] = certificates(made.cert.read_bytes())
    assert found.names == ("localhost", "127.0.0.1", "127.0.0.2")
    assert is_key(made.key.read_bytes())
    assert made.both.read_bytes() == made.cert.read_bytes() + made.key.read_bytes()
    assert made.client_env == {"OPENSSL_CONF": str(tmp_path / "clients.cnf")}
    assert identity.CIPHERSUITE in made.client_conf.read_text()
