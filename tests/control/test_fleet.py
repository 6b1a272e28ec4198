"""The Redis of a config: its passwords come from where the config says, each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from ambassador.config.schema import State
from ambassador.control.fleet import FleetStore, with_passwords
from ambassador.state.protocol import StoreLost
from ambassador.state.redis_url import parse_address

NOBODY = "redis://127.0.0.1:1"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("p@ss/wörd?#%\n")
    return path


@pytest.mark.parametrize(
    "url",
    [
        "redis://me@host:1/2",
        "redis+cluster://me@a:1,b:2",
        "rediss+sentinel://me@a,b/main/2?ca=/x",
        "unix://me@/run/redis.sock?db=2",
    ],
)
def test_password_is_put_into_every_form_of_address(url: str, secret: Path) -> None:
    address = parse_address(with_passwords(State(url=url, password=f"file:{secret}")))
    assert (address.user, address.password) == ("me", "p@ss/wörd?#%")
    assert address.shown() == parse_address(url).shown()


def test_password_without_a_user(secret: Path) -> None:
    address = parse_address(with_passwords(State(url="redis://host", password=f"file:{secret}")))
    assert (address.user, address.password) == (None, "p@ss/wörd?#%")
    address = parse_address(with_passwords(State(url="unix:/run/redis.sock", password=f"file:{secret}")))
    assert (address.path, address.password) == ("/run/redis.sock", "p@ss/wörd?#%")


def test_password_of_the_sentinels(secret: Path) -> None:
    url = "redis+sentinel://a,b/main?sentinel_user=me"
    address = parse_address(with_passwords(State(url=url, sentinel_password=f"file:{secret}")))
    assert (address.sentinel_user, address.sentinel_password) == ("me", "p@ss/wörd?#%")
    assert address.password is None


def test_address_without_secrets_stays_as_it_is() -> None:
    assert with_passwords(State(url="redis+sentinel://a,b/main/2")) == "redis+sentinel://a,b/main/2"


def test_store_without_its_password_is_lost_and_says_why(secret: Path) -> None:
    store = FleetStore(State(url=NOBODY, password=f"file:{secret}"))
    secret.unlink()
    with pytest.raises(StoreLost, match="cannot be read"):
        store.connect()
    store.close()


def test_store_that_is_not_there_is_lost() -> None:
    store = FleetStore(State(url=NOBODY))
    with pytest.raises(StoreLost):
        store.connect()
    with pytest.raises(StoreLost):
        store.subscribe()
    store.close()
