"""What a token service answered: a token, or why there is none (RFC 6749 5.1 and 5.2, RFC 8693 2.2).

No I/O, no clock. Nothing of an answer goes on but a token that may stand in a header, the time that it lasts, and the
`error` code, reduced to the characters that such codes have: the text of a token service may quote what it was sent.
"""

from __future__ import annotations

import re
from math import isfinite
from typing import Any, Final

import msgspec

from ambassador.proxy.jose import one_meaning
from ambassador.proxy.retry_after import delay_s

MOST_BYTES: Final = 64 * 1024
"""Of an answer."""
MOST_TOKEN: Final = 16 * 1024
"""Of a token: with one of 32 KiB no server's limit for a request's head is kept."""
DEFAULT_LIFE_S: Final = 300.0
"""Where the answer does not say how long the token lasts (`expires_in` is only recommended). Keycloak's default, and
less than anybody else's."""
MOST_LIFE_S: Final = 86400.0
"""However long a token says that it lasts, it is fetched again each day: one that was revoked does not stay."""

MOST_PAUSE_S: Final = 60

REFUSED: Final = "refused"
"""The token service does not want to: the client, its secret, the scope or the caller's token is not to its liking."""
FAILED: Final = "failed"
"""The token service cannot: a status of 5xx, 408 or 429."""
TIMEOUT: Final = "timeout"
CONNECT: Final = "connect"
"""It could not be reached, or not be believed (its certificate), or the connection broke."""
MALFORMED: Final = "malformed"
"""What came is no answer of a token service."""
SECRET: Final = "secret"  # noqa: S105 - a word for a failure
"""Nothing was sent: the secret to send it with cannot be read or used."""
OK: Final = "ok"
RESULTS: Final = (OK, REFUSED, FAILED, TIMEOUT, CONNECT, MALFORMED, SECRET)
"""How a request for a token can end."""

_TOKEN: Final = re.compile(r"[\x21-\x7e]+")
_CODE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_BUSY: Final = frozenset({408, 425, 429})
_OTHER_TYPES: Final = frozenset({"", "bearer", "n_a"})
"""RFC 8693 2.2.1: `N_A` is said of a token that is no access token; how it is used is not the answer's business."""


class Granted(msgspec.Struct, frozen=True):
    """A token. `life_s` is the time that it lasts, from when it was asked for."""

    text: str
    life_s: float

    def __repr__(self) -> str:
        return f"<{type(self).__name__} for {self.life_s:g} s>"


class Failure(msgspec.Struct, frozen=True):
    """Why there is none: one of RESULTS, and in a few words what is known, for the log and the admin API."""

    result: str
    why: str
    code: str = ""
    """The `error` of the answer (`invalid_client`), if it had one."""
    after_s: float = 0.0
    """The token service asked not to be asked again before (`Retry-After`)."""


def read(status: int, body: bytes, *, after: bytes = b"") -> Granted | Failure:
    """What an answer with this status and body means; `after` is its `Retry-After`."""
    if status >= 500 or status in _BUSY:
        return Failure(FAILED, f"answered {status}", after_s=_seconds(after))
    if 300 <= status < 400:
        return Failure(MALFORMED, f"answered {status}: redirects are not followed")
    if len(body) > MOST_BYTES:
        return Failure(MALFORMED, f"an answer of more than {MOST_BYTES // 1024} KiB")
    try:
        answer = one_meaning(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        answer = {}
    code = _code(answer.get("error"))
    if status >= 400 or (code and "access_token" not in answer):
        return Failure(REFUSED, f"answered {status}" + (f": {code}" if code else ""), code)
    if status != 200:
        return Failure(MALFORMED, f"answered {status}")
    return _granted(answer)


def _granted(answer: dict[str, Any]) -> Granted | Failure:
    token, kind = answer.get("access_token"), answer.get("token_type", "")
    if not isinstance(token, str) or not token:
        return Failure(MALFORMED, "an answer without a token")
    if len(token) > MOST_TOKEN or _TOKEN.fullmatch(token) is None:
        return Failure(MALFORMED, "a token that no header can hold")
    if not isinstance(kind, str) or kind.lower() not in _OTHER_TYPES:
        return Failure(MALFORMED, "a token that is no bearer token")
    life_s = _life_s(answer.get("expires_in"))
    if life_s is None:
        return Failure(MALFORMED, "a token that has expired")
    return Granted(token, life_s)


def _life_s(value: object) -> float | None:
    """How long a token lasts; None: it does not. Many services write the number as text; what is none counts as
    missing.
    """
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return DEFAULT_LIFE_S
    if isinstance(value, bool) or not isinstance(value, int | float):
        return DEFAULT_LIFE_S
    if isinstance(value, float) and not isfinite(value):
        return DEFAULT_LIFE_S
    return None if value <= 0 else float(min(value, MOST_LIFE_S))


def _code(value: object) -> str:
    return value if isinstance(value, str) and _CODE.fullmatch(value) else ""


def _seconds(after: bytes) -> float:
    """Of a `Retry-After` in seconds, a minute at most: nobody shuts the way to an upstream for longer. A date says
    nothing here.
    """
    return float(min(delay_s(after) or 0.0, MOST_PAUSE_S))
