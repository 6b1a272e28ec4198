"""Rewrite: the path and the host that the upstream sees."""

from __future__ import annotations

from ambassador.settings import Host, Path, Regex, Section


class Rewrite(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the request's target changes on its way. `prefix` and `regex` exclude each other."""

    prefix: Path | None = None
    """What takes the place of the matched prefix: with `path: /old/**` and `prefix: /new`, `/old/a` becomes `/new/a`."""

    host: Host | None = None
    """The `Host` that is sent: a name, or `keep` for the client's own. Unset: the endpoint's."""

    regex: tuple[Regex, str] | None = None
    """`[pattern, substitution]`: every match in the path is replaced; `\\1` or `\\g<name>` is what a group matched."""
