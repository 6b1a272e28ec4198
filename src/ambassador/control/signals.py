"""Signals to the supervisor and what each asks for (contract 1)."""

from __future__ import annotations

import signal
from typing import Final

import trio

from ambassador.control.supervisor import Supervisor

_HEEDED: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
)


async def obey_signals(
    supervisor: Supervisor, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Do what signals ask for, until cancelled. One that takes time does not hold up the next."""
    interrupts = 0
    with trio.open_signal_receiver(*_HEEDED) as signals:
        task_status.started()
        async with trio.open_nursery() as nursery:
            async for number in signals:
                if number == signal.SIGTERM:
                    supervisor.begin_drain()
                elif number == signal.SIGINT:
                    interrupts += 1
                    supervisor.interrupt() if interrupts == 1 else supervisor.exit_now()
                elif number == signal.SIGHUP:
                    nursery.start_soon(supervisor.reload)
                elif number == signal.SIGUSR1:
                    supervisor.reopen()
                elif number == signal.SIGUSR2:
                    nursery.start_soon(supervisor.replace_all)
                else:
                    nursery.start_soon(supervisor.resize_by, 1 if number == signal.SIGTTIN else -1)
