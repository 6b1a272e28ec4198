"""Contexts: who gets which certificate, who is believed, and what happens when files change."""

from __future__ import annotations

import gc
import logging
import shutil
import ssl
from collections.abc import Callable
from pathlib import Path
from weakref import ref

import pytest

from ambassador.pem_files import FileError
from ambassador.proxy.key_files import ClientConfig, KeyPair, ServerConfig
from ambassador.proxy.tls import ClientTls, Keyring, Material, chosen, host_of
from ambassador.proxy.upstream.endpoint import Endpoint
from loadtest.volume import Volume
from tests.proxy.pem import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def server(pair: KeyPair, **more: object) -> Material:
    return Keyring().server(ServerConfig(cert=pair.cert, key=pair.key, **more), "listener test")  # type: ignore[arg-type]


def client(**settings: object) -> ClientTls:
    return Keyring().client(ClientConfig(**settings), "upstream test")  # type: ignore[arg-type]


class Pair:
    """Both ends of a connection, in memory."""

    def __init__(
        self,
        server: ssl.SSLContext,
        client: ssl.SSLContext,
        name: str | None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        self._to_server, self._to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(self._to_client, self._to_server, server_hostname=name, session=session)
        self.server = server.wrap_bio(self._to_server, self._to_client, server_side=True)

    def handshake(self) -> None:
        """Both sides of it. Raises what one of them raises."""
        waiting: list[Callable[[], object]] = [self.client.do_handshake, self.server.do_handshake]
        while waiting:
            step = waiting.pop(0)
            try:
                step()
            except ssl.SSLWantReadError:
                waiting.append(step)

    def exchange(self) -> None:
        """One byte to each side, so that what comes with it (tickets, alerts) is seen too."""
        self.client.write(b"q")
        assert self.server.read(1) == b"q"
        self.server.write(b"a")
        assert self.client.read(1) == b"a"

    def names(self) -> list[str]:
        """The names in the server's certificate."""
        peer = self.client.getpeercert()
        assert peer
        names = peer["subjectAltName"]
        assert isinstance(names, tuple)
        return [str(pair[1]) for pair in names]


def connect(server: Material, client: ClientTls, name: str) -> Pair:
    pair = Pair(server.context, client.context, name)
    pair.handshake()
    pair.exchange()
    return pair


def test_connection_is_verified_by_the_named_authority(authority: Authority) -> None:
    pair = connect(server(authority.issue("a.b")), client(ca=authority.ca), "a.b")
    assert pair.client.version() == "TLSv1.3"
    assert pair.client.selected_alpn_protocol() == "http/1.1"
    assert pair.client.compression() is None


@pytest.mark.parametrize("name", ["b.a", "10.0.0.2"])
def test_connection_to_another_name_is_refused(authority: Authority, name: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(server(authority.issue("a.b", "10.0.0.1")), client(ca=authority.ca), name)


def test_address_is_verified_by_the_certificates_addresses(authority: Authority) -> None:
    connect(server(authority.issue("10.0.0.1")), client(ca=authority.ca), "10.0.0.1")


def test_connection_is_refused_from_an_unknown_authority(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(server(authority.issue("a.b")), client(ca=other.ca), "a.b")
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(server(authority.issue("a.b")), client(), "a.b")


def test_expired_certificate_is_refused(authority: Authority) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        connect(server(authority.issue("a.b", days=-1)), client(ca=authority.ca), "a.b")


def test_nothing_is_verified_where_that_is_asked_for(authority: Authority) -> None:
    tls = client(verify=False)
    pair = Pair(server(authority.issue("a.b", days=-1)).context, tls.context, "other.name")
    pair.handshake()
    assert tls.context.verify_mode == ssl.CERT_NONE


@pytest.mark.parametrize(
    ("of_server", "of_client", "spoken"),
    [("1.2", "1.3", "TLSv1.3"), ("1.3", "1.2", "TLSv1.3"), ("1.2", "1.2", "TLSv1.3")],
)
def test_version_is_the_newest_that_both_speak(
    authority: Authority, of_server: str, of_client: str, spoken: str
) -> None:
    pair = connect(
        server(authority.issue("a.b"), min_version=of_server),
        client(ca=authority.ca, min_version=of_client),
        "a.b",
    )
    assert pair.client.version() == spoken


def test_old_version_is_refused(authority: Authority) -> None:
    tls = client(ca=authority.ca)
    tls.context.maximum_version = ssl.TLSVersion.TLSv1_2
    pair = Pair(server(authority.issue("a.b"), min_version="1.3").context, tls.context, "a.b")
    with pytest.raises(ssl.SSLError):
        pair.handshake()
    assert server(authority.issue("a.b")).context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_ciphers_have_forward_secrecy_and_no_sha1(authority: Authority) -> None:
    for context in (server(authority.issue("a.b")).context, client().context):
        for cipher in context.get_ciphers():
            assert cipher["name"].startswith(("TLS_", "ECDHE-", "DHE-")), cipher["name"]
            assert not cipher["name"].endswith("-SHA"), cipher["name"]


def test_session_resumes_within_one_context(authority: Authority) -> None:
    here, there = server(authority.issue("a.b")), client(ca=authority.ca)
    first = connect(here, there, "a.b")
    second = Pair(here.context, there.context, "a.b", first.client.session)
    second.handshake()
    assert second.client.session_reused


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_session_resumes_under_a_certificate_that_was_chosen(
    authority: Authority, version: ssl.TLSVersion
) -> None:
    here = server(authority.issue("first"), certificates=(authority.issue("second"),), client_ca=authority.ca)
    there = client(ca=authority.ca)
    there.context.maximum_version = version
    first = connect(here, there, "second")
    second = Pair(here.context, there.context, "second", first.client.session)
    second.handshake()
    assert second.client.session_reused
    assert second.names() == ["second"]


# SNI


@pytest.mark.parametrize(
    ("host", "certificate"),
    [
        ("a.shop", "a.shop"),
        ("A.Shop", "a.shop"),
        ("b.shop", "*.shop"),
        ("x.b.shop", "first"),
        ("unknown", "first"),
        ("first", "first"),
        (None, "first"),
    ],
)
def test_certificate_is_chosen_by_name(authority: Authority, host: str | None, certificate: str) -> None:
    first, wild, exact = (authority.issue(name) for name in ("first", "*.shop", "a.shop"))
    tls = server(first, certificates=(wild, exact))
    believing = client(ca=authority.ca)
    believing.context.check_hostname = False
    pair = Pair(tls.context, believing.context, host)
    pair.handshake()
    assert pair.names() == [certificate]


def test_chosen_certificate_asks_for_the_clients_too(authority: Authority) -> None:
    tls = server(
        authority.issue("first"),
        certificates=(authority.issue("second"),),
        client_ca=authority.ca,
        require_client_cert=True,
    )
    with pytest.raises(ssl.SSLError):
        connect(tls, client(ca=authority.ca), "second")
    shown = authority.issue("caller")
    pair = connect(tls, client(ca=authority.ca, cert=shown.cert, key=shown.key), "second")
    assert pair.names() == ["second"]
    assert pair.server.getpeercert()


def test_first_certificate_wins_among_equals() -> None:
    names = [("a",), ("*.shop", "b"), ("*.shop",), ("x.shop",), ("x.shop",)]
    assert [chosen(names, host) for host in ("a", "b", "y.shop", "x.shop", "c")] == [0, 1, 1, 3, None]


# Clients' certificates


def test_clients_certificate_is_asked_for_and_not_required(authority: Authority, tmp_path: Path) -> None:
    tls = server(authority.issue("a.b"), client_ca=authority.ca)
    assert not connect(tls, client(ca=authority.ca), "a.b").server.getpeercert()
    shown = Authority(tmp_path, "other").issue("stranger")
    with pytest.raises(ssl.SSLError):
        connect(tls, client(ca=authority.ca, cert=shown.cert, key=shown.key), "a.b")


# Names


def test_server_name_is_the_endpoints_unless_one_is_written() -> None:
    endpoint = Endpoint("https://api.internal:8443", host="api.internal", port=8443)
    assert client().server_name(endpoint) == "api.internal"
    assert client(sni="other.name").server_name(endpoint) == "other.name"
    found = Endpoint("https://10.0.0.1:443", host="10.0.0.1", port=443)
    assert client().server_name(found) == "10.0.0.1"
    found.authority = b"api.internal:443"
    assert client().server_name(found) == "api.internal"


@pytest.mark.parametrize(
    ("authority", "host"), [("a.b", "a.b"), ("a.b:1", "a.b"), ("[::1]:1", "::1"), ("[::1]", "::1")]
)
def test_host_of_an_authority_is_without_port_and_brackets(authority: str, host: str) -> None:
    assert host_of(authority) == host


# Changes


def put(pair: KeyPair, other: KeyPair) -> None:
    shutil.copy(other.cert, pair.cert)
    shutil.copy(other.key, pair.key)


def renew(keyring: Keyring) -> None:
    keyring.take(keyring.reread())


def test_new_files_give_a_new_context_and_leave_the_old_one_as_it_is(authority: Authority) -> None:
    pair = authority.issue("a.b")
    keyring = Keyring()
    tls = keyring.server(ServerConfig(cert=pair.cert, key=pair.key), "listener test")
    before = tls.context
    assert keyring.reread() == []
    put(pair, authority.issue("c.d"))
    renew(keyring)
    assert tls.context is not before
    assert connect(tls, client(ca=authority.ca), "c.d").names() == ["c.d"]
    old = Pair(before, client(ca=authority.ca).context, "a.b")
    old.handshake()
    assert keyring.reread() == []


def test_files_of_a_volume_are_followed_through_its_links(authority: Authority, tmp_path: Path) -> None:
    one, two = authority.issue("a.b"), authority.issue("c.d")
    volume = Volume(tmp_path)
    volume.put_pair(one.cert, one.key)
    keyring = Keyring()
    tls = keyring.server(ServerConfig(cert=str(volume.cert), key=str(volume.key)), "listener test")
    volume.put_pair(two.cert, two.key)
    renew(keyring)
    assert connect(tls, client(ca=authority.ca), "c.d").names() == ["c.d"]


def test_certificate_whose_key_comes_later_is_taken_with_its_key(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pair, other = authority.issue("a.b"), authority.issue("c.d")
    keyring = Keyring(logging.getLogger("test"))
    tls = keyring.server(ServerConfig(cert=pair.cert, key=pair.key), "listener test")
    before = tls.context
    shutil.copy(other.cert, pair.cert)
    renew(keyring)
    assert tls.context is before
    assert tls.problem is not None
    assert caplog.messages == []  # the key may be on its way
    for _ in range(3):
        renew(keyring)
        assert tls.context is before
    [message] = caplog.messages
    assert message.startswith(f"tls of listener test: key '{pair.key}' does not belong to the certificate")
    assert message.endswith("; what was in use stays in use")
    assert tls.problem is not None
    shutil.copy(other.key, pair.key)
    renew(keyring)
    assert tls.context is not before
    assert tls.problem is None
    assert caplog.messages[1:] == [
        "tls of listener test: the files are well again, and in use for new connections"
    ]
    renew(keyring)
    assert len(caplog.messages) == 2


def test_file_that_is_gone_keeps_the_old_context_and_its_return_is_told(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pair = authority.issue("a.b")
    keyring = Keyring(logging.getLogger("test"))
    tls = keyring.server(ServerConfig(cert=pair.cert, key=pair.key), "listener test")
    before = tls.context
    held = Path(pair.cert).read_bytes()
    Path(pair.cert).unlink()
    renew(keyring)
    renew(keyring)
    Path(pair.cert).write_bytes(held)
    renew(keyring)
    renew(keyring)
    assert tls.context is before
    assert [message.partition(";")[0].partition(": ")[2] for message in caplog.messages] == [
        f"cert '{pair.cert}' cannot be read: No such file or directory",
        "the files are well again, and in use for new connections",
    ]


def test_expired_certificate_does_not_replace_one_that_is_good(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    pair = authority.issue("a.b")
    keyring = Keyring(logging.getLogger("test"))
    tls = keyring.server(ServerConfig(cert=pair.cert, key=pair.key), "listener test")
    before = tls.context
    authority.issue("a.b", days=-1)
    for _ in range(3):
        renew(keyring)
    assert tls.context is before
    (told,) = caplog.messages
    assert told.startswith(
        f"tls of listener test: cert '{pair.cert}' has expired, and the one before has not;"
    )
    authority.issue("a.b")
    renew(keyring)
    assert tls.context is not before


def test_pair_that_is_written_one_after_the_other_is_told_as_changed(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pair, other = authority.issue("a.b"), authority.issue("c.d")
    keyring = Keyring(logging.getLogger("test"))
    keyring.server(ServerConfig(cert=pair.cert, key=pair.key), "listener test")
    for _ in range(2):
        shutil.copy(other.cert, pair.cert)
        renew(keyring)
        shutil.copy(other.key, pair.key)
        renew(keyring)
        other = authority.issue("e.f")
    assert (
        caplog.messages == ["tls of listener test: the files are changed, and in use for new connections"] * 2
    )


def test_file_that_is_away_for_a_moment_is_not_told_of(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pair = authority.issue("a.b")
    keyring = Keyring(logging.getLogger("test"))
    keyring.server(ServerConfig(cert=pair.cert, key=pair.key), "listener test")
    held = Path(pair.cert).read_bytes()
    Path(pair.cert).unlink()
    renew(keyring)
    Path(pair.cert).write_bytes(held)
    renew(keyring)
    renew(keyring)
    assert caplog.messages == []


def test_what_is_wrong_is_told_again_when_it_is_something_else(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    pair = authority.issue("a.b")
    keyring = Keyring(logging.getLogger("test"))
    keyring.server(ServerConfig(cert=pair.cert, key=pair.key), "listener test")
    for text in ("one", "one", "two", "", ""):
        Path(pair.cert).write_text(text)
        renew(keyring)
    assert len(caplog.messages) == 1  # the same is wrong
    for _ in range(3):
        Path(pair.cert).unlink(missing_ok=True)
        renew(keyring)
    assert len(caplog.messages) == 2


def test_upstreams_with_the_same_files_share_a_context(authority: Authority) -> None:
    keyring = Keyring()
    one = keyring.client(ClientConfig(ca=authority.ca, sni="a.b"), "upstream one")
    two = keyring.client(ClientConfig(ca=authority.ca), "upstream two")
    three = keyring.client(ClientConfig(ca=authority.ca, verify=True, min_version="1.3"), "upstream three")
    assert one.context is two.context
    assert one.context is not three.context
    assert one.material.users == {"upstream one", "upstream two"}


def test_keyring_forgets_what_is_not_used_any_more(authority: Authority) -> None:
    keyring = Keyring()
    one = keyring.client(ClientConfig(ca=authority.ca, sni="a.b"), "upstream one")
    keyring.client(ClientConfig(), "upstream two")
    keyring.keep({ClientConfig(ca=authority.ca): ["upstream three"], ClientConfig(min_version="1.3"): ["x"]})
    assert keyring.material(ClientConfig(ca=authority.ca, sni="c.d")) is one.material
    assert one.material.users == {"upstream three"}
    for gone in (ClientConfig(), ClientConfig(min_version="1.3")):
        with pytest.raises(KeyError):
            keyring.material(gone)
    assert keyring.client(ClientConfig(ca=authority.ca), "upstream one").material is one.material


def test_files_in_use_tell_when_they_end(authority: Authority) -> None:
    shown = authority.issue("caller", days=10)
    tls = client(ca=authority.ca, cert=shown.cert, key=shown.key)
    assert [(pem.label, pem.path) for pem in tls.material.pems] == [
        ("cert", shown.cert),
        ("ca", authority.ca),
    ]
    cert, ca = (pem.certificate for pem in tls.material.pems)
    assert cert.names == ("caller",)
    assert cert.not_after < ca.not_after


def test_files_that_cannot_be_used_are_refused_at_first(authority: Authority) -> None:
    pair = authority.issue("a.b")
    with pytest.raises(FileError, match="cannot be read"):
        Material(ServerConfig(cert=pair.cert, key="/nowhere"))


def test_context_that_was_replaced_goes_without_the_collector(authority: Authority) -> None:
    pair = authority.issue("a.b")
    keyring = Keyring()
    config = ServerConfig(cert=pair.cert, key=pair.key, certificates=(authority.issue("c.d"),))
    tls = keyring.server(config, "listener test")
    before = ref(tls.context)
    gc.disable()
    try:
        put(pair, authority.issue("e.f"))
        renew(keyring)
        assert before() is None
    finally:
        gc.enable()


def started_beside(keyring: Keyring, config: ServerConfig) -> tuple[Keyring, Material]:
    """Another process' TLS, which has been handed what the first one uses."""
    other = Keyring()
    other.hand_over(keyring.last_good())
    return other, other.server(config, "listener test")


def names_shown(tls: Material, authority: Authority) -> list[str]:
    return connect(tls, client(ca=authority.ca), "a.b").names()


@pytest.mark.parametrize("broken", ["mismatched", "gone", "empty", "expired"])
def test_process_that_starts_while_files_are_broken_takes_what_another_has(
    authority: Authority, broken: str
) -> None:
    pair = authority.issue("a.b")
    config = ServerConfig(cert=pair.cert, key=pair.key)
    keyring = Keyring()
    keyring.server(config, "listener test")
    if broken == "mismatched":
        shutil.copy(authority.issue("c.d").key, pair.key)
    elif broken == "gone":
        Path(pair.cert).unlink()
    elif broken == "empty":
        Path(pair.key).write_bytes(b"")
    else:
        put(pair, authority.issue("a.b", file="old", days=-1))
    other, tls = started_beside(keyring, config)
    assert names_shown(tls, authority) == ["a.b"]
    assert tls.problem is not None
    assert other.stood_in() == [("listener test", tls.problem)]
    assert other.stood_in() == []
    before = tls.context
    for _ in range(3):
        renew(other)
    assert tls.context is before
    assert other.last_good() == keyring.last_good()
    put(pair, authority.issue("a.b", file="new"))
    renew(other)
    assert tls.context is not before
    assert tls.problem is None


def test_process_that_starts_takes_good_files_before_what_another_has(authority: Authority) -> None:
    pair = authority.issue("a.b")
    config = ServerConfig(cert=pair.cert, key=pair.key)
    keyring = Keyring()
    keyring.server(config, "listener test")
    put(pair, authority.issue("a.b", "c.d", file="new"))
    other, tls = started_beside(keyring, config)
    assert names_shown(tls, authority) == ["a.b", "c.d"]
    assert tls.problem is None
    assert other.stood_in() == []


def test_what_another_has_is_forgotten_once_it_is_settled_what_is_used(authority: Authority) -> None:
    pair = authority.issue("a.b")
    config = ServerConfig(cert=pair.cert, key=pair.key)
    keyring, other = Keyring(), Keyring()
    keyring.server(config, "listener test")
    other.hand_over(keyring.last_good())
    other.keep({})
    Path(pair.key).unlink()
    with pytest.raises(FileError):
        other.server(config, "listener test")


def test_what_another_has_for_other_files_does_not_stand_in(authority: Authority) -> None:
    pair, second = authority.issue("a.b"), authority.issue("c.d")
    keyring = Keyring()
    keyring.server(ServerConfig(cert=pair.cert, key=pair.key), "listener test")
    Path(second.key).unlink()
    with pytest.raises(FileError):
        started_beside(keyring, ServerConfig(cert=second.cert, key=second.key))
