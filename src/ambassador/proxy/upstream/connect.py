"""Opening a connection to one endpoint: its addresses raced as RFC 8305 says, within one deadline."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Final

from ambassador.errors import ConnectFailed, Overloaded
from ambassador.proxy.lane import BROKEN, HANGUP, WRITE, TimedOut

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ambassador.proxy.lane import Lane, Link, Strand

_STAGGER_S: Final = 0.25
"""How long one address may take before the next is tried beside it (RFC 8305 5: 250 ms)."""

_NO_DESCRIPTOR: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)

Address = tuple[int, tuple[str, int] | tuple[str, int, int, int] | str]
"""(socket family, address as `socket.connect` takes it)."""


def still_wanted() -> None:
    """The check of whoever cannot leave."""


async def connect(
    lane: Lane,
    strand: Strand,
    addresses: Sequence[Address],
    deadline: float,
    *,
    check: Callable[[], None] = still_wanted,
) -> Link:
    """A connected link to the first address that answers; its strand is `strand`.

    `deadline` is in seconds of the lane's clock. `check` is called before each wait, and raises if nobody wants the
    connection any more; what it looks at must wake `strand`. Raises what it raises, `ConnectFailed` when every address
    refused or the deadline passed, `Overloaded` when this process is out of descriptors. Leaves nothing open behind an
    error.
    """
    race: list[Link] = []
    untried = list(addresses)
    failure = "no address is known"
    try:
        while untried or race:
            if untried:
                link = begin_connect(lane, strand, untried.pop(0))
                if link is None:
                    failure = "refused"
                    continue
                race.append(link)
            winner = _winner(race)
            if winner is None and race:
                winner, timed_out = await _wait(lane, strand, race, untried, deadline, check=check)
                if timed_out:
                    raise ConnectFailed("no answer within the connect timeout")
            if winner is not None:
                race.remove(winner)
                return winner
            if not race:
                failure = "refused"
        raise ConnectFailed(failure)
    finally:
        for loser in race:
            loser.close()


async def _wait(
    lane: Lane,
    strand: Strand,
    race: list[Link],
    untried: list[Address],
    deadline: float,
    *,
    check: Callable[[], None],
) -> tuple[Link | None, bool]:
    """(the winner, False), (None, False) when it is time for the next address, (None, True) at the deadline."""
    stagger = lane.now + _STAGGER_S if untried else deadline
    while race:
        check()
        for link in race:
            link.interest = WRITE | HANGUP
        try:
            await strand.wait(min(stagger, deadline))
        except TimedOut:
            return _winner(race), lane.now >= deadline
        winner = _winner(race)
        if winner is not None:
            return winner, False
    return None, False


def begin_connect(lane: Lane, strand: Strand, address: Address) -> Link | None:
    """A link that is being connected, or None if that was refused at once. Raises `Overloaded`."""
    family, where = address
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        if error.errno in _NO_DESCRIPTOR:
            raise Overloaded("out of descriptors") from None
        return None
    try:
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        status = sock.connect_ex(where)
    except OSError:
        sock.close()
        return None
    if status not in (0, errno.EINPROGRESS):
        sock.close()
        return None
    link = lane.link(sock)
    link.strand = strand
    link.ready = WRITE if status == 0 else 0
    return link


def _winner(race: list[Link]) -> Link | None:
    """The first link that is connected; those that failed are closed and taken out."""
    for link in list(race):
        link.interest = 0
        if link.ready & (WRITE | BROKEN):
            if is_connected(link):
                return link
            race.remove(link)
            link.close()
    return None


def is_connected(link: Link) -> bool:
    """Whether what `begin_connect` began has come to a connection; ask once it is writable or broken."""
    return link.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0 and not link.ready & BROKEN
