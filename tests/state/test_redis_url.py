from __future__ import annotations

import pytest

from ambassador.state.redis_url import Address, parse_address


def test_address_of_one_server_has_defaults() -> None:
    assert parse_address("redis://cache") == Address("server", (("cache", 6379),))


def test_address_has_credentials_and_database_unquoted() -> None:
    address = parse_address("redis://us%40er:p%3Ass%2F%23@[::1]:7000/3")
    assert address == Address("server", (("::1", 7000),), user="us@er", password="p:ss/#", db=3)


def test_address_with_a_password_alone_has_no_user() -> None:
    address = parse_address("redis://:secret@cache")
    assert (address.user, address.password) == (None, "secret")


def test_address_with_tls_names_its_files() -> None:
    address = parse_address("rediss://cache?ca=/etc/ca.pem&cert=/etc/c.pem&key=/etc/k.pem")
    assert (address.tls, address.ca, address.cert, address.key) == (
        True,
        "/etc/ca.pem",
        "/etc/c.pem",
        "/etc/k.pem",
    )


@pytest.mark.parametrize("url", ["unix:/run/redis.sock?db=2", "unix:///run/redis.sock?db=2"])
def test_address_of_a_socket(url: str) -> None:
    assert parse_address(url) == Address("server", path="/run/redis.sock", db=2)


def test_address_of_a_socket_may_have_credentials() -> None:
    address = parse_address("unix://user:secret@/run/redis.sock")
    assert (address.path, address.user, address.password) == ("/run/redis.sock", "user", "secret")


def test_address_of_sentinels() -> None:
    url = "redis+sentinel://user:secret@h1:26380,h2/mymaster/1?sentinel_user=s&sentinel_password=p"
    assert parse_address(url) == Address(
        "sentinel",
        (("h1", 26380), ("h2", 26379)),
        user="user",
        password="secret",
        db=1,
        master="mymaster",
        sentinel_user="s",
        sentinel_password="p",
    )


def test_address_of_a_cluster() -> None:
    address = parse_address("rediss+cluster://h1,[fd00::1]:7000/0")
    assert address == Address("cluster", (("h1", 6379), ("fd00::1", 7000)), tls=True)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://cache", "scheme"),
        ("redis+other://cache", "scheme"),
        ("redis://", "host is missing"),
        ("redis://h1,h2", "several hosts"),
        ("redis://cache:port", "host:port"),
        ("redis://cache:70000", "host:port"),
        ("redis://cache/two", "must be a number"),
        ("redis://cache/1/2", "too many"),
        ("redis://cache?retry_on_timeout=yes", "unknown option `retry_on_timeout`"),
        ("redis://cache?ca=/etc/ca.pem", "need rediss"),
        ("redis+sentinel://h1", "name is missing"),
        ("redis+cluster://h1/1", "only database 0"),
        ("unix:run/redis.sock", "absolute"),
        ("unix://host/run/redis.sock", "no host"),
        ("unix:/run/redis.sock?ca=x", "no TLS"),
        ("redis://:s3cr3t#@cache", "%23"),
        ("redis://user:s3cr3t", "host:port"),
        ("redis://:s/s3cr3t@cache/0", "host is missing|host:port"),
    ],
)
def test_address_that_cannot_be_is_refused(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        parse_address(url)
    # A mistake may have put a secret anywhere.
    assert "s3cr3t" not in str(caught.value)


def test_address_is_shown_without_secrets() -> None:
    for url, shown in [
        ("redis://user:secret@cache/2", "redis://cache:6379/2"),
        ("unix://user:secret@/run/s", "unix:/run/s"),
        (
            "rediss+sentinel://:secret@h1,h2/m?sentinel_password=secret",
            "rediss+sentinel://h1:26379,h2:26379/m",
        ),
        ("redis+cluster://[::1]:7000", "redis+cluster://[::1]:7000"),
    ]:
        assert parse_address(url).shown() == shown
        assert "secret" not in repr(parse_address(url))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("cert=/a", "`cert` needs its `key`"),
        ("key=/a", "`key` needs its `cert`"),
        ("ca=", "`ca` names no file"),
    ],
)
def test_files_of_tls_come_whole(options: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_address(f"rediss://host?{options}")
