"""The vocabulary in which settings are declared: `Section` and the kinds of value a setting can have.

A section of the config is one frozen Struct, next to the code that obeys it (a policy's `Config` is in the policy's
file). Its annotations say two things at once: the type after loading (what the code gets: seconds, bytes, fractions)
and the form in the file (what people write: `250ms`, `64KiB`, `20%`). `config.load` reads the second to make the
first, and `config.schema` prints the second as JSON Schema. Nothing here parses anything.

The string literal under a field is its reference documentation; every field has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from msgspec import Meta, Struct

from ambassador.extras import Extra


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping of the config, after loading: immutable, complete, in base units."""

    shorthand: ClassVar[str | None] = None
    """The field that a bare value stands for: `timeout: 2s` is `timeout: {total: 2s}`. None: a mapping only."""

    later: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Keys of the reference that this version does not build, each with the values that ask for nothing new."""

    aliases: ClassVar[Mapping[str, str]] = {}
    """Other spellings of a key, each with the key it stands for."""

    extras: ClassVar[Mapping[str, Extra]] = {}
    """Keys that need an extra, each with that. Where it depends on the value, its parser says so."""

    @classmethod
    def refusal(cls, field: str, value: Any) -> str | None:  # noqa: ARG003 - of those that override it
        """What is wrong with a written value whatever the other fields hold, beyond what its type says; None: nothing.

        It is told even where other fields of the mapping are wrong too, which keeps `conflicts` from being asked.
        """
        return None

    def conflicts(self) -> Iterator[tuple[str | None, str]]:
        """Combinations of good values that are wrong together: a field (None: the whole) and the problem with it.

        `FIELD.KEY` is a key of a mapping, `FIELD.N` an item of a list.
        """
        return iter(())


# Quantities. `X | None` in a field means that the file may say `off`.
Seconds = Annotated[float, Meta(gt=0, extra={"form": "duration"})]
"""A duration, `250ms`, `2s`, `5m`; more than nothing."""
SecondsOrNone = Annotated[float, Meta(ge=0, extra={"form": "duration"})]
"""A duration where `0s` has a meaning."""
SecondsRange = Annotated[tuple[float, float], Meta(extra={"form": "duration_range"})]
"""`25ms..250ms`, or one duration, which is both ends; 0 < low <= high."""
Bytes = Annotated[int, Meta(ge=1, extra={"form": "size"})]
"""A size, `64KiB`, `1MB`, `512B`; at least one byte."""
BytesOrNone = Annotated[int, Meta(ge=0, extra={"form": "size"})]
"""A size where `0B` has a meaning."""
BytesPerSecond = Annotated[float, Meta(gt=0, extra={"form": "byte_rate"})]
"""A transfer rate, `256B/s`."""
Rate = Annotated[tuple[float, int], Meta(extra={"form": "rate"})]
"""So many in a period: `100/s`, `5000/m`, `1e6/d`. After loading: the amount, above 0, and the period's seconds."""
Fraction = Annotated[float, Meta(ge=0, le=1, extra={"form": "percent"})]
"""`20%`, which is 0.2 after loading."""
Count = Annotated[int, Meta(ge=1)]
"""A whole number, at least 1."""
CountOrNone = Annotated[int, Meta(ge=0)]
"""A whole number where 0 has a meaning."""
Status = Annotated[int, Meta(ge=200, le=599)]
"""A final HTTP status."""

