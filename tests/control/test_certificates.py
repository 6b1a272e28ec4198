"""Files of TLS while a process runs: loaded, told of, read again."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ambassador.config.load import load_text
from ambassador.config.schema import Config
from ambassador.control.certificates import CannotLoad, Certificates
from ambassador.proxy.key_files import KeyPair
from ambassador.proxy.tls import Keyring, Reread
from tests.proxy.pem import Authority


def config_of(pair: KeyPair, *upstreams: str) -> Config:
    lines = "\n".join(f"  {line}" for line in upstreams)
    return load_text(f"""\
version: 1
listeners: [{{address: 127.0.0.1:8443, tls: {{cert: {pair.cert}, key: {pair.key}}}}}]
routes: [{{name: r, respond: 200}}]
upstreams:
  plain: {{endpoints: ['http://127.0.0.1:1']}}
{lines}
""")


def loaded(config: Config, keyring: Keyring | None = None) -> Certificates:
    certificates = Certificates(keyring or Keyring())
    exhaust(certificates.load(config))
    certificates.use(config)
    return certificates


def exhaust(steps: Iterator[None]) -> None:
    for _ in steps:
        pass


def test_status_tells_of_every_file_of_certificates(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("a.b")
    config = config_of(pair, f"mail: {{discover: {{dns: 'm:443'}}, tls: {{ca: {authority.ca}}}}}")
    status = loaded(config).status()
    assert [(each.side, each.name, each.setting, each.file) for each in status] == [
        ("client", "127.0.0.1:8443", "listeners[0].tls.cert", pair.cert),
        ("upstream", "mail", "upstreams.mail.tls.ca", authority.ca),
    ]
    assert status[0].names == ("a.b",)
    assert status[0].problem is None
    assert [each.expires for each in loaded(config).figures()] == [each.expires for each in status]


def test_file_that_cannot_be_used_is_told_with_its_section(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("a.b")
    config = config_of(pair)
    Path(pair.key).unlink()
    with pytest.raises(CannotLoad) as caught:
        loaded(config)
    assert caught.value.setting == "listeners[0].tls"
    assert caught.value.problem == f"key '{pair.key}' cannot be read: No such file or directory"


def test_what_is_in_use_is_not_read_again_when_it_is_loaded(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("a.b")
    config = config_of(pair)
    certificates = loaded(config)
    Path(pair.key).unlink()
    exhaust(certificates.load(config))


def test_what_no_config_names_any_more_is_forgotten(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, two = config_of(authority.issue("a.b")), config_of(authority.issue("c.d"))
    certificates = loaded(one)
    exhaust(certificates.load(two))
    certificates.use(two)
    assert certificates.status()[0].names == ("c.d",)
    assert one.listeners[0].tls is not None
    with pytest.raises(KeyError):
        certificates.keyring.material(one.listeners[0].tls)


class Heard(Keyring):
    """Says when it took something."""

    def __init__(self) -> None:
        super().__init__()
        self.took = trio.Event()

    def take(self, found: Iterable[Reread]) -> None:
        found = list(found)
        super().take(found)
        if found:
            self.took.set()


def test_changed_files_are_in_use_soon(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair, other = authority.issue("a.b"), authority.issue("c.d")

    async def main() -> None:
        keyring = Heard()
        certificates = loaded(config_of(pair), keyring)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(certificates.run)
            await wait_all_tasks_blocked()
            shutil.copy(other.cert, pair.cert)
            shutil.copy(other.key, pair.key)
            while certificates.status()[0].names != ("c.d",):  # it may look between the two
                await keyring.took.wait()
                keyring.took = trio.Event()
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_files_that_do_not_fit_are_told_and_what_was_in_use_stays(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair, other = authority.issue("a.b"), authority.issue("c.d")

    async def main() -> None:
        config = config_of(pair)
        keyring = Heard()
        certificates = loaded(config, keyring)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(certificates.run)
            shutil.copy(other.cert, pair.cert)
            certificates.use(config)  # looks at once
            await keyring.took.wait()
            [status] = certificates.status()
            assert status.names == ("a.b",)
            assert status.problem is not None
            assert "does not belong to the certificate" in status.problem
            nursery.cancel_scope.cancel()

    trio.run(main)
