"""The service from its start to its exit status: what `run` and `demo` call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

import trio

from ambassador.config.schema import Config
from ambassador.control.checking import CHECKING_MODULE
from ambassador.control.crew import NoWorker
from ambassador.control.host import Unsupported, check_platform
from ambassador.control.incarnation import WORKER_MODULE
from ambassador.control.logs import log_to_stderr
from ambassador.control.places import Unusable
from ambassador.control.signals import obey_signals
from ambassador.control.slots import BindError
from ambassador.control.socket_path import UnsafeDirectory
from ambassador.control.supervisor import Announcement, Supervisor
from ambassador.secret import SecretError

Announce = Callable[[Announcement], str]
"""What to print when clients are served."""

Companion = Callable[[Announcement], Awaitable[None]]
"""Something that runs beside the service and is cancelled at its end."""


def serve(
    config: Config,
    announce: Announce,
    *,
    config_file: str | None = None,
    workers: int | None = None,
    companion: Companion | None = None,
    places: Mapping[str, str] = MappingProxyType({}),
    warm: bool = True,
    module: str = WORKER_MODULE,
    checking: str = CHECKING_MODULE,
) -> int:
    """Serve until drained; returns the exit status: 0, or 1 with the reason on standard error.

    The parameters are those of `Supervisor`.
    """
    log = log_to_stderr()
    status = 0
    try:
        check_platform()
        supervisor = Supervisor(
            config,
            log,
            config_file=config_file,
            workers=workers,
            places=places,
            warm=warm,
            module=module,
            checking=checking,
        )
        trio.run(_serve, supervisor, announce, companion)
    except* (Unsupported, BindError, NoWorker, SecretError, UnsafeDirectory, Unusable) as errors:
        for error in _leaves(errors):
            log.error("%s", error)  # noqa: TRY400 - its words say it; a stack would hide them
        status = 1
    return status


async def _serve(supervisor: Supervisor, announce: Announce, companion: Companion | None) -> None:
    async with trio.open_nursery() as nursery:
        # From before there is anything to signal: an INT while workers start must end them.
        await nursery.start(obey_signals, supervisor)
        nursery.start_soon(_tell_when_there, supervisor, announce, companion)
        await supervisor.run()
        nursery.cancel_scope.cancel()


async def _tell_when_there(supervisor: Supervisor, announce: Announce, companion: Companion | None) -> None:
    announcement = await supervisor.announcement()
    supervisor.say(announce(announcement))
    if companion is not None:
        await companion(announcement)


def _leaves(group: BaseExceptionGroup[Exception]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