# Words.
Name = Annotated[str, Meta(extra={"form": "name"})]
"""Names a route, an upstream or an instance: letters, digits, `_`, `.`, `-`; it becomes a label of metrics."""
Secret = Annotated[str, Meta(extra={"form": "secret"})]
"""`env:NAME` or `file:/path`; never the secret itself. It stays a reference after loading."""
StateUrl = Annotated[str, Meta(extra={"form": "state_url"})]
"""`local`, or the address of a Redis, without its password."""
ListenAddress = Annotated[str, Meta(extra={"form": "listen_address"})]
"""`host:port`, `[v6]:port`, or `unix:/path`; port 0 lets the system choose."""
EndpointUrl = Annotated[str, Meta(extra={"form": "endpoint_url"})]
"""`http://host:port` without a path, or `unix:/path`."""
Cidr = Annotated[str, Meta(extra={"form": "cidr"})]
"""A network, `10.0.0.0/8`, or one address."""
ClientName = Annotated[str, Meta(extra={"form": "client_name"})]
"""The name of a client, or `"*"` for every client that is known."""
SanPattern = Annotated[str, Meta(extra={"form": "san_pattern"})]
"""A subject alternative name of a certificate: a DNS name (`*` for one label), a URI (`/*` at its end for what is
below), an e-mail address or an IP address."""
JwksSource = Annotated[str, Meta(extra={"form": "jwks_source"})]
"""Where a set of public keys is: `https://…`, `http://` to loopback, or `file:/path`."""
FilePath = Annotated[str, Meta(extra={"form": "file_path"})]
"""The absolute path of a file."""
HostPattern = Annotated[str, Meta(extra={"form": "host_pattern"})]
"""A host name, `*.suffix`, or `*`; lower case and without a port after loading."""
Host = Annotated[str, Meta(extra={"form": "host"})]
"""A host name or address, with or without a port."""
PathPattern = Annotated[str, Meta(extra={"form": "path_pattern"})]
"""`/exact`, `/prefix/**`, or with parameters, `/v1/accounts/{id}`."""
Path = Annotated[str, Meta(extra={"form": "path"})]
"""An absolute path, without query."""
Regex = Annotated[str, Meta(extra={"form": "regex"})]
"""A regular expression that is matched in linear time."""
Method = Annotated[str, Meta(extra={"form": "method"})]
"""An HTTP method, upper case."""
HeaderName = Annotated[str, Meta(extra={"form": "header_name"})]
"""A header's name: a token of RFC 9110."""
MatchHeader = Annotated[str, Meta(extra={"form": "match_header"})]
"""A header's name to look for; lower case after loading."""
Template = Annotated[str, Meta(extra={"form": "template"})]
"""A header's value, in which `{client}`, `{request_id}`, `{route}` and `{param.NAME}` are replaced."""
HeaderValue = Annotated[str, Meta(extra={"form": "header_value"})]
"""A header's value: no CR, LF or NUL."""
Component = Annotated[str, Meta(extra={"form": "component"})]
"""What of a request a signature covers: `@method` and its like (RFC 9421 2.2), or a header's name, lower case after
loading."""
RetryCondition = Annotated[str, Meta(extra={"form": "retry_condition"})]
"""`connect`, `reset`, `refused_stream`, `timeout`, a status (`429`), a range (`502-504`) or a class (`5xx`); or what an
answer says, `{json: PATH=VALUE}` and the like, after loading `json:PATH=VALUE` (`proxy.content`), or `content`."""
StatusRange = Annotated[str, Meta(extra={"form": "status_range"})]
"""A status (`204`), a range (`200-399`) or a class (`2xx`)."""
HedgeAfter = Annotated[tuple[float, float], Meta(extra={"form": "hedge_after"})]
"""A percentile, `p95`, or a duration, `50ms`. After loading: the share of the percentile and the seconds; one is 0."""
LimitPer = Annotated[str, Meta(extra={"form": "limit_per"})]
"""`route`, `client`, `client_ip`, `header:NAME` or `upstream`."""
LimitCost = Annotated[str, Meta(extra={"form": "limit_cost"})]
"""A whole number of at least 1, or `header:NAME`."""
BalanceKey = Annotated[str, Meta(extra={"form": "balance_key"})]
"""`header:NAME`, `cookie:NAME` or `client_ip`."""
ZoneName = Annotated[str, Meta(extra={"form": "zone"})]
"""A name, or `env:NAME`, which is read where it is used."""
FailureCondition = Annotated[str, Meta(extra={"form": "failure_condition"})]
"""`connect`, `reset`, `timeout`, a status (`429`), a range (`502-504`) or a class (`5xx`); or what an answer says, as
in a `RetryCondition`."""

Internal = Meta(extra={"internal": True})
"""Marks a field that the loader fills in and no file may write."""
