"""Scalars to values: each type that stands in one text becomes a function that reads one node.

How a text is written is its *form* (`settings.py` has their names); `FORMS` says who parses each. A number's bounds
are those of its type in the schema.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from msgspec import inspect

from ambassador.config import addresses, units, words
from ambassador.config.node import Node, shortened
from ambassador.config.part import BAD, reject
from ambassador.config.units import Wrong

__all__ = ["FORMS", "SCALARS", "Reader", "formed", "integer"]

Reader: TypeAlias = Callable[[Node, str], Any]
"""Reads the node that stands at a path."""


def _text_of(node: Node, path: str) -> str | None:
    """The text of a scalar, or None with the mistake reported."""
    if node.kind != "scalar":
        hint = f'quote this: "{{{shortened(node.pairs[0][0].text)}}}"' if node.is_placeholder else None
        node.report(path, f"must be a text, not {node.what}", hint)
        return None
    if node.empty:
        node.report(path, "has no value", 'leave the key out, or say what it is; "" is an empty text')
        return None
    return node.text


def formed(parse: Callable[[str], Any], info: inspect.Type) -> Reader:
    """The reader of one of the forms: its parser, and the bounds of its type."""
    bounds = _bounds(info)
    may_be_secret = parse in (words.secret, addresses.state_url, addresses.proxy_url)

    def read_formed(node: Node, path: str) -> Any:
        text = _text_of(node, path)
        if text is None:
            return BAD
        try:
            value = parse(text)
        except Wrong as wrong:
            if may_be_secret:
                node.source.mask(node.line, text)
                node.report(path, wrong.problem, wrong.hint)
                return BAD
            return reject(node, path, wrong.problem, _not_off(node) or wrong.hint)
        problem = bounds(value, text)
        return value if problem is None else reject(node, path, problem)

    return read_formed


def _not_off(node: Node) -> str | None:
    return "this cannot be switched off" if node.off else None


def _bounds(info: inspect.Type) -> Callable[[Any, str], str | None]:
    """What says whether a number is out of its type's bounds; None if it is within."""
    if not isinstance(info, (inspect.IntType, inspect.FloatType)):
        return _no_bounds
    above, least, most = info.gt, info.ge, info.le

    def check(value: float, text: str) -> str | None:
        if above is not None and value <= above:
            return f"must be more than 0, got {text}"
        if (least is not None and value < least) or (most is not None and value > most):
            return f"must be {_range(least, most, text)}, got {text}"
        return None

    return check


def _no_bounds(_value: Any, _text: str) -> str | None:
    return None


def _range(least: float | None, most: float | None, text: str) -> str:
    if text.endswith("%"):
        return "0% to 100%"
    return f"at least {least}" if most is None else f"{least} to {most}"


def _string(_info: inspect.Type) -> Reader:
    def read_string(node: Node, path: str) -> Any:
        text = _text_of(node, path)
        return BAD if text is None else text

    return read_string


_INTEGER = re.compile(r"-?(?:0|[1-9][0-9_]{0,18})", re.ASCII)
_DECIMAL = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]{1,18})?", re.ASCII)


def integer(info: inspect.Type) -> Reader:
    """The reader of a whole number within the bounds of its type."""
    bounds = _bounds(info)

    def read_integer(node: Node, path: str) -> Any:
        if not (node.plain and _INTEGER.fullmatch(node.text)):
            return reject(node, path, f"must be a whole number, not {node.what}", _not_off(node))
        value = int(node.text)
        problem = bounds(value, node.text)
        return value if problem is None else reject(node, path, problem)

    return read_integer


def _number(info: inspect.Type) -> Reader:
    bounds = _bounds(info)

    def read_number(node: Node, path: str) -> Any:
        if not (node.plain and _DECIMAL.fullmatch(node.text)):
            return reject(node, path, f"must be a number, not {node.what}")
        value = float(node.text)
        problem = bounds(value, node.text)
        return value if problem is None else reject(node, path, problem)

    return read_number


_TRUE = frozenset(("true", "True", "TRUE", "on", "yes"))
_FALSE = frozenset(("false", "False", "FALSE", "off", "no"))


def _boolean(_info: inspect.Type) -> Reader:
    def read_boolean(node: Node, path: str) -> Any:
        if node.plain and node.text in _TRUE:
            return True
        if node.plain and node.text in _FALSE:
            return False
        return reject(node, path, f"must be true or false, not {node.what}")

    return read_boolean


def _literal(info: inspect.Type) -> Reader:
    assert isinstance(info, inspect.LiteralType)
    values = {str(value): value for value in info.values}

    def read_literal(node: Node, path: str) -> Any:
        text = _text_of(node, path)
        if text is None:
            return BAD
        if text in values:
            return values[text]
        known = ", ".join(values)
        problem = f"must be {known}" if len(values) == 1 else f"must be one of {known}"
        return reject(node, path, f"{problem}; got {node.quoted}", words.did_you_mean(text, list(values)))

    return read_literal


FORMS: Final[dict[str | None, Callable[[str], Any]]] = {
    "duration": units.parse_duration,
    "duration_range": units.parse_duration_range,
    "hedge_after": units.parse_hedge_after,
    "size": units.parse_size,
    "byte_rate": units.parse_byte_rate,
    "percent": units.parse_percent,
    "name": words.name,
    "secret": words.secret,
    "state_url": addresses.state_url,
    "listen_address": addresses.listen_address,
    "control": addresses.control,
    "endpoint_url": addresses.endpoint_url,
    "host_port": addresses.host_port,
    "proxy_url": addresses.proxy_url,
    "srv_name": addresses.srv_name,
    "file_path": addresses.file_path,
    "pem_file": addresses.pem_file,
    "tls_version": words.tls_version,
    "server_name": addresses.server_name,
    "kubernetes_name": words.kubernetes_name,
    "kubernetes_port": words.kubernetes_port,
    "api_server": addresses.api_server,
    "token_url": addresses.token_url,
    "san_pattern": addresses.san_pattern,
    "jwks_source": addresses.jwks_source,
    "client_name": words.client_name,
    "cidr": addresses.cidr,
    "host_pattern": addresses.host_pattern,
    "egress_place": addresses.egress_place,
    "host": addresses.host,
    "path_pattern": words.path_pattern,
    "path": words.path,
    "regex": words.regex,
    "method": words.method,
    "header_name": words.header_name,
    "component": words.component,
    "match_header": lambda text: words.header_name(text).lower(),
    "header_value": words.header_value,
    "template": words.template,
    "rate": units.parse_rate,
    "limit_per": words.limit_per,
    "balance_key": words.balance_key,
    "zone": words.zone,
    "limit_cost": words.limit_cost,
    "status_range": words.status_span,
    "log_target": words.log_target,
}
"""What parses each form; it raises Wrong."""

SCALARS: Final[dict[type[inspect.Type], Callable[[inspect.Type], Reader]]] = {
    inspect.StrType: _string,
    inspect.IntType: integer,
    inspect.FloatType: _number,
    inspect.BoolType: _boolean,
    inspect.LiteralType: _literal,
}
"""Makes the reader of a type that has no form."""
