"""Values with placeholders, `{client}`, `{request_id}`, `{route}` and `{param.NAME}`, compiled when a config loads.

`{{` and `}}` are braces. A value without placeholders is compiled to its bytes, so that it costs nothing per request.
What a client sent gets into a value by `{param.NAME}` and `{request_id}` only; a value that would hold a control
character is not made at all (None), so that nothing can be smuggled into a header.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from ambassador.messages import Request

Render: TypeAlias = "Callable[[Request], bytes | None]"
"""Gives a request's value, or None when it cannot be made: nothing known to put in, or a control character."""

_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def compile(text: str, *, decode: bool = True) -> bytes | Render:  # noqa: A001 - read as `template.compile`
    """The bytes of a constant value, or the function that makes the value of a request.

    `decode`: parameters are put in percent-decoded, as headers want them; False leaves them as the path spells them, as
    URLs want them. Raises ValueError for an unknown placeholder or a lonely brace.
    """
    parts = _parts(text, decode=decode)
    if all(isinstance(part, bytes) for part in parts):
        return b"".join(part for part in parts if isinstance(part, bytes))
    return _renderer(parts)


def _parts(text: str, *, decode: bool) -> list[bytes | Render]:
    parts: list[bytes | Render] = []
    end = 0
    for match in _PLACEHOLDER.finditer(text):
        parts.append(text[end : match.start()].encode())
        end = match.end()
        if match[0] in ("{{", "}}"):
            parts.append(match[0][:1].encode())
        elif match[1] is None:
            raise ValueError(f"a brace without its other half in {text!r}")
        else:
            parts.append(_placeholder(match[1], decode=decode))
    parts.append(text[end:].encode())
    return [part for part in parts if part != b""]


def _placeholder(name: str, *, decode: bool) -> Render:
    if name.startswith("param."):
        return _parameter(name.removeprefix("param."), decode=decode)
    try:
        return _KNOWN[name]
    except KeyError:
        raise ValueError(f"{{{name}}} is not known") from None


def _client(request: Request) -> bytes | None:
    return None if request.client is None else request.client.encode()


def _request_id(request: Request) -> bytes | None:
    return request.request_id


def _route(request: Request) -> bytes | None:
    return request.route.encode()


_KNOWN: dict[str, Render] = {"client": _client, "request_id": _request_id, "route": _route}


def _parameter(name: str, *, decode: bool) -> Render:
    def render(request: Request) -> bytes | None:
        value = None if request.params is None else request.params.get(name)
        if value is None:
            return None
        return unquote_to_bytes(value) if decode else value.encode()

    return render


def _renderer(parts: list[bytes | Render]) -> Render:
    def render(request: Request) -> bytes | None:
        pieces: list[bytes] = []
        for part in parts:
            piece = part if isinstance(part, bytes) else part(request)
            if piece is None:
                return None
            pieces.append(piece)
        value = b"".join(pieces)
        return None if _CONTROL.search(value) is not None else value

    return render
