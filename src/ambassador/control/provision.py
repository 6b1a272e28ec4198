"""What each worker gets from the supervisor, and what is kept of it after its end: the crew's `Provision`."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import trio

from ambassador.control.deployment import Deployment, pair
from ambassador.control.incarnation import Incarnation
from ambassador.control.orders import KeysRead, Sockets, Start
from ambassador.control.output import Output, copy_lines
from ambassador.control.reload import catch_up
from ambassador.control.store import StoreServer


class Equipment:
    """Sockets and config from the deployment, a page for counters, a pipe for log lines, a socket to the store.

    `learn` is given the sets of keys that workers read.
    """

    def __init__(
        self,
        deployment: Deployment,
        output: Output,
        store: StoreServer,
        learn: Callable[[KeysRead], None] = lambda _: None,
    ) -> None:
        self._deployment = deployment
        self._output = output
        self._store = store
        self._learn = learn

    def open_slot(self, slot: int) -> tuple[Sockets, list[int]]:
        """Make the slot's sockets; the order and descriptors that make them known to the workers there are."""
        before = set(self._deployment.sockets()[0])
        for binding in self._deployment.bindings.values():
            binding.extend([slot])
        refs, descriptors = self._deployment.sockets()
        added = [each for each in zip(refs, descriptors, strict=True) if each[0] not in before]
        new_refs, new_descriptors = pair(added)
        return Sockets(sockets=new_refs), new_descriptors

    def listen_slot(self, slot: int) -> None:
        """Let connections come: the slot's worker is ready."""
        for binding in self._deployment.bindings.values():
            binding.listen([slot])

    def stop_listening(self) -> None:
        """Let no connection come any more: no worker accepts."""
        for binding in self._deployment.bindings.values():
            binding.stop_listening()

    def equip(self, worker: Incarnation, nursery: trio.Nursery) -> None:
        """Give it its first order; copy its log lines and serve it the store, in `nursery`, until its end."""
        reads, writes = os.pipe2(os.O_CLOEXEC)
        ours, theirs = socket.socketpair()
        try:
            refs, descriptors = self._deployment.sockets()
            brief = self._deployment.brief()
            start = Start(
                slot=worker.slot,
                instance=self._deployment.instance,
                replica=self._deployment.replica,
                started=self._deployment.started,
                brief=brief,
                sockets=refs,
            )
            worker.generation = brief.generation
            worker.on_keys_read = self._learn
            page_fd = self._deployment.pages.open(worker)
            worker.post(start, [page_fd, writes, theirs.fileno(), *descriptors])
        finally:
            os.close(writes)
            theirs.close()
        nursery.start_soon(copy_lines, reads, self._output)
        nursery.start_soon(self._serve_store, worker, ours)

    async def _serve_store(self, worker: Incarnation, sock: socket.socket) -> None:
        if await self._store.serve(sock, f"slot {worker.slot}: worker {worker.pid}") and not worker.ended:
            worker.on_leaving(worker)

    async def catch_up(self, worker: Incarnation) -> bool:
        """Bring a worker that has just become ready to what is served now; whether that worked."""
        return await catch_up(self._deployment, worker)

    def settle(self, worker: Incarnation) -> None:
        """Keep the counters of a worker that has ended."""
        self._deployment.pages.settle(worker)
        if worker.counted is not None:
            self._deployment.past_counts.fold(worker.counted)

    @property
    def drain_timeout_s(self) -> float:
        """How long a worker that is replaced has to finish."""
        return self._deployment.config.drain.timeout
