"""Whether a host is this one: what goes there in plaintext, passwords and tokens too, nobody on the way can see.

There are two questions, and an answer to each. What is *written* may be a name: `localhost` and the names below it are
this host by RFC 6761 6.3, and whoever sends anything secret there looks again at what is about to be *dialled*, which
is an address, since a resolver may say otherwise. Spellings that other programs take for addresses (`127.1`,
`2130706433`, `0x7f.1`) are names here, of other hosts. So is `0.0.0.0`, though Linux leads it back: bound, it is open
to everybody.
"""

from __future__ import annotations

import ipaddress
from typing import Final

_NAME: Final = "localhost"


def is_loopback(address: str) -> bool:
    """Whether it is an IP address of loopback: of `127.0.0.0/8`, also mapped into IPv6 (`::ffff:127.0.0.1`), or `::1`.

    Brackets around it do not matter. A name is none, nor is an address with a zone (`::1%eth0`).
    """
    try:
        found = ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv4Address):
        return found.is_loopback
    mapped = found.ipv4_mapped
    return found.scope_id is None and (found.is_loopback if mapped is None else mapped.is_loopback)


def is_this_host(host: str) -> bool:
    """Whether it is written as this host: such an address, `localhost`, or a name below that; in any case, and maybe
    with the dot at its end that makes a name a whole one.
    """
    if is_loopback(host):
        return True
    labels = host.lower().removesuffix(".").split(".")
    return labels[-1] == _NAME and all(labels)
