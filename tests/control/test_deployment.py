from __future__ import annotations

import socket

import msgspec
import pytest

from ambassador.config.load import load_text
from ambassador.config.schema import Config
from ambassador.control.deployment import Deployment, random_name
from ambassador.control.discovery.directory import Directory
from ambassador.control.discovery.dns import Resolver
from ambassador.control.pages import Pages
from ambassador.control.slots import BindError


def deployment(*listen: str) -> Deployment:
    text = f"version: 1\nlisten: [{', '.join(listen)}]\nroutes:\n  - {{name: a, respond: 200}}\n"
    return Deployment(load_text(text), "me", Pages(), Directory(Resolver, print, print))


def test_a_brief_holds_the_whole_config() -> None:
    made = deployment("127.0.0.1:0")
    brief = made.brief()
    assert brief.generation == 1
    assert msgspec.msgpack.decode(brief.config, type=Config) == made.config
    assert brief.page_size > 0


def test_every_listener_has_a_socket_for_each_slot() -> None:
    made = deployment("127.0.0.1:0", '"[::1]:0"')
    made.bind(range(2))
    refs, descriptors = made.sockets()
    assert [(ref.listener, ref.slot) for ref in refs] == [
        ("127.0.0.1:0", 0),
        ("127.0.0.1:0", 1),
        ("[::1]:0", 0),
        ("[::1]:0", 1),
    ]
    assert len(set(descriptors)) == 4
    assert [url.rpartition(":")[0] for url in made.urls()] == ["http://127.0.0.1", "http://[::1]"]
    made.close()


def test_every_listener_on_port_0_has_a_port_of_its_own() -> None:
    made = deployment(*["127.0.0.1:0"] * 20)
    made.bind(range(2))
    assert len(set(made.urls())) == 20
    assert len({ref.listener for ref in made.sockets()[0]}) == 20
    made.close()


def test_when_one_address_is_taken_none_is_held() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        made = deployment("127.0.0.1:0", f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(BindError):
            made.bind(range(2))
    assert made.bindings == {}


def test_names_differ() -> None:
    assert random_name() != random_name()
