"""Words as people write them: names, paths, headers, conditions. Pure; text to canonical text, or `Wrong`.

What is checked here ends up on the wire or in a match, so a word that gets past is safe there: no CR, LF or NUL
anywhere, names are tokens (RFC 9110 5.6.2), and a pattern that could never match is refused with what would.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from urllib.parse import quote

from ambassador.config.units import Wrong
from ambassador.errors import BadRequest
from ambassador.extras import RE2, Extra
from ambassador.proxy import content, path_regex
from ambassador.proxy.credentials.message_signature import DERIVED
from ambassador.proxy.methods import KNOWN
from ambassador.proxy.path import normalise
from ambassador.proxy.policies import breaker, retry
from ambassador.proxy.statuses import status_range

NOT_SUPPORTED = "not supported by this version"

METHODS = (*KNOWN, "CONNECT")
"""The methods that a route may name."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", re.ASCII)
_SECRET = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:/.*", re.ASCII)
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)
_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}", re.ASCII)
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_KNOWN_PLACEHOLDERS = ("client", "request_id", "route")


def name(text: str) -> str:
    """The name of a route, an upstream or an instance."""
    if not _NAME.fullmatch(text):
        raise Wrong(
            f"{text!r} is not a name", "letters, digits, '_', '.' and '-', not first a '-', at most 100"
        )
    return text


def secret(text: str) -> str:
    """A reference to a secret. The problem never repeats the text, which may be the secret itself."""
    if not _SECRET.fullmatch(text) or "\0" in text:
        raise Wrong("must be 'env:NAME' or 'file:/path', never the secret itself")
    return text


def need(extra: Extra, what: str) -> None:
    """Wrong if this needs an extra that is not installed here."""
    if not extra.is_installed:
        raise Wrong(f"{what} needs the extra '{extra.name}', which is not installed", extra.hint)


def tls_version(text: str) -> str:
    """`1.2` or `1.3`."""
    version = re.sub(r"\ATLS ?v?", "", text, flags=re.IGNORECASE)
    if version in ("1.2", "1.3"):
        return version
    hint = "older ones are not safe any more" if version in ("1", "1.0", "1.1") else None
    raise Wrong(f"must be 1.2 or 1.3, not {text!r}", hint)


def kubernetes_name(text: str) -> str:
    """The name of a Service or a namespace (RFC 1123 label)."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text, re.ASCII):
        raise Wrong(f"{text!r} is not a name of Kubernetes", "lower case letters, digits and '-', at most 63")
    return text


def kubernetes_port(text: str) -> str:
    """The name of a port of a Service (RFC 1123 label), or a number."""
    if re.fullmatch(r"[0-9]+", text, re.ASCII):
        if not 0 < int(text) <= 65535:
            raise Wrong(f"{text!r} is not a port")
        return text
    return kubernetes_name(text)


def client_name(text: str) -> str:
    """The name of a client, or `*` for every one."""
    return text if text == "*" else name(text)


def path(text: str) -> str:
    """An absolute path in its normalised spelling."""
    if not text.startswith("/"):
        raise Wrong(f"{text!r} must begin with '/'", f"did you mean '/{text}'?" if text else None)
    if "?" in text or "#" in text:
        raise Wrong(f"{text!r} holds more than a path", "match a query with 'match.query'")
    normal = _normalised(text)
    if normal != text:
        raise Wrong(
            f"{text!r} is matched by no request, since paths are normalised", f"did you mean '{normal}'?"
        )
    return text


def _normalised(text: str) -> str:
    try:
        return normalise(quote(text, safe="/%:@!$&'()*+,;=~-._").encode("ascii")).decode("ascii")
    except (BadRequest, UnicodeError) as error:
        raise Wrong(f"{text!r} is not a path", str(error)) from None


def path_pattern(text: str) -> str:
    """`/exact`, `/prefix/**`, or with parameters, `/v1/accounts/{id}`."""
    seen: set[str] = set()
    segments = text.split("/")
    for position, segment in enumerate(segments):
        _check_segment(text, segment, seen, last=position == len(segments) - 1)
    # The parameters are out of the way before the rest is checked as a path, in which braces would be escaped.
    literal = _PARAMETER.sub("x", text)
    path(literal) if literal == text else _check_literal(text, literal)
    return text


def _check_literal(text: str, literal: str) -> None:
    try:
        path(literal)
    except Wrong as wrong:
        raise Wrong(wrong.problem.replace(repr(literal), repr(text)), None) from None


def _check_segment(text: str, segment: str, seen: set[str], *, last: bool) -> None:
    parameter = _PARAMETER.fullmatch(segment)
    if parameter:
        if parameter[1] in seen:
            raise Wrong(f"{text!r} has the parameter '{parameter[1]}' twice")
        seen.add(parameter[1])
    elif segment == "**":
        if not last:
            raise Wrong(f"{text!r}: '**' can only be the last segment")
    elif "{" in segment or "}" in segment:
        raise Wrong(f"{text!r}: a parameter is a whole segment", "as in '/v1/accounts/{id}'")
    elif segment.endswith("*") or "**" in segment:
        raise Wrong(
            f"{text!r}: {segment!r} is no wildcard",
            "use '{name}' for one segment, '/**' at the end for the rest",
        )


def path_parameters(pattern: str) -> frozenset[str]:
    """The names of a path pattern's parameters."""
    return frozenset(_PARAMETER.findall(pattern))


