"""The pods of a Kubernetes Service: its EndpointSlices, listed and then watched as "Efficient detection of changes" of
the API's documentation describes.

A list says all there is, and a `resourceVersion`; a watch from there brings what changes, and bookmarks that bring the
version on where nothing does. A watch that ends is begun again from the last version. Where the server has forgotten
that (410 Gone, as a status or as an event), there is a new list. Whatever fails is tried again, about 1, 2, 4 … 30 s
later, and meanwhile what was known holds. What has worked in between begins that anew: a list, or a watch that brought
something or lasted. Only a list that the watch itself made needed does not: else one that costs its version each time
would have all listed each second.

Address, token and authority are read again for each request, so that rotated ones are used; and where a token was
refused, its file is looked at while the pause lasts. Times are trio's.
"""

from __future__ import annotations

import logging
import os
import random
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NoReturn, TypeVar
from urllib.parse import urlencode

import msgspec
import trio

from ambassador.config.discover import Kubernetes
from ambassador.control.backoff import retry_s
from ambassador.control.discovery.slices import (
    ApiStatus,
    EndpointSlice,
    Merged,
    SliceList,
    WatchEvent,
    merge,
)
from ambassador.control.http_client import CallFailed, Header, Incoming, get
from ambassador.pem_files import FileError, trusting
from ambassador.secret import SecretError, read_secret

T = TypeVar("T")

ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
PAGE: Final = 100
"""Slices of a list that are asked for at once: to decode more would hold the loop for longer than 10 ms."""

_WATCH_S = (240.0, 480.0)  # how long a watch is asked for; client-go: 5 to 10 min
_OVERDUE_S = 30.0  # beyond that a watch which says nothing is cut
_ANSWER_S = 10.0  # to the head of an answer, and of a list to its end
_SHORT_S = 1.0  # a watch that ends sooner and brought nothing is a failure, else this loop would never rest
_LOOK_EVERY_S = 1.0  # how often a token that was refused is looked at
_GATHER_S = 0.02  # changes that come together are told together

_LIST = msgspec.json.Decoder(SliceList)
_SLICE = msgspec.json.Decoder(EndpointSlice)
_EVENT = msgspec.json.Decoder(WatchEvent)
_STATUS = msgspec.json.Decoder(ApiStatus)


class _Gone(Exception):
    """The server does not know the version any more."""


class _Refused(CallFailed):
    """The API answered with an error; `status` is HTTP's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Access(msgspec.Struct, frozen=True):
    """How the API is reached now. `tls` None: over plaintext HTTP, or with the system's authorities."""

    server: str
    namespace: str
    token: str | None
    tls: ssl.SSLContext | None

    @property
    def only_loopback(self) -> bool:
        """Whether no other addresses may be dialled: a token goes there in plaintext."""
        return self.token is not None and self.server.startswith("http://")


def token_of(config: Kubernetes, account: str = ACCOUNT) -> str | None:
    """The token to show now; None: there is none to show. Raises `SecretError`."""
    if config.server is None:
        return read_secret(f"file:{account}/token")
    return None if config.token is None else read_secret(config.token)


def access(config: Kubernetes, account: str = ACCOUNT, environ: Mapping[str, str] = os.environ) -> Access:
    """What the config says, and what the pod has for what it does not say. Raises `CallFailed`."""
    try:
        if config.server is not None:
            token = token_of(config, account)
            return Access(config.server, config.namespace or "default", token, _trust(config.ca))
        host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise CallFailed("this is no pod of a cluster: name the 'server'")
        namespace = config.namespace or read_secret(f"file:{account}/namespace")
        server = f"https://{f'[{host}]' if ':' in host else host}:{port}"
        return Access(server, namespace, token_of(config, account), _trust(f"{account}/ca.crt"))
    except SecretError as error:
        raise CallFailed(str(error)) from None


def _trust(ca: str | None) -> ssl.SSLContext | None:
    try:
        return None if ca is None else trusting(ca)
    except FileError as error:
        raise CallFailed(str(error)) from None


