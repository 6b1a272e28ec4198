from __future__ import annotations

import os
import signal
from typing import cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ambassador.control.signals import obey_signals
from ambassador.control.supervisor import Supervisor


class FakeSupervisor:
    def __init__(self) -> None:
        self.did: list[str] = []

    def begin_drain(self) -> None:
        self.did.append("drain")

    def interrupt(self) -> None:
        self.did.append("interrupt")

    def exit_now(self) -> None:
        self.did.append("exit now")

    def reopen(self) -> None:
        self.did.append("reopen")

    async def reload(self) -> None:
        self.did.append("reload")
        await trio.sleep_forever()

    async def replace_all(self) -> None:
        self.did.append("replace all")
        await trio.lowlevel.checkpoint()

    async def resize_by(self, difference: int) -> None:
        self.did.append(f"resize by {difference}")
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("signals", "expected"),
    [
        ([signal.SIGTERM], ["drain"]),
        ([signal.SIGINT], ["interrupt"]),
        ([signal.SIGINT, signal.SIGINT], ["interrupt", "exit now"]),
        ([signal.SIGHUP, signal.SIGUSR1], ["reload", "reopen"]),
        ([signal.SIGUSR2], ["replace all"]),
        ([signal.SIGTTIN, signal.SIGTTOU], ["resize by 1", "resize by -1"]),
    ],
)
async def test_what_each_signal_asks_for(
    nursery: trio.Nursery, signals: list[signal.Signals], expected: list[str]
) -> None:
    supervisor = FakeSupervisor()
    await nursery.start(obey_signals, cast("Supervisor", supervisor))
    for number in signals:
        os.kill(os.getpid(), number)
        await wait_all_tasks_blocked(0.02)
    assert supervisor.did == expected
    nursery.cancel_scope.cancel()