def regex(text: str) -> str:
    """A regular expression that is sure to be matched in linear time."""
    try:
        path_regex.compile(text)
    except path_regex.Refused as refused:
        hint = RE2.hint if isinstance(refused, path_regex.NeedsRe2) and not RE2.is_installed else None
        raise Wrong(f"{text!r} is not accepted: {refused}", hint) from None
    return text


def method(text: str) -> str:
    """An HTTP method that the parser knows."""
    if text in METHODS:
        return text
    if text.upper() in METHODS:
        raise Wrong(f"{text!r} is not a method; methods are upper case", f"did you mean '{text.upper()}'?")
    raise Wrong(f"{text!r} is not a method", did_you_mean(text.upper(), METHODS))


def header_name(text: str) -> str:
    """A header's name, in the case it is written in."""
    if not _TOKEN.fullmatch(text):
        raise Wrong(f"{text!r} is not a header's name")
    return text


def component(text: str) -> str:
    """What a signature covers: a derived component of RFC 9421, or a header's name."""
    if not text.startswith("@"):
        return header_name(text).lower()
    if text not in DERIVED:
        raise Wrong(
            f"{text!r} is not known", did_you_mean(text, list(DERIVED)) or f"known are {', '.join(DERIVED)}"
        )
    return text


def header_value(text: str) -> str:
    """A header's value: no control characters but tab, no space around it."""
    bad = re.search(r"[\x00-\x08\x0a-\x1f\x7f]", text)
    if bad:
        raise Wrong(f"{text!r} holds the control character {bad[0]!r}")
    if text != text.strip(" \t"):
        raise Wrong(f"{text!r} begins or ends with a space, which is not sent")
    return text


def template(text: str) -> str:
    """A header's value with placeholders; whether `{param.NAME}` exists is the route's to say."""
    for placeholder in placeholders(header_value(text)):
        if placeholder not in _KNOWN_PLACEHOLDERS and not re.fullmatch(
            r"param\.[A-Za-z_][A-Za-z0-9_]*", placeholder
        ):
            close = did_you_mean(placeholder, [*_KNOWN_PLACEHOLDERS])
            raise Wrong(
                f"'{{{placeholder}}}' is not known",
                close or "known are {client}, {request_id}, {route}, {param.NAME}",
            )
    return text


def placeholders(text: str) -> list[str]:
    """The names in braces, in order; `{{` and `}}` are braces. Wrong if one is left open."""
    found: list[str] = []
    for match in _PLACEHOLDER.finditer(text):
        if match[0] in ("{", "}"):
            raise Wrong(
                f"{text!r} has a brace without its other half", f"write '{match[0] * 2}' for one brace"
            )
        if match[1] is not None:
            found.append(match[1])
    return found


