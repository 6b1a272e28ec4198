"""The workers of this host: who serves which slot, from start over crash and replacement to the end.

Each wanted slot has at most one *current* worker. It is installed when it is ready, so that a slot passes from old to
new without a gap, and retired after: it then takes nothing new and finishes what it has. One task for each slot
starts its worker again when there is none; replacements go through `replace`, one at a time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import trio

from ambassador.control.assignment import NEIGHBOUR_AFTER_S, assign
from ambassador.control.backoff import STEADY_S, restart_delay_s
from ambassador.control.incarnation import WORKER_MODULE, Incarnation
from ambassador.control.orders import Drain, Message, Serve

if TYPE_CHECKING:
    from ambassador.control.provision import Equipment

START_TIMEOUT_S = 30.0
"""A worker that is not ready by then is not coming; importing and compiling take well under one second."""

STALLED_AFTER_S = 5.0
ASK_TIMEOUT_S = 2.0
_WATCH_EVERY_S = 0.5
_STOP_GRACE_S = 3.0  # to empty a queue, after the drain's delay; a worker that has stalled does not
_KILL_GRACE_S = 1.0  # after its drain should have ended


class NoWorker(Exception):
    """Not one worker could start; the text is the first one's error."""


class _Slot:
    """A slot and who serves it. `failures` counts short lives in a row."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.wanted = True
        self.listening = False
        self.begun = False
        """It has had a worker that serves."""
        self.current: Incarnation | None = None
        self.orphan_at = math.inf
        """When it is time that a neighbour serves it."""
        self.failures = 0
        self.error: str | None = None
        self.lock = trio.Lock()
        self.changed = trio.Event()

    def is_served(self) -> bool:
        return self.current is not None and not self.current.stalled


class Crew:
    """`run` must run as long as there are workers; everything else is called from tasks of the same trio loop."""

    def __init__(self, provision: Equipment, log: logging.Logger, *, module: str = WORKER_MODULE) -> None:
        self._provision = provision
        self._log = log
        self._module = module
        self._slots: list[_Slot] = []
        self._nursery: trio.Nursery | None = None
        self._replacing = trio.Lock()
        self.live: list[Incarnation] = []
        """Every process that has not ended: starting, serving, retiring."""
        self.restarts = 0
        self.ending = False
        self.begun = False
        """Every slot of the start has had a worker that serves. What comes and goes later does not change it back."""
        self._changed = trio.Event()

    # What others see

    @property
    def current(self) -> list[Incarnation]:
        """The workers that serve, by slot."""
        return [slot.current for slot in self._slots if slot.current is not None]

    @property
    def size(self) -> int:
        """How many workers there should be."""
        return sum(slot.wanted for slot in self._slots)

    @property
    def slots(self) -> range:
        """All slots that were ever opened: their sockets stay."""
        return range(len(self._slots))

    @property
    def listening(self) -> list[int]:
        """The slots for which the kernel queues connections."""
        return [slot.index for slot in self._slots if slot.listening]

    @property
    def complete(self) -> bool:
        """Whether every wanted slot has a worker that serves."""
        return all(slot.is_served() for slot in self._slots if slot.wanted)

    @property
    def available(self) -> bool:
        """Whether somebody serves at all."""
        return any(slot.is_served() for slot in self._slots)

    def post(self, order: Message) -> None:
        """Give every live worker an order."""
        for worker in self.live:
            worker.post(order)

    async def ask(self, what: str) -> list[bytes]:
        """Each serving worker's answer to a question, by slot; one that does not answer is left out."""
        answers: dict[int, bytes] = {}

        async def ask_one(worker: Incarnation) -> None:
            answer = await worker.ask(what, ASK_TIMEOUT_S)
            if answer is not None:
                answers[worker.slot] = answer

        async with trio.open_nursery() as nursery:
            for worker in self.current:
                nursery.start_soon(ask_one, worker)
        return [answers[slot] for slot in sorted(answers)]

    # Start, size

    async def run(self, size: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start `size` workers and keep them up; reports started with the first that is ready.

        The kernel queues connections from the start: a second instance is refused before any worker is there.

        Raises `NoWorker` when none can start.
        """
        async with trio.open_nursery() as self._nursery:
            self.resize(size)
            for slot in self._slots:
                self._listen(slot)
                self._vacate(slot)
            await self._first_ready()
            task_status.started()
            self._nursery.start_soon(self._watch)

    async def _first_ready(self) -> None:
        while not self.current:
            if self.ending:
                await trio.sleep_forever()  # told to end before it had begun: no worker is missing
            if all(slot.failures for slot in self._slots):
                raise NoWorker(
                    next((slot.error for slot in self._slots if slot.error), "no worker can start")
                )
            await self._changed.wait()

    def _ring(self, slot: _Slot) -> None:
        """Have the slot's keeper look again, and whoever waits for the first worker."""
        slot.changed.set()
        slot.changed = trio.Event()
        self._changed.set()
        self._changed = trio.Event()

    def resize(self, size: int) -> None:
        """Have `size` workers. The sockets of slots that are no longer wanted are served by neighbours."""
        assert self._nursery is not None
        for slot in self._slots:
            slot.wanted = slot.index < size
        for index in range(len(self._slots), size):
            order, descriptors = self._provision.open_slot(index)
            for present in self.live:
                present.post(order, descriptors)
            self._slots.append(_Slot(index))
            self._nursery.start_soon(self._keep, self._slots[index])
        dismissed = [slot for slot in self._slots if not slot.wanted and slot.current is not None]
        for slot in dismissed:
            worker, slot.current = slot.current, None
            self.assign()
            if worker is not None:
                self._retire(worker)
        if self.current:
            self._note_begun()
        for slot in self._slots:
            self._ring(slot)

    async def _keep(self, slot: _Slot) -> None:
        """Start the slot's worker whenever it has none."""
        while True:
            if not self._lacks_worker(slot):
                await slot.changed.wait()
                continue
            await trio.sleep(restart_delay_s(slot.failures))
            async with slot.lock:
                if self._lacks_worker(slot):
                    await self._start(slot)

    def _lacks_worker(self, slot: _Slot) -> bool:
        return slot.wanted and slot.current is None and not self.ending

    async def _start(self, slot: _Slot) -> bool:
        """Start a worker for the slot and install it; the caller holds the slot's lock."""
        assert self._nursery is not None
        worker = Incarnation(slot.index, self._module)
        self.live.append(worker)
        worker.on_leaving = self._replace_leaving
        self._provision.equip(worker, self._nursery)
        self._nursery.start_soon(self._attend, worker)
        if await self._get_ready(worker):
            self._install(slot, worker)
            return True
        worker.kill()
        with trio.move_on_after(_KILL_GRACE_S):
            await worker.gone.wait()
        slot.failures += 1
        slot.error = (
            worker.error or f"worker {worker.pid} ended with status {worker.exit_status} before it was ready"
        )
        self._log.error("slot %d: %s%s", slot.index, slot.error, self._what_now(slot))
        self._ring(slot)
        return False

    def _what_now(self, slot: _Slot) -> str:
        """What follows when the slot's worker could not start. Without one, the kernel still takes connections."""
        if not self._lacks_worker(slot) or not any(each.begun for each in self._slots):
            return ""
        again = f"; tried again in {restart_delay_s(slot.failures):g} s"
        return again if self.available else f"{again}; no worker is there, and connections wait for one"

    async def _get_ready(self, worker: Incarnation) -> bool:
        """Wait until it can serve what is served now. True: it lives, and nothing was awaited since that was sure."""
        with trio.move_on_after(START_TIMEOUT_S):
            await worker.settled.wait()
            return worker.ready and await self._provision.catch_up(worker) and worker in self.live
        return False

    def _install(self, slot: _Slot, worker: Incarnation) -> None:
        if self.ending or not slot.wanted:
            self._retire(worker)
            return
        old, slot.current = slot.current, worker
        slot.begun = True
        self._note_begun()
        self._listen(slot)
        self.assign()
        self._ring(slot)
        if old is not None:
            self._retire(old)

    def _note_begun(self) -> None:
        self.begun = self.begun or all(slot.begun for slot in self._slots if slot.wanted)

    def _listen(self, slot: _Slot) -> None:
        if not slot.listening:
            self._provision.listen_slot(slot.index)
            slot.listening = True

    async def _attend(self, worker: Incarnation) -> None:
        """Be with a worker to its end, and see to what it leaves."""
        await worker.attend()
        self.live.remove(worker)
        self._provision.settle(worker)
        slot = self._slots[worker.slot]
        if slot.current is worker and self.ending:
            slot.current = None
            self.assign()
        elif slot.current is worker:
            self._log.error("slot %d: worker %d died (status %s)", slot.index, worker.pid, worker.exit_status)
            self.restarts += 1
            lived_s = trio.current_time() - worker.born
            slot.failures = slot.failures + 1 if lived_s < STEADY_S else 0
            slot.current = None
            self._vacate(slot)

    # Who serves what

    def assign(self) -> None:
        """Tell the workers which slots they serve, where that has changed."""
        now = trio.current_time()
        served = {
            slot.index: slot.current for slot in self._slots if slot.current is not None and slot.is_served()
        }
        orphans = [
            slot.index
            for slot in self._slots
            if slot.listening
            and slot.index not in served
            and (not slot.wanted or self.ending or now >= slot.orphan_at)
        ]
        for index, slots in assign(orphans, sorted(served)).items():
            worker = served[index]
            if worker.serving != slots:
                worker.serving = slots
                worker.post(Serve(slots=slots))

    def _vacate(self, slot: _Slot) -> None:
        assert self._nursery is not None
        slot.orphan_at = trio.current_time() + NEIGHBOUR_AFTER_S
        self._ring(slot)
        self._nursery.start_soon(self._assign_at, slot.orphan_at)

    async def _assign_at(self, when: float) -> None:
        await trio.sleep_until(when)
        self.assign()

    # Replacement

    async def replace(self, index: int) -> bool:
        """Put a new worker in the place of the slot's own, without a gap; whether the new one is there."""
        slot = self._slots[index]
        async with self._replacing, slot.lock:
            if not slot.wanted or self.ending:
                return False
            return await self._start(slot)

    async def replace_all(self) -> bool:
        """Replace every worker, one after the other, by what the installed code is now. Stops at the first failure."""
        for slot in list(self._slots):
            if slot.wanted and not await self.replace(slot.index):
                return False
        return True

    def _retire(self, worker: Incarnation) -> None:
        assert self._nursery is not None
        worker.retiring = True
        self._nursery.start_soon(self._see_off, worker)

    async def _see_off(self, worker: Incarnation) -> None:
        timeout_s = self._provision.drain_timeout_s
        worker.post(Drain(delay_s=0.0, timeout_s=timeout_s, last=False))
        with trio.move_on_after(timeout_s + _KILL_GRACE_S):
            await worker.gone.wait()
        worker.kill()

    def _replace_leaving(self, worker: Incarnation) -> None:
        assert self._nursery is not None
        if self._slots[worker.slot].current is worker and not self.ending:
            self._nursery.start_soon(self.replace, worker.slot)
        elif not worker.retiring and not worker.ended:
            # It serves nobody yet, and shall not: `_start` sees its end.
            worker.error = worker.error or "it was told to end, or lost its store, before it was ready"
            worker.kill()

    async def _watch(self) -> None:
        """Replace workers whose loops have stalled."""
        assert self._nursery is not None
        before = trio.current_time()
        while True:
            await trio.sleep(_WATCH_EVERY_S)
            now = trio.current_time()
            # If we were held up ourselves (a suspended host), the beats are only waiting to be read.
            held_up = now - before > 2 * _WATCH_EVERY_S
            before = now
            for slot in self._slots:
                worker = slot.current
                if worker is None:
                    continue
                if held_up:
                    worker.last_beat = now
                if not worker.stalled and now - worker.last_beat > STALLED_AFTER_S and not self.ending:
                    self._log.error("slot %d: worker %d has stalled and is replaced", slot.index, worker.pid)
                    worker.stalled = True
                    self.restarts += 1
                    self._vacate(slot)
                    self._nursery.start_soon(self._replace_stalled, slot, worker)

    async def _replace_stalled(self, slot: _Slot, worker: Incarnation) -> None:
        while slot.current is worker and slot.wanted and not self.ending:
            if not await self.replace(slot.index):
                await trio.sleep(restart_delay_s(slot.failures))

    # End

    async def drain(self, delay_s: float, timeout_s: float) -> None:
        """Have every worker drain, and return when all have ended; what is left after that time is killed."""
        self.ending = True
        for worker in self.live:
            if not worker.ready:
                worker.kill()
        self.assign()
        self.shorten(delay_s, timeout_s)
        with trio.move_on_after(delay_s + timeout_s + _KILL_GRACE_S):
            with trio.move_on_after(delay_s + _STOP_GRACE_S):
                await self._all_stopped()
            self._provision.stop_listening()
            await _all_gone(self.live)
        self.kill()
        with trio.move_on_after(_KILL_GRACE_S):
            await _all_gone(self.live)

    async def _all_stopped(self) -> None:
        """Wait until no worker accepts any more."""
        while accepting := [worker for worker in self.live if not worker.stopped.is_set()]:
            await accepting[0].stopped.wait()

    def shorten(self, delay_s: float, timeout_s: float) -> None:
        """Bring the end of a drain nearer."""
        self.post(Drain(delay_s=delay_s, timeout_s=timeout_s, last=True))

    def kill(self) -> None:
        """End every worker at once."""
        for worker in self.live:
            worker.kill()


async def _all_gone(workers: Iterable[Incarnation]) -> None:
    for worker in list(workers):
        await worker.gone.wait()
