"""A config from its files: every mistake of every file in one run, or the canonical `schema.Config`.

The steps: each file's text to nodes (`compose`), nodes to parts by the schema (`read`), then what only the
whole can tell: includes, names, defaults, inline upstreams, references; then `build`, and the warnings of `check`. A
step that finds mistakes does not keep the others from looking, except that a file which is not YAML says nothing else,
and that nothing is said of a part which is wrong itself beyond what is wrong with it.

Nothing here raises for what a file holds; `load_file` and `load_text` raise ConfigError with all of it.
"""

from __future__ import annotations

import glob
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from ambassador.config import addresses, check, words
from ambassador.config.breakers import check_breakers
from ambassador.config.certificates import check_files
from ambassador.config.clients import check_clients
from ambassador.config.compose import compose
from ambassador.config.defaults import inherit
from ambassador.config.node import Node, Source
from ambassador.config.own_addresses import check_own
from ambassador.config.part import BAD, Items, Part, build
from ambassador.config.placeholders import check_placeholders
from ambassador.config.problem import ConfigError, Problem, in_order
from ambassador.config.read import read
from ambassador.config.schema import (
    ON_THE_WAY,
    TARGETS,
    Config,
    Document,
    Endpoint,
    Fragment,
    Match,
    Route,
    Upstream,
)

__all__ = ["Loaded", "load", "load_endpoints", "load_file", "load_string", "load_text"]

TEXT = "-"
"""What a text is called that comes from no file."""

LARGEST_FILE = 16 * 2**20
"""Bytes of a file; ten thousand routes are a tenth of it."""


