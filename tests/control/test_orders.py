"""What messages between the supervisor and its workers show of themselves."""

from __future__ import annotations

import msgspec

from ambassador.control.orders import Kept, KeptFiles, KeptKeys, KeySetName

NAME = KeySetName("https://keys.example/set?key=hunter2", None, None)


def test_queries_of_key_sets_are_not_shown() -> None:
    assert repr(NAME) == "KeySetName(https://keys.example/set)"
    assert "hunter2" not in repr(KeptKeys(NAME, b"{}", 1.5))


def test_names_of_key_sets_are_the_same_after_their_way() -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(NAME), type=KeySetName) == NAME


def test_what_is_handed_over_is_counted_not_shown() -> None:
    kept = Kept(
        secrets={"env:A": "hunter2"},
        blobs=(b"hunter2",),
        tls=(KeptFiles((("key", "k.pem"),), (0,)),),
        key_sets=(KeptKeys(NAME, b"hunter2", 0.0),),
    )
    assert repr(kept) == "Kept(1 secrets, 1 of TLS, 1 sets of keys)"
