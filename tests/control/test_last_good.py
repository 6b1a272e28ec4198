"""What the supervisor keeps for workers that start while files are broken or away."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import trio.testing

from ambassador.config.load import load_text
from ambassador.config.schema import Config
from ambassador.control.certificates import Certificates
from ambassador.control.deployment import encode_config
from ambassador.control.last_good import EVERY_S, KeptByReplica, key_set_names, unpacked
from ambassador.control.orders import KeptKeys, KeySetName, KeysRead
from ambassador.proxy.clients.key_sets import KEPT_S
from ambassador.proxy.tls import Keyring
from tests.proxy.pem import Authority

URL = "https://id.test:443/jwks"


def config_of(*clients: str, upstreams: str = "") -> Config:
    return load_text(f"""\
version: 1
listen: 127.0.0.1:8080
routes: [{{name: r, respond: 200}}]
clients: {{{", ".join(clients)}}}
upstreams: {{{upstreams}}}
""")


def by_key(path: Path, name: str = "a") -> str:
    return f"{name}: {{api_key: file:{path}}}"


def by_token(jwks: str, name: str = "t") -> str:
    return f"{name}: {{jwt: {{issuer: i, audience: a, jwks: '{jwks}'}}}}"


class Time:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_secret_whose_file_is_gone_is_kept(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(work, *args, **_):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN003, ANN202
        await trio.lowlevel.checkpoint()
        return work(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run)
    file = tmp_path / "key"
    file.write_text("one")
    kept = KeptByReplica(Keyring(), Time())
    kept.add(config_of(by_key(file)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kept.run)
        file.write_text("two")
        await trio.sleep(EVERY_S * 1.5)
        file.unlink()
        await trio.sleep(EVERY_S)
        nursery.cancel_scope.cancel()
    assert kept.kept().secrets == {f"file:{file}": "two"}


def test_a_secret_that_never_could_be_read_is_none(tmp_path: Path) -> None:
    kept = KeptByReplica(Keyring(), Time())
    kept.add(config_of(by_key(tmp_path / "none"), "b: {api_key: env:NONE}"))
    assert kept.kept().secrets == {}


async def test_what_only_an_older_config_named_is_forgotten(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    kept = KeptByReplica(Keyring(), Time())
    kept.add(config_of(by_key(one), by_token(URL)))
    kept.learn(KeysRead(name=KeySetName(URL, None, None), document=b"{}"))
    new = config_of(by_key(two))
    await kept.add_soon(new)
    assert len(kept.kept().secrets) == 2  # the reload may yet be refused
    kept.only(new)
    kept.learn(KeysRead(name=KeySetName(URL, None, None), document=b"{}"))
    assert kept.kept().secrets == {f"file:{two}": "2"}
    assert kept.kept().key_sets == ()


def test_sets_of_keys_are_kept_for_a_day_from_when_they_were_read() -> None:
    time = Time()
    kept = KeptByReplica(Keyring(), time)
    kept.add(config_of(by_token(URL)))
    name = KeySetName(URL, None, None)
    kept.learn(KeysRead(name=name, document=b"old"))
    time.now += 60
    kept.learn(KeysRead(name=name, document=b"new"))
    time.now += KEPT_S - 1
    assert kept.kept().key_sets == (KeptKeys(name, b"new", KEPT_S - 1),)
    time.now += 1
    assert kept.kept().key_sets == ()


def test_sets_are_known_by_source_authorities_and_proxy() -> None:
    config = config_of(
        by_token(URL, "a"),
        by_token(URL, "b"),
        by_token("file:/jwks", "c"),
        "d: {basic: {user: u, password: env:P}}",
    )
    assert key_set_names(config) == {KeySetName(URL, None, None), KeySetName("file:/jwks", None, None)}


def test_set_behind_a_proxy_is_known_by_the_same_name_in_another_process() -> None:
    via = "{url: 'http://proxy.test:3128', user: u, password: env:P}"
    config = config_of(f"a: {{jwt: {{issuer: i, audience: a, jwks: '{URL}', via: {via}}}}}")
    sent = msgspec.msgpack.encode(KeysRead(name=next(iter(key_set_names(config))), document=b"{}"))
    there = msgspec.msgpack.decode(encode_config(config), type=Config)
    assert {msgspec.msgpack.decode(sent, type=KeysRead).name} == key_set_names(there)


def test_files_of_tls_are_packed_with_each_content_once(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("a.b")
    one = f"one: {{endpoints: ['https://a:1'], tls: {{ca: {authority.ca}}}}}"
    two = f"two: {{endpoints: ['https://a:1'], tls: {{ca: {authority.ca}, cert: {pair.cert}, key: {pair.key}}}}}"
    config = config_of(upstreams=f"{one}, {two}, three: {{endpoints: ['https://a:1']}}")
    certificates = Certificates(Keyring())
    for _ in certificates.load(config):
        pass
    kept = KeptByReplica(certificates.keyring, Time()).kept()
    ca, cert, key = (Path(each).read_bytes() for each in (authority.ca, pair.cert, pair.key))
    assert sorted(kept.blobs) == sorted([ca, cert, key])
    assert unpacked(kept) == {
        (("ca", authority.ca),): (ca,),
        (("cert", pair.cert), ("key", pair.key), ("ca", authority.ca)): (cert, key, ca),
    }


def test_what_is_kept_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("s3kr3t")
    kept = KeptByReplica(Keyring(), Time())
    kept.add(config_of(by_key(file)))
    assert "s3kr3t" not in repr(kept.kept())
    assert "s3kr3t" not in repr(KeySetName(f"{URL}?key=s3kr3t", None, None))