def retry_condition(text: str) -> str:
    """A failure or a status that can be retried."""
    return _condition(text, retry.KINDS)


def failure_condition(text: str) -> str:
    """A failure or a status that counts for a breaker."""
    return _condition(text, breaker.KINDS)


def content_condition(kind: str, text: str) -> str:
    """What an answer says, whatever its status: `kind` is `header`, `json` or `body`."""
    try:
        return content.condition(kind, text)
    except content.Wrong as wrong:
        raise Wrong(str(wrong)) from None


def _condition(text: str, kinds: tuple[str, ...]) -> str:
    if text in kinds:
        return text
    if text.startswith("grpc:"):
        raise Wrong(f"{text!r} is {NOT_SUPPORTED}")
    try:
        low, high = status_range(text)
    except ValueError:
        hint = did_you_mean(text, [*kinds, "5xx", "4xx"])
        raise Wrong(
            f"{text!r} is not one of {', '.join(kinds)}, a status (429), a range (502-504) or a class (5xx)",
            hint,
        ) from None
    if low > high:
        raise Wrong(f"{text!r} ends before it begins", f"did you mean '{high}-{low}'?")
    if low < 400 or high > 599:
        raise Wrong(f"{text!r} is not a range of errors, 400 to 599")
    return text


def status_span(text: str) -> str:
    """A status, a range or a class of statuses."""
    try:
        low, high = status_range(text)
    except ValueError:
        raise Wrong(f"{text!r} is not a status (204), a range (200-399) or a class (2xx)") from None
    if low > high:
        raise Wrong(f"{text!r} ends before it begins", f"did you mean '{high}-{low}'?")
    if low < 200 or high > 599:
        raise Wrong(f"{text!r} is not a range of final statuses, 200 to 599")
    return text


_PER = ("client", "route", "client_ip", "upstream")


def limit_per(text: str) -> str:
    """Whose requests a limit counts together; a header's name in lower case."""
    if text in _PER:
        return text
    kind, colon, name_ = text.partition(":")
    if kind == "header" and colon:
        return f"header:{header_name(name_).lower()}"
    raise Wrong(
        f"{text!r} is not one of {', '.join(_PER)}, header:NAME", did_you_mean(text, [*_PER, "header:"])
    )


def balance_key(text: str) -> str:
    """What keeps requests together on one endpoint; a header's name in lower case."""
    if text == "client_ip":
        return text
    kind, colon, name_ = text.partition(":")
    if colon and kind == "header":
        return f"header:{header_name(name_).lower()}"
    if colon and kind == "cookie":
        return f"cookie:{header_name(name_)}"  # RFC 6265: a token, as header names are
    raise Wrong(
        f"{text!r} is not one of header:NAME, cookie:NAME, client_ip",
        did_you_mean(text, ["client_ip", "header:", "cookie:"]),
    )


def zone(text: str) -> str:
    """A zone's name, or the variable that holds it."""
    variable = text.removeprefix("env:")
    if variable == text:
        return name(text)
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable, re.ASCII):
        raise Wrong(f"{variable!r} is no name of an environment variable")
    return text


def limit_cost(text: str) -> str:
    """What a request costs: a whole number, or a header that holds one."""
    if re.fullmatch(r"[1-9][0-9]{0,11}", text, re.ASCII):
        return text
    kind, colon, name_ = text.partition(":")
    if kind == "header" and colon:
        return f"header:{header_name(name_).lower()}"
    raise Wrong(f"{text!r} is neither a whole number above 0 nor 'header:NAME'")


def log_target(text: str) -> str:
    """`stdout` or a file."""
    if text == "stdout" or "/" in text:
        return text
    raise Wrong(f"{text!r} is not 'stdout', 'off' or a file", f"did you mean './{text}'?" if text else None)


def did_you_mean(word: str, known: list[str] | tuple[str, ...]) -> str | None:
    """The hint that names the known word nearest to `word`, or None if none is near."""
    close = get_close_matches(word, known, n=1)
    return f"did you mean '{close[0]}'?" if close else None
