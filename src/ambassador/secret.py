"""Secrets by reference: the config names where one is kept, and whoever needs it reads it then.

`read_secret` reads once, for what is needed once (a token at start, a password at each connecting). `Secrets` keeps
what requests need: each reference is read when it is first asked for, and again by `refresh`, so that a file that was
replaced is used within a second and without a reload.

The rules that hold here
- A value is in no `repr`, no log and no error: these have the reference.
- What was read once stays in force while the file cannot be read or is empty: a mount that is being replaced must not
  fail requests. A process that starts meanwhile goes on with what another one had read (`hand_over`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final
from weakref import WeakValueDictionary

from ambassador.files import UnfitFile, read_regular

MOST_BYTES: Final = 1024 * 1024
"""Of one secret. A key of 16384 bits takes 13 KiB; more is no secret."""


class SecretError(Exception):
    """A secret cannot be read; the text never holds it."""


def read_secret(reference: str) -> str:
    """What `env:NAME` or `file:/path` holds now, without white space around it.

    Raises `SecretError` when there is nothing, more than `MOST_BYTES`, or no regular file.
    """
    kind, _, where = reference.partition(":")
    try:
        value = os.environ[where] if kind == "env" else read_regular(where, MOST_BYTES).decode()
    except (KeyError, ValueError, UnfitFile):
        raise SecretError(f"{reference}: cannot be read") from None
    if not value.strip():
        raise SecretError(f"{reference}: is empty")
    return value.strip()


class Secret:
    """One secret, as it is now."""

    __slots__ = ("__weakref__", "_log", "_problem", "_told", "_value", "reference", "version")

    def __init__(self, reference: str, log: logging.Logger) -> None:
        self._log = log
        self._told: tuple[int, str] = (0, "")
        self.reference = reference
        """Where it is kept."""
        self.version = 0
        """Grows with each change. Set after the value: who remembers what was made of a value under the version that
        it had *before* looking makes it again at worst once too often."""
        self._value: str | None = None
        self._problem = ""

    @property
    def value(self) -> str:
        """What it holds. Raises `SecretError` as long as it never could be read."""
        if self._value is None:
            raise SecretError(self._problem)
        return self._value

    def stand_in(self, value: str) -> None:
        """Take what another process read, in place of what cannot be read here."""
        self._value = value
        self.version += 1

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.reference}>"

    def unusable(self, why: str) -> None:
        """Tell the log, once for each value, why what it holds cannot be used. `why` must not hold anything of it."""
        if self._told != (self.version, why):
            self._told = (self.version, why)
            self._log.warning("%s: %s", self.reference, why)

    def read_again(self) -> str | None:
        """Take what is there now. Returns a new problem, in a sentence; None: there is none, or the same as before."""
        try:
            value = read_secret(self.reference)
        except SecretError as error:
            before, self._problem = self._problem, str(error)
            return None if before == self._problem else self._problem
        self._problem = ""
        if value != self._value:
            self._value = value
            self.version += 1
        return None


def quiet() -> logging.Logger:
    """A log for who reads secrets and says by itself what there is to say, or would repeat what another says."""
    log = logging.getLogger("ambassador.quiet")
    log.disabled = True
    return log


class Secrets:
    """The secrets of one process, by reference. Those that nobody holds any more are forgotten.

    `log` is told once of each that cannot be read, or used.
    """

    def __init__(self, log: logging.Logger | None = None) -> None:
        self._log = log or logging.getLogger(__name__)
        self._known: WeakValueDictionary[str, Secret] = WeakValueDictionary()
        self._handed: Mapping[str, str] = MappingProxyType({})

    def hand_over(self, values: Mapping[str, str]) -> None:
        """What another process has read, by reference: used for those that are new here and cannot be read."""
        self._handed = values

    def get(self, reference: str) -> Secret:
        """The secret that `env:NAME` or `file:/path` names, read if it is new here; the same object each time."""
        secret = self._known.get(reference)
        if secret is None:
            secret = self._known[reference] = Secret(reference, self._log)
            self._read(secret)
        return secret

    def files(self) -> list[Secret]:
        """Those that can change while the process lives."""
        return [secret for secret in self._known.values() if secret.reference.startswith("file:")]

    def refresh(self, secrets: Iterable[Secret] | None = None) -> None:
        """Read `secrets` again, or all `files`. Blocks for as long as files take to read: a thread may do it, with
        `secrets` that were listed elsewhere.
        """
        for secret in self.files() if secrets is None else secrets:
            self._read(secret)

    def _read(self, secret: Secret) -> None:
        known = secret.version > 0
        problem = secret.read_again()
        if problem is not None and not known and secret.reference in self._handed:
            secret.stand_in(self._handed[secret.reference])
            known = True
        if problem is not None:
            self._log.warning("%s%s", problem, ", what was read before is used" if known else "")
