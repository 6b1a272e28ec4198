"""The job that every proxy does, and how a proxy that can do it is described."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.identity import Identity
from loadtest.scenarios import Scenario

TOTAL_TIMEOUT_S = 15
CONNECT_TIMEOUT_S = 1
EXTRA_ATTEMPTS = 2
CLIENT_IDLE_S = 300  # longer than any measurement: no proxy may close the connections that are counted
MAX_CLIENT_CONNECTIONS = 6000  # above the idle scenario's 5,000; HAProxy takes two descriptors for each
UPSTREAM_IDLE_CONNECTIONS = 256
LIMIT_PER_S = 10_000_000  # asked on every request, met by none
RETRY_BUDGET_PERCENT = 20
BREAKER_ERRORS_PERCENT = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One proxy's task: listen on 127.0.0.1:`port`, forward the scenario's routes to 127.0.0.1:`upstream_port`.

    Kept the same for all: HTTP/1.1 both sides, pooled upstream connections, `EXTRA_ATTEMPTS` retries on connect
    failures and 5xx, a total time-out, one worker. `access_log` is the file for one JSON line a request, None for
    no access log. `bulk_port` is where /bulk goes instead, None for no such route; no total time-out cuts its answer.
    `store_url` is the Redis where state is shared, None where it is not. `tls` is what both sides are spoken to with:
    the proxy shows it, and the origin does, which is verified by it; None: in plain text.
    `admin_port` is free for proxies that need one; `directory` takes every file they write.
    """

    scenario: Scenario
    port: int
    upstream_port: int
    admin_port: int
    directory: Path
    access_log: Path | None = None
    bulk_port: int | None = None
    store_url: str | None = None
    tls: Identity | None = None

    @property
    def upstream(self) -> str:
        """The origin's address, host:port."""
        return f"127.0.0.1:{self.upstream_port}"

    @property
    def endpoints(self) -> list[str]:
        """The addresses that the origin is balanced over: with policies a second one, of the same server."""
        return ["127.0.0.1", "127.0.0.2"] if self.scenario.policies else ["127.0.0.1"]


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a proxy: its command line and what is added to the environment."""

    command: list[str]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """A proxy that can be measured.

    `find` returns its program's path, None when it is not there; `install` tells then how to get it. `version` are
    the arguments that print its version. `configure` writes its configuration and returns how to start it.
    """

    name: str
    install: str
    find: Callable[[], str | None]
    version: tuple[str, ...]
    configure: Callable[[Job, str], Launch]
    has_policies: bool = False
    """It can do the job of scenarios with policies."""
