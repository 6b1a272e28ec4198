"""Which breakers a config makes, and what they are called (contract 7.2). Pure.

A breaker is known by its name, in the store, in metrics and in commands. One of scope `upstream` or `endpoint` guards
the upstream, for every route to it, whether it is written at the upstream or at a route. So two of one scope for one
upstream would share a name: that is an error, unless they come from `defaults`, which say the same for every route.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from ambassador.config.part import Part
from ambassador.config.schema import Config, Route, Upstream
from ambassador.proxy.policies import breaker

__all__ = [
    "Made", "breakers_of", "check_breakers", "contents_by_upstream", "scopes_by_upstream", "upstream_breakers",
]  # fmt: skip


class Made(Struct, frozen=True, kw_only=True):
    """One breaker. `upstream` None: it is a route's own; `url` is its endpoint's."""

    name: str
    config: breaker.Config
    upstream: str | None = None
    url: str | None = None
    route: str | None = None


def upstream_breakers(config: Config, upstream: str) -> dict[str, breaker.Config]:
    """The breakers that guard an upstream, by scope: `upstream`, `endpoint`, both, or none."""
    return scopes_by_upstream(config).get(upstream, {})


def contents_by_upstream(config: Config) -> dict[str, frozenset[str]]:
    """What the breakers of each upstream look for in answers (`proxy.content`), those of its endpoints too."""
    return {
        name: frozenset().union(*(each.contents for each in scopes.values()))
        for name, scopes in scopes_by_upstream(config).items()
    }


def scopes_by_upstream(config: Config) -> dict[str, dict[str, breaker.Config]]:
    """`upstream_breakers` of all that have any: it goes through every route, once."""
    found: dict[str, dict[str, breaker.Config]] = {}
    for name, upstream in config.upstreams.items():
        if upstream.breaker is not None:
            found[name] = {upstream.breaker.scope: upstream.breaker}
    for route in config.routes:
        if route.to is not None and route.breaker is not None and route.breaker.scope != "route":
            found.setdefault(route.to, {}).setdefault(route.breaker.scope, route.breaker)
    return found


def breakers_of(config: Config) -> Iterator[Made]:
    """Every breaker of a config."""
    for name, scopes in scopes_by_upstream(config).items():
        if "upstream" in scopes:
            yield Made(name=name, config=scopes["upstream"], upstream=name)
        if "endpoint" in scopes:
            for endpoint in config.upstreams[name].endpoints:
                called = breaker.endpoint_name(name, endpoint.url)
                yield Made(name=called, config=scopes["endpoint"], upstream=name, url=endpoint.url)
    for route in config.routes:
        if route.to is not None and route.breaker is not None and route.breaker.scope == "route":
            yield Made(name=breaker.route_name(route.name), config=route.breaker, route=route.name)


def check_breakers(
    routes: Sequence[tuple[Route, Part]], upstreams: dict[str, Upstream], parts: dict[str, Part]
) -> None:
    """Report every breaker that would have the name of another.

    `routes` are the routes with their parts; `parts` those of the upstreams.
    """
    first: dict[tuple[str, str], tuple[breaker.Config, str, bool]] = {}
    for name, upstream in upstreams.items():
        config = upstream.breaker
        if config is None:
            continue
        first[name, config.scope] = config, f"upstreams.{name}.breaker", True
        urls = [endpoint.url for endpoint in upstream.endpoints]
        if config.scope == "endpoint" and len(set(urls)) < len(urls):
            _refuse(parts[name], f"two endpoints of '{name}' are the same, so their breakers would be too")
    for route, part in routes:
        config = route.breaker
        if config is None or route.to is None or config.scope == "route":
            continue
        written = "breaker" in part.keys
        known = first.setdefault((route.to, config.scope), (config, f"route '{route.name}'", written))
        if known[1] == f"route '{route.name}'" or (known[0] == config and not (known[2] and written)):
            continue
        _refuse(
            part,
            f"the breaker '{route.to}' is there already ({known[1]})",
            f"write it once, at 'upstreams.{route.to}.breaker', or give this one 'scope: route'",
        )


def _refuse(part: Part, problem: str, hint: str | None = None) -> None:
    node, path = part.place("breaker")
    node.report(path if path.endswith("breaker") else f"{path}.breaker", problem, hint)
