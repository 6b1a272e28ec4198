"""The dashboard: one page without anything from elsewhere, read with the same API that scripts use."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Final

PAGE: Final[bytes] = files("ambassador.control.admin").joinpath("dashboard.html").read_bytes()

PAGE_HEADERS: Final[Mapping[str, str]] = {
    # Its script and style are in the page itself; nothing is loaded, framed or sent elsewhere.
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}