class SliceWatch:
    """Watches the slices of one service, and tells all its servers after each change.

    `tell` is awaited with all there are, `trouble` is told why nothing new can be learned, and None once it can again.
    `account` is where the service account's files are; `chance` is uniform in [0, 1); `pause_s` gives the seconds after
    so many failures in a row.
    """

    def __init__(
        self,
        config: Kubernetes,
        tell: Callable[[Merged], Awaitable[None]],
        trouble: Callable[[str | None], None],
        *,
        account: str = ACCOUNT,
        environ: Mapping[str, str] = os.environ,
        chance: Callable[[], float] = random.random,
        pause_s: Callable[[int, float], float] = retry_s,
        log: logging.Logger | None = None,
    ) -> None:
        self._config = config
        self._tell = tell
        self._trouble = trouble
        self._account = account
        self._environ = environ
        self._chance = chance
        self._pause_s = pause_s
        self._log = log or logging.getLogger(__name__)
        self._slices: dict[str, EndpointSlice] = {}
        self._version: str | None = None
        self._changed = trio.Event()
        self._fruitless = 0
        """Turns in a row that brought nothing."""
        self._lost = False
        """The watch has cost the version, and has not worked since."""

    async def run(self) -> None:
        """Watch, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._publish)
            while True:
                await self._turn()

    async def _publish(self) -> None:
        while True:
            await self._changed.wait()
            await trio.sleep(_GATHER_S)
            self._changed = trio.Event()
            await self._tell(merge(self._slices.values(), self._config.port))

    async def _turn(self) -> None:
        """A list if need be, a watch to its end, and the pause after what has failed."""
        token, is_refused = None, False
        try:
            found = access(self._config, self._account, self._environ)
            token = found.token
            if self._version is None:
                self._version = await self._list(found)
                if not self._lost:
                    self._fruitless = 0
            await self._watch(found)
        except _Gone:
            self._log.debug("%s: the version is gone, listing again", self._config.service)
            self._version = None
            if not self._lost:
                self._lost = True
                return
            self._fruitless += 1
        except CallFailed as error:
            self._fruitless += 1
            self._trouble(str(error))
            is_refused = isinstance(error, _Refused) and error.status == 401
        if not self._fruitless:
            return
        with trio.move_on_after(self._pause_s(self._fruitless, self._chance())):
            if not is_refused:
                await trio.sleep_forever()
            while True:
                if self._has_other_token(token):
                    return
                await trio.sleep(_LOOK_EVERY_S)

    def _has_other_token(self, token: str | None) -> bool:
        """Whether it was replaced meanwhile: then there is nothing to wait for."""
        try:
            return token_of(self._config, self._account) != token
        except SecretError:
            return False

    # Requests

    async def _list(self, found: Access) -> str:
        """Take in all slices; returns the version that they are of."""
        slices: dict[str, EndpointSlice] = {}
        query = {"limit": str(PAGE)}
        while True:
            page = await self._page(found, query)
            slices.update((each.metadata.name, each) for each in page.items or ())
            if not page.metadata.continue_:
                break
            query["continue"] = page.metadata.continue_
        self._slices = slices
        self._learned()
        return page.metadata.resource_version

    async def _page(self, found: Access, query: dict[str, str]) -> SliceList:
        try:
            with trio.fail_after(_ANSWER_S):
                async with get(
                    found.server,
                    self._target(found, query),
                    _headers(found),
                    tls=found.tls,
                    only_loopback=found.only_loopback,
                    timeout_s=_ANSWER_S,
                    idle_s=_ANSWER_S,
                ) as answer:
                    if answer.status != 200:
                        await _refuse(answer)
                    return _decoded(_LIST, await answer.body())
        except trio.TooSlowError:
            raise CallFailed(f"no whole answer within {_ANSWER_S:g} s") from None

    async def _watch(self, found: Access) -> None:
        low, high = _WATCH_S
        lasts_s = round(low + (high - low) * self._chance())
        query = {
            "watch": "1",
            "resourceVersion": self._version or "",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(lasts_s),
        }
        target = self._target(found, query)
        has_worked = False
        async with get(
            found.server,
            target,
            _headers(found),
            tls=found.tls,
            only_loopback=found.only_loopback,
            timeout_s=_ANSWER_S,
            idle_s=lasts_s + _OVERDUE_S,
        ) as answer:
            if answer.status != 200:
                await _refuse(answer)
            self._trouble(None)
            began = trio.current_time()
            try:
                while (line := await answer.line()) is not None:
                    if line.strip():
                        self._take(line)
                        self._works()
                        has_worked = True
            finally:
                if trio.current_time() - began >= _SHORT_S:
                    self._works()
                    has_worked = True
        if not has_worked:
            self._fruitless += 1

    def _works(self) -> None:
        self._lost, self._fruitless = False, 0

    def _target(self, found: Access, query: Mapping[str, str]) -> str:
        selected = {"labelSelector": f"kubernetes.io/service-name={self._config.service}", **query}
        return f"/apis/discovery.k8s.io/v1/namespaces/{found.namespace}/endpointslices?{urlencode(selected)}"

    def _take(self, line: bytes) -> None:
        """Take in an event. Raises `_Gone`, `CallFailed`."""
        try:
            event = _decoded(_EVENT, line)
            if event.type == "ERROR":
                _end(_decoded(_STATUS, event.object))
            slice_ = _decoded(_SLICE, event.object)
        except CallFailed:
            self._version, self._lost = None, True  # who knows what was in it
            raise
        self._version = slice_.metadata.resource_version
        if event.type == "DELETED":
            self._slices.pop(slice_.metadata.name, None)
        elif event.type in ("ADDED", "MODIFIED"):
            self._slices[slice_.metadata.name] = slice_
        else:
            return  # a bookmark, or what a later version of the API brings
        self._changed.set()

    def _learned(self) -> None:
        self._trouble(None)
        self._changed.set()


def _headers(found: Access) -> list[Header]:
    headers = [(b"accept", b"application/json"), (b"user-agent", b"ambassador")]
    if found.token is not None:
        headers.append((b"authorization", b"Bearer " + found.token.encode()))
    return headers


def _decoded(decoder: msgspec.json.Decoder[T], data: bytes | msgspec.Raw) -> T:
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as error:
        raise CallFailed(f"the API server's answer makes no sense: {error}") from None


def _end(status: ApiStatus) -> NoReturn:
    """Raises `_Gone`, `CallFailed`."""
    if status.code == 410:
        raise _Gone
    raise CallFailed(f"the watch ended: {status.message or status.reason or status.code}")


async def _refuse(answer: Incoming) -> NoReturn:
    """Raises `_Gone`, `_Refused`."""
    try:
        message = _STATUS.decode(await answer.body()).message
    except msgspec.DecodeError:
        message = ""
    if answer.status == 410:
        raise _Gone
    raise _Refused(answer.status, f"the API server answers {answer.status}{message and ': '}{message}")


__all__ = ["ACCOUNT", "Access", "SliceWatch", "access"]
