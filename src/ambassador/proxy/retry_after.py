"""`Retry-After` (RFC 9110 10.2.3), as servers send it: a number of seconds or an HTTP date, and now and then both.

Pure. A server and a gateway before it may each put one on an answer; the field has but one value by its syntax, so
which of the two is meant nobody knows. The longest holds: who comes again later than needed harms nobody.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ambassador.proxy.freshness import date_s

if TYPE_CHECKING:
    from collections.abc import Iterator

_MEMBER: Final = re.compile(rb"\s*([A-Za-z]+,[^,]*|[^,]+)")
"""One value of several. A date has a comma of its own, behind the day of the week."""
_LARGEST_S: Final = 1e9


def delay_s(value: bytes) -> float | None:
    """Seconds of the longest number in it, 1e9 at most; None where there is none. Dates are passed over."""
    if value.isdigit():
        return _number(value)
    return max((_number(member) for member in _members(value) if member.isdigit()), default=None)


def retry_after_s(value: bytes, wall_s: float) -> float | None:
    """Seconds of the longest of all numbers and dates in it; None where there is none, or it is past.

    `wall_s` is the time of day in unix seconds.
    """
    longest = delay_s(value)
    for member in _members(value):
        when = None if member.isdigit() else date_s(member)
        if when is not None and when > wall_s:
            longest = max(longest or 0.0, when - wall_s)
    return longest


def _members(value: bytes) -> Iterator[bytes]:
    return (found[1].strip() for found in _MEMBER.finditer(value))


def _number(digits: bytes) -> float:
    return float(digits) if len(digits) < 10 else _LARGEST_S
