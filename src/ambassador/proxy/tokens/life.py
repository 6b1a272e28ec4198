"""How long a token is used, and when the next one is fetched. Pure: times and chance come as arguments.

    fetched ----------------------- due ------------- ends ----- expires
            the token is used       | and another one |          |
                                    | is fetched      | it is not begun with any more

A token is used until a margin before it expires: what is sent must arrive, and the clocks of the token service and of
whoever checks the token are not ours. Within the margin it may only be sent by who began before.
"""

from __future__ import annotations

from typing import Final

import msgspec

MARGIN_S: Final = 10.0
"""As Go's `oauth2` has it; of a short life at most a tenth."""
LEAD_S: Final = 60.0
"""A token is due a fifth of its life before its end, at least so long; of a short life at most half."""
LEAD: Final = 0.2
_SPREAD: Final = 0.2


class Held(msgspec.Struct, frozen=True):
    """A token in hand. Times are seconds of a monotonic clock."""

    text: str
    field: tuple[bytes, bytes]
    """What shows it to an upstream."""
    line: bytes
    """The same on the wire, with CRLF before it."""
    since: float
    """In hand since then: whoever began before has shown another one."""
    life_s: float
    due_at: float
    ends_at: float
    expires_at: float

    def __repr__(self) -> str:
        return f"<{type(self).__name__} until {self.expires_at:g}>"


def hold(text: str, life_s: float, expires_at: float, *, now: float, chance: float) -> Held:
    """A token that lasts `life_s` in all, and from `now` on until `expires_at`. `chance` is in [0, 1)."""
    value = b"Bearer " + text.encode("ascii")
    return Held(
        text=text,
        field=(b"authorization", value),
        line=b"\r\nauthorization: " + value,
        since=now,
        life_s=life_s,
        due_at=expires_at - lead_s(life_s, chance),
        ends_at=expires_at - margin_s(life_s),
        expires_at=expires_at,
    )


def lead_s(life_s: float, chance: float) -> float:
    """How long before its end a token is due; by `chance` so that not all ask at once."""
    spread = 1.0 - _SPREAD + 2 * _SPREAD * chance
    return min(max(LEAD_S, LEAD * life_s) * spread, life_s / 2)


def margin_s(life_s: float) -> float:
    """How long before its end a token is not begun with any more."""
    return min(MARGIN_S, life_s / 10)


FIRST_PAUSE_S: Final = 1.0
MOST_PAUSE_S: Final = 30.0


def pause_s(failures: int, after_s: float, chance: float) -> float:
    """How long a token service is left alone after so many failures in a row: 1 s, doubling to 30 s, at random between
    three quarters of it and all of it; or as long as it asked for.
    """
    pause = min(MOST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10))
    return max(pause * (0.75 + 0.25 * chance), after_s)
