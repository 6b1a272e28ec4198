"""What a worker knows that outlives its tables: a reload must neither close a breaker nor forget what is kept.

Each part gives a table that is being made what this had before under the same name (`get`), and changes nothing until
that table is served (`install`, by `service.Table.begin`): one that is only prepared may yet be dropped.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ambassador.proxy.breakers import Breakers
from ambassador.proxy.changes import Changes
from ambassador.proxy.clients.key_sets import KeySets
from ambassador.proxy.credentials import Means
from ambassador.proxy.policies.concurrency import Bulkheads
from ambassador.proxy.policies.cooldown import Cooldowns
from ambassador.proxy.shelf import Shelves
from ambassador.proxy.tls import Keyring
from ambassador.proxy.upstream.health import Marks
from ambassador.proxy.upstream.outlier import Outliers
from ambassador.secret import Secrets

if TYPE_CHECKING:
    from ambassador.proxy.lane import Lane


class Lasting:
    """The lasting parts of one worker. What is not given is made: one for a worker that is alone."""

    __slots__ = (
        "breakers", "bulkheads", "changes", "cooldowns", "key_sets", "keyring", "marks", "means", "outliers", "shelves",
    )  # fmt: skip

    def __init__(
        self,
        lane: Lane,
        *,
        breakers: Breakers | None = None,
        bulkheads: Bulkheads | None = None,
        changes: Changes | None = None,
        cooldowns: Cooldowns | None = None,
        marks: Marks | None = None,
        outliers: Outliers | None = None,
        means: Means | None = None,
        key_sets: KeySets | None = None,
    ) -> None:
        self.breakers = breakers or Breakers(lane)
        self.bulkheads = bulkheads or Bulkheads(lane)
        self.changes = changes or Changes()
        """What requests have changed, for caches here and in other workers."""
        self.cooldowns = cooldowns or Cooldowns(lane)
        self.marks = marks or Marks()
        """What the supervisor's health checks have found."""
        self.outliers = outliers or Outliers(lane)
        self.means = means or Means(Secrets(), time.time)
        """What credentials are made with."""
        self.key_sets = key_sets or KeySets(lane)
        """What clients' tokens are verified with."""
        self.shelves = Shelves()
        """The answers that routes keep."""
        self.keyring = Keyring()
        """What TLS is spoken with."""
