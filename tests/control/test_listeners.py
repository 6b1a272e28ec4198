from __future__ import annotations

from ambassador.config.schema import Listener
from ambassador.control.listeners import keyed


def test_listeners_are_known_by_their_addresses_and_those_on_port_0_by_a_number_too() -> None:
    addresses = ["127.0.0.1:0", "[::1]:0", "127.0.0.1:0", "127.0.0.1:80", "127.0.0.1:0"]
    listeners = [Listener(address=address) for address in addresses]
    found = keyed(listeners)
    assert list(found.values()) == listeners
    assert list(found) == [
        "127.0.0.1:0",
        "[::1]:0",
        "127.0.0.1:0 (2)",
        "127.0.0.1:80",
        "127.0.0.1:0 (3)",
    ]


def test_a_listener_keeps_its_key_when_one_is_added_after_it() -> None:
    first, second = Listener(address="a:0"), Listener(address="a:0")
    assert keyed([first])["a:0"] is keyed([first, second])["a:0"]
