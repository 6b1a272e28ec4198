"""Headers: set, add and remove headers of requests and answers.

Phase SHAPE, on each attempt's own copy and on the answer. A constant value is a tuple made at load and costs one
append; `{param.NAME}` is put in percent-decoded, and a value that would hold CR, LF, NUL or another control character
is left out, while the header of that name that the client sent is still taken away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

from msgspec import field

from ambassador.messages import Reply
from ambassador.proxy import template
from ambassador.proxy.fields import folded
from ambassador.proxy.framing import refusals
from ambassador.settings import HeaderName, Section, Template

if TYPE_CHECKING:
    from ambassador.messages import Field, Fields, Request

    Shape: TypeAlias = "Callable[[Request, Fields], None]"


class Changes(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Changes to one message's headers: first `remove`, then `set`, then `add`."""

    set: dict[HeaderName, Template] = field(default_factory=dict)
    """Headers that replace all of the same name."""

    add: dict[HeaderName, Template] = field(default_factory=dict)
    """Headers that are added to those of the same name."""

    remove: tuple[HeaderName, ...] = ()
    """Names of headers that are taken out."""

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """A change of what is the proxy's own."""
        for key, names in (("set", self.set), ("add", self.add)):
            for name, problem in refusals(names):
                yield f"{key}.{name}", problem
        for at, name in enumerate(self.remove):
            for _, problem in refusals([name]):
                yield f"remove.{at}", problem


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Headers of the request that goes upstream and of the answer that goes to the client, also where the route has
    `redirect` or `respond`; not of errors, nor of what a `fallback` says in place of an answer.

    Values may hold `{client}`, `{request_id}`, `{route}` and `{param.NAME}` (a parameter of the path pattern);
    `{{` and `}}` are braces.
    """

    request: Changes | None = None
    """Changes to the request, made for each attempt."""

    response: Changes | None = None
    """Changes to the answer."""


def shaper(changes: Changes | None) -> Shape | None:
    """The hook that makes `changes` to a list of fields in place; None when there is nothing to change.

    Raises ValueError for a header that is the proxy's own; loading a config has ruled that out.
    """
    if changes is None or not (changes.set or changes.add or changes.remove):
        return None
    _refuse_framing(changes)
    replaced = frozenset(name.lower().encode() for name in (*changes.remove, *changes.set))
    in_place = _additions(changes.set)
    additions = [*in_place, *_additions(changes.add)]
    if all(isinstance(value, bytes) for _, value in additions):
        return _constant_shape(
            replaced, [(name, value) for name, value in additions if isinstance(value, bytes)]
        )
    return _shape(replaced, _twins(in_place), additions)


def on_replies(make: Callable[[Request], Reply], changes: Changes | None) -> Callable[[Request], Reply]:
    """The same with `changes` made to each of the replies."""
    shape = shaper(changes)
    if shape is None:
        return make

    def made(request: Request) -> Reply:
        reply = make(request)
        fields = [*reply.headers]
        shape(request, fields)
        return Reply(reply.status, fields, reply.body)

    return made


def settled(changes: Changes | None) -> frozenset[bytes]:
    """The names, `folded`, of which `changes` alone say what a message has: those that are set or removed."""
    if changes is None:
        return frozenset()
    return frozenset(folded(name.encode()) for name in (*changes.set, *changes.remove))


def _refuse_framing(changes: Changes) -> None:
    for _, problem in changes.conflicts():
        raise ValueError(problem)


def _additions(values: Mapping[str, str]) -> list[tuple[bytes, bytes | template.Render]]:
    return [(name.encode(), template.compile(value)) for name, value in values.items()]


def _constant_shape(replaced: frozenset[bytes], additions: list[Field]) -> Shape:
    def shape(_request: Request, fields: Fields) -> None:
        if replaced:
            fields[:] = [field for field in fields if field[0].lower() not in replaced]
        fields.extend(additions)

    return shape


def _twins(in_place: list[tuple[bytes, bytes | template.Render]]) -> frozenset[bytes]:
    """Headers that are set to what is known of a request (who asks, say), as CGI and its heirs read their names: to
    them `X_Client` is `X-Client`, and the client's own must not pass for ours.
    """
    return frozenset(folded(name) for name, value in in_place if not isinstance(value, bytes))


def _shape(
    replaced: frozenset[bytes],
    twins: frozenset[bytes],
    additions: list[tuple[bytes, bytes | template.Render]],
) -> Shape:
    def shape(request: Request, fields: Fields) -> None:
        if replaced:
            fields[:] = [
                field
                for field in fields
                if field[0].lower() not in replaced and folded(field[0]) not in twins
            ]
        for name, made in additions:
            value = made if isinstance(made, bytes) else made(request)
            if value is not None:
                fields.append((name, value))

    return shape