class Loaded(Struct, frozen=True, kw_only=True):
    """What came of loading."""

    config: Config | None
    """The config, or None if there is an error."""

    problems: tuple[Problem, ...] = ()
    """Errors and warnings, file by file, in the order of their lines."""

    files: tuple[str, ...] = ()
    """Every file that was read, included ones too."""

    places: dict[str, str] = {}
    """What an error of a setting begins with that only shows when the setting is used, `file:line:col: error: path`:
    of `listeners[N]` (its address), `listeners[N].tls`, `upstreams.NAME.tls`, `admin.address`, `admin.token`,
    `control`, `telemetry.access_log`, as far as they are written."""

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that keep the config from being used."""
        return tuple(problem for problem in self.problems if problem.level == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """The problems that do not."""
        return tuple(problem for problem in self.problems if problem.level == "warning")

    def require(self) -> Config:
        """The config. Raises ConfigError with the errors if there is none."""
        if self.config is None:
            raise ConfigError(self.errors)
        return self.config


def load(*paths: str | os.PathLike[str]) -> Loaded:
    """Loads a config file. Further files are read as if the first included them."""
    problems: list[Problem] = []
    sources = [_read_file(os.fspath(path), problems) for path in paths]
    return _load(sources, problems, Path(paths[0]).parent)


def load_string(text: str, name: str = TEXT) -> Loaded:
    """Loads a config from its text; what it includes is relative to the working directory."""
    problems: list[Problem] = []
    return _load([(Source(name, text, problems), text)], problems, Path())


def load_file(path: str | os.PathLike[str]) -> Config:
    """The config of a file. Raises ConfigError with every mistake."""
    return load(path).require()


def load_text(text: str) -> Config:
    """The config of a text. Raises ConfigError with every mistake."""
    return load_string(text).require()


def load_endpoints(path: str) -> tuple[Endpoint, ...]:
    """The endpoints of a file that is a list of them, as `endpoints` has it; none are allowed.

    Raises ConfigError with every mistake.
    """
    problems: list[Problem] = []
    source, text = _read_endpoints_file(path, problems)
    root = None if text is None else compose(source, text)
    if root is not None and root.kind != "sequence":
        root.report("", "must be a list of endpoints", "'[]' is an empty one")
    elif root is None and not problems:
        source.report(1, 1, "", "is empty; a list of endpoints belongs here", "'[]' is an empty one")
    built: list[Any] = []
    seen: dict[str, Node] = {}
    for at, node in enumerate(root.items if root is not None else ()):
        part = read(Endpoint, node, f"[{at}]")
        built.append(build(part))
        url = part.values.get("url") if isinstance(part, Part) else None
        if isinstance(url, str) and seen.setdefault(url, node) is not node:
            node.report(f"[{at}]", f"'{url}' is there already (line {seen[url].line})")
    if problems:
        raise ConfigError(in_order(problems))
    return tuple(built)


def _read_endpoints_file(path: str, problems: list[Problem]) -> tuple[Source, str | None]:
    # A pipe would keep its reader waiting for ever.
    if os.path.exists(path) and not os.path.isfile(path):
        source = Source(path, "", problems)
        source.report(0, 0, "", "is not a file")
        return source, None
    return _read_file(path, problems)


# Files to texts


def _read_file(path: str, problems: list[Problem]) -> tuple[Source, str | None]:
    """A file's text, or None with the reason reported."""
    nothing = Source(path, "", problems)
    try:
        with open(path, "rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        nothing.report(0, 0, "", f"cannot be read: {reason}")
        return nothing, None
    if len(raw) > LARGEST_FILE:
        nothing.report(0, 0, "", f"is larger than {LARGEST_FILE // 2**20} MiB")
        return nothing, None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        nothing.report(line, column, "", f"is not UTF-8: byte 0x{raw[error.start]:02x}")
        return nothing, None
    return Source(path, text, problems), text


# Texts to a config


def _load(sources: list[tuple[Source, str | None]], problems: list[Problem], folder: Path) -> Loaded:
    assembly = _Assembly(problems, folder)
    for number, (source, text) in enumerate(sources):
        assembly.files.append(source.name)
        if text is not None:
            assembly.read(Document if number == 0 else Fragment, source, text)
    config = assembly.finish()
    whole = not any(problem.level == "error" for problem in problems)
    if config is not None:
        check.warn(
            config,
            assembly.routes,
            assembly.upstreams,
            assembly.document,
            matches=assembly.matches,
            whole=whole,
        )
        check_files(config, assembly.listeners, assembly.upstreams, assembly.document, now=time.time())
    if any(problem.level == "error" for problem in problems):
        config = None
    files = tuple(name for name in assembly.files if name != TEXT)
    places = {} if config is None else dict(assembly.places())
    return Loaded(config=config, problems=in_order(problems), files=files, places=places)


class _Assembly:
    """The parts of all files, and how they become one config."""

    def __init__(self, problems: list[Problem], folder: Path) -> None:
        self.document: Part | None = None
        self.routes: list[Part] = []
        self.matches: list[tuple[Part, Match]] = []
        self.upstreams: dict[str, Part] = {}
        self.files: list[str] = []
        self._problems = problems
        self._folder = folder
        self._unread: set[str] = set()
        """Names of upstreams that are there but could not be read."""
        self._names: dict[str, Node] = {}
        self._partial = False

    def read(self, section: type[Document | Fragment], source: Source, text: str) -> None:
        """Reads one file's text and takes in what it holds."""
        before = len(self._problems)
        root = compose(source, text)
        if root is None and len(self._problems) == before:
            root = Node("mapping", source, 1, 1)
            root.value = []
        part = BAD if root is None else self._read_root(section, root)
        if not isinstance(part, Part):
            self._partial = True
            return
        if section is Document:
            self.document = part
        self._take(part)
        self._include(part)

    def _read_root(self, section: type[Document | Fragment], root: Node) -> Any:
        if section is Fragment:
            for key, _ in root.pairs:
                if key.text in Document.__struct_fields__ and key.text not in Fragment.__struct_fields__:
                    key.report(key.text, "belongs into the file that includes this one")
            kept = Node("mapping", root.source, root.line, root.column)
            outer = {*Document.__struct_fields__} - {*Fragment.__struct_fields__}
            kept.value = [pair for pair in root.pairs if pair[0].text not in outer]
            root = root if root.kind != "mapping" else kept
        return read(section, root)

    def _take(self, part: Part) -> None:
        upstreams = part.values.pop("upstreams", None)
        if isinstance(upstreams, Part):
            for name, value in upstreams.values.items():
                self._take_upstream(name, value, upstreams)
        elif upstreams is BAD:
            self._partial = True
        routes = part.values.pop("routes", None)
        if isinstance(routes, Items):
            self.routes += [route for route in routes.values if isinstance(route, Part)]

    def _take_upstream(self, name: str, value: Any, upstreams: Part) -> None:
        first = self.upstreams.get(name)
        if first is not None:
            upstreams.keys[name].report(
                f"upstreams.{name}", f"the upstream '{name}' is there already ({_where(first.node)})"
            )
        elif isinstance(value, Part):
            self.upstreams[name] = value
        else:
            self._unread.add(name)

    def _include(self, part: Part) -> None:
        patterns = part.values.pop("include", None)
        if not isinstance(patterns, Items):
            return
        for pattern, node in zip(patterns.values, patterns.nodes, strict=True):
            if pattern is not BAD:
                self._include_matching(pattern, node)

    def _include_matching(self, pattern: str, node: Node) -> None:
        wild = glob.has_magic(pattern)
        try:
            found = (
                sorted(glob.glob(str(self._folder / pattern), recursive=True))
                if wild
                else [str(self._folder / pattern)]
            )
        except (ValueError, OSError, re.error) as error:
            node.report("include", f"cannot be searched: {error}")
            return
        if not found:
            node.report("include", f"{pattern!r} matches no file", level="warning")
        for path in found:
            if any(os.path.realpath(path) == os.path.realpath(file) for file in self.files):
                continue
            source, text = _read_file(path, self._problems)
            self.files.append(path)
            if text is None:
                self._partial = True
            else:
                self.read(Fragment, source, text)

    def finish(self) -> Config | None:
        """The config, without what is wrong in it: the problems say what. None if nothing is there.

        Afterwards `routes` and `upstreams` are those of the config; `matches` are of all routes whose match is right.
        """
        if self.document is None:
            return None
        defaults = self.document.values.pop("defaults", None)
        for route in self.routes:
            inherit(route, defaults)
            self._check_name(route)
            self._resolve_target(route)
            check_placeholders(route)
        check_clients(self.routes, list(self.upstreams.values()), self.document)
        self._fold_listeners(self.document)
        self._check_addresses(self.document)
        built = [(_build_route(part), part) for part in self.routes]
        routes = [(route, part) for route, part in built if route is not BAD]
        taken = [(part, _match_of(part) if route is BAD else route.match) for route, part in built]
        self.matches = [(part, match) for part, match in taken if match is not None]
        upstreams = _without_bad({name: build(part) for name, part in self.upstreams.items()})
        settings = _without_bad({name: build(value) for name, value in self.document.values.items()})
        check_breakers(routes, upstreams, self.upstreams)
        check_own(
            settings.get("admin"),
            settings.get("control"),
            settings.get("listeners", ()),
            upstreams,
            self.upstreams,
        )
        self.routes = [part for _, part in routes]
        self.upstreams = {name: part for name, part in self.upstreams.items() if name in upstreams}
        known = {name: value for name, value in settings.items() if name in Config.__struct_fields__}
        return Config(
            routes=tuple(route for route, _ in routes), upstreams=upstreams, **{"listeners": (), **known}
        )

    @property
    def listeners(self) -> list[Part]:
        """The parts of the listeners that could be read, in order."""
        listeners = None if self.document is None else self.document.values.get("listeners")
        values = listeners.values if isinstance(listeners, Items) else []
        return [part for part in values if isinstance(part, Part)]

    def places(self) -> Iterator[tuple[str, str]]:
        """See `Loaded.places`. After `finish`."""
        document = self.document
        if document is None:
            return
        listeners = document.values.get("listeners")
        for at, listener in enumerate(listeners.values if isinstance(listeners, Items) else []):
            yield from _places(f"listeners[{at}]", listener, "address")
            yield from _places(f"listeners[{at}].tls", listener, "tls")
        for name, upstream in self.upstreams.items():
            yield from _places(f"upstreams.{name}.tls", upstream, "tls")
        for section, keys in (("admin", ("address", "token")), ("telemetry", ("access_log",))):
            for key in keys:
                yield from _places(f"{section}.{key}", document.values.get(section), key)
        yield from _places("control", document, "control")

    def _check_name(self, route: Part) -> None:
        name = route.values.get("name")
        if not isinstance(name, str):
            return
        first = self._names.setdefault(name, route.nodes["name"])
        if first is not route.nodes["name"]:
            node, path = route.place("name")
            node.report(path, f"the name '{name}' is taken by another route ({_where(first)})")

    def _resolve_target(self, route: Part) -> None:
        targets = [key for key in TARGETS if key in route.keys and route.values.get(key) is not None]
        if len(targets) > 1:
            node, path = route.place(targets[1])
            node.report(
                path,
                f"a route has one of 'to', 'redirect' and 'respond', and this has '{targets[0]}' already",
            )
        elif not targets and not any(
            value is BAD and key.startswith("?") for key, value in route.values.items()
        ):
            route.node.report(route.path, "missing one of 'to', 'redirect' and 'respond'")
        if targets and targets[0] != "to":
            for key in ON_THE_WAY:
                if key in route.keys and route.values.get(key) is not None:
                    node, path = route.place(key)
                    node.report(path, f"'{key}' has no effect with '{targets[0]}'")
        self._refer(route, route.values.get("name"))
        fallback = route.values.get("fallback")
        if isinstance(fallback, Part):
            name = route.values.get("name")
            self._refer(fallback, f"{name}.fallback" if isinstance(name, str) else None)

    def _refer(self, part: Part, own_name: Any) -> None:
        """Have `to` of a route, or of what is inside it, name an upstream; URLs become one with `own_name`."""
        target = part.values.get("to")
        if isinstance(target, Items):
            self._inline_upstream(part, target, own_name)
        elif isinstance(target, str) and not self._partial and target not in {*self.upstreams, *self._unread}:
            node, path = part.place("to")
            hint = words.did_you_mean(target, list(self.upstreams)) or "a URL begins with 'http://'"
            node.report(path, f"there is no upstream '{target}'", hint)

    def _inline_upstream(self, part: Part, endpoints: Items, name: Any) -> None:
        if not isinstance(name, str):
            part.values["to"] = BAD
            return
        node, path = part.place("to")
        known = self.upstreams.get(name)
        if known is not None and (part.section is not Route or self._names[name] is part.nodes["name"]):
            node.report(path, f"the upstream '{name}' is there already ({_where(known.node)})",
                        "URLs here make an upstream with that name; rename one of them")  # fmt: skip
        upstream = Part(Upstream, node, path)
        upstream.put("endpoints", endpoints, node, node)
        self.upstreams.setdefault(name, upstream)
        part.values["to"] = name

    def _fold_listeners(self, document: Part) -> None:
        short = document.values.pop("listen", None)
        long = document.values.get("listeners")
        if short is None and long is None and "listeners" not in document.values:
            if not any(key.startswith("?") and "listen" in key for key in document.values):
                document.node.report("", "missing required key 'listen'", "as in 'listen: 127.0.0.1:8080'")
        elif short is not None and long is not None:
            document.keys["listen"].report("listen", "is short for 'listeners', and both are there")
        elif short is not None:
            document.values["listeners"] = short
            document.nodes["listeners"] = document.nodes["listen"]
            document.keys["listeners"] = document.keys["listen"]
        for key in [key for key in document.values if key.startswith("?")]:
            del document.values[key]
        listeners = document.values.get("listeners")
        if isinstance(listeners, Items) and not listeners.values:
            document.nodes["listeners"].report("listeners", "must not be empty")

    def _check_addresses(self, document: Part) -> None:
        seen: dict[str, Node] = {}
        listeners = document.values.get("listeners")
        key = "listen" if "listen" in document.keys else "listeners"
        for at, listener in enumerate(listeners.values if isinstance(listeners, Items) else []):
            if isinstance(listener, Part):
                self._check_address(listener, f"{key}[{at}].address", seen)
        admin = document.values.get("admin")
        if isinstance(admin, Part):
            self._check_address(admin, "admin.address", seen)
            address = admin.values.get("address")
            if (
                isinstance(address, str)
                and not addresses.is_for_this_host(address)
                and admin.values.get("token") is None
            ):
                admin.nodes["address"].report(
                    "admin", f"'{address}' is beyond loopback, so a token is needed",
                    "write it as {address: …, token: 'env:NAME'}, or listen on 127.0.0.1",
                )  # fmt: skip

    def _check_address(self, part: Part, path: str, seen: dict[str, Node]) -> None:
        address = part.values.get("address")
        if not isinstance(address, str) or address.endswith(":0"):
            return
        node = part.nodes["address"]
        first = seen.setdefault(address, node)
        if first is not node:
            node.report(path, f"'{address}' is listened on already ({_where(first)})")


def _places(setting: str, part: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(part, Part) and key in part.nodes:
        node, path = part.place(key)
        if node is part.node:  # the short form: the value stands for the whole
            path = part.path
        yield setting, f"{node.source.name}:{node.line}:{node.column}: error: {path}"


def _without_bad(built: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in built.items() if value is not BAD}


def _build_route(route: Part) -> Any:
    route.values["line"] = route.node.line
    route.values["file"] = "" if route.node.source.name == TEXT else route.node.source.name
    built = build(route)
    if isinstance(built, Route) and built.retry is not None and built.retry.attempts == 0:
        return structs.replace(built, retry=None)
    return built


def _match_of(route: Part) -> Match | None:
    """What a route takes that has errors; None if they are about that, or may be."""
    if "match" not in route.values:
        return None if any(key.startswith("?") for key in route.values) else Match()
    match = build(route.values["match"])
    return match if isinstance(match, Match) else None


def _where(node: Node) -> str:
    return f"line {node.line} of {node.source.name}" if node.source.name != TEXT else f"line {node.line}"
