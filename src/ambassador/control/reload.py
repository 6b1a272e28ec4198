"""Reload of the config: check, prepare on all workers, commit; on any error the old one is served on.

The steps are in this order so that each can still be taken back until the commit, and the commit cannot fail: what
could fail (binding, listening, compiling in each worker) has been done by then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import msgspec
import trio

from ambassador.config.schema import Config
from ambassador.control.checking import Checked
from ambassador.control.crew import Crew
from ambassador.control.deployment import Deployment, encode_config, pair
from ambassador.control.incarnation import Incarnation
from ambassador.control.listeners import keyed
from ambassador.control.logs import ACCESS_LOG, why_not_writable
from ambassador.control.names import host_names, sources
from ambassador.control.orders import Abort, Brief, Commit, Prepare, Refused, Sockets
from ambassador.control.places import blaming, told
from ambassador.control.slots import BindError, Binding

PREPARE_TIMEOUT_S = 10.0
COMMIT_TIMEOUT_S = 5.0
_FIRST_ANSWER_S = 0.5  # what a reload waits for new sources: it is to take effect within a second


class LastReload(msgspec.Struct, frozen=True, kw_only=True):
    """How the last reload went; `at` is in unix seconds. `errors` are those of the check, or of what refused."""

    ok: bool
    at: float
    errors: tuple[str, ...] = ()


class _Impossible(Exception):
    """The new config cannot be served; the arguments say why."""


async def _give_way() -> None:
    """Let others have their turn: with 500 routes each step takes half a millisecond to one and a half."""
    await trio.lowlevel.checkpoint()


class Reload:
    """Carries one checked config to the workers. `deployment` and `crew` are the supervisor's."""

    def __init__(self, deployment: Deployment, crew: Crew, log: logging.Logger) -> None:
        self._deployment = deployment
        self._crew = crew
        self._log = log

    async def apply(self, checked: Checked) -> LastReload:
        """Serve the checked config, or say why not."""
        now = time.time()
        try:
            await self._apply(checked)
        except (_Impossible, BindError) as error:
            config = self._deployment.config
            await self._deployment.directory.watch(host_names(config), sources(config))
            errors = tuple(str(argument) for argument in error.args)
            for line in errors:
                self._log.error("reload: %s", line)
            self._log.error("not reloaded; generation %d is served on", self._deployment.generation)
            return LastReload(ok=False, at=now, errors=errors)
        self._log.info("reload: generation %d is served", self._deployment.generation)
        return LastReload(ok=True, at=now)

    async def _apply(self, checked: Checked) -> None:
        deployment, config = self._deployment, checked.config
        if config is None:
            raise _Impossible(*checked.errors)
        await _give_way()
        if config.control != deployment.config.control:
            raise _Impossible(
                told(checked.places, "control", "the control socket can only change with a restart")
            )
        await self._try_log(checked, config)
        old = deployment.config
        await deployment.directory.watch(
            host_names(config) | host_names(old), sources(config) | sources(old), within_s=_FIRST_ANSWER_S
        )
        bindings, added = self._bind(config, checked)
        try:
            await _give_way()
            encoded = encode_config(config)
            await _give_way()
            blocks = deployment.pages.place(config)
            brief = deployment.brief_of(deployment.generation + 1, encoded, blocks)
            prepared = await self._prepare(brief, added, checked)
            for binding in added.values():
                binding.listen(self._crew.listening)
        except BaseException:
            self._crew.post(Abort(generation=deployment.generation + 1))
            for binding in added.values():
                binding.close()
            raise
        removed = [binding for key, binding in deployment.bindings.items() if key not in bindings]
        # From here on a worker that starts takes the new generation.
        deployment.commit(config, encoded, blocks, bindings)
        await self._commit(deployment.generation, prepared)
        for binding in removed:
            binding.close()
        await deployment.directory.watch(host_names(config), sources(config))

    async def _try_log(self, checked: Checked, config: Config) -> None:
        """Raises `_Impossible` if the access log is another one and cannot be opened."""
        target = config.telemetry.access_log
        if target != self._deployment.config.telemetry.access_log:
            # A thread: the file may be far away.
            why = await trio.to_thread.run_sync(why_not_writable, target)
            if why is not None:
                raise _Impossible(told(checked.places, ACCESS_LOG, why))

    def _bind(self, config: Config, checked: Checked) -> tuple[dict[str, Binding], dict[str, Binding]]:
        """(all listeners' sockets, those that are new)."""
        bindings: dict[str, Binding] = {}
        added: dict[str, Binding] = {}
        try:
            for at, (key, listener) in enumerate(keyed(config.listeners).items()):
                binding = self._deployment.bindings.get(key)
                if binding is None:
                    with blaming(checked.places, f"listeners[{at}]", BindError):
                        binding = added[key] = Binding(listener.address, self._crew.slots, key=key)
                bindings[key] = binding
        except BindError:
            for binding in added.values():
                binding.close()
            raise
        return bindings, added

    async def _prepare(
        self, brief: Brief, added: Mapping[str, Binding], checked: Checked
    ) -> set[Incarnation]:
        """Those that are prepared. Who does not answer is stalled or dying, and does not hold up the others."""
        refs, descriptors = pair(each for binding in added.values() for each in binding.sockets())
        refusals: list[str] = []
        prepared: set[Incarnation] = set()

        async def prepare_one(worker: Incarnation) -> None:
            if refs:
                worker.post(Sockets(sockets=refs), descriptors)
            # What was found since the brief was made has been told to the table before alone.
            fresh = msgspec.structs.replace(brief, found=self._deployment.directory.found())
            reply = await worker.prepare(Prepare(brief=fresh), PREPARE_TIMEOUT_S)
            if isinstance(reply, Refused):
                setting, _, what = reply.error.partition(": ")
                refusals.append(
                    told(checked.places, setting, what) if setting in checked.places else reply.error
                )
            elif reply is not None:
                prepared.add(worker)

        async with trio.open_nursery() as nursery:
            for worker in self._crew.current:
                nursery.start_soon(prepare_one, worker)
        if refusals:
            raise _Impossible(*sorted(set(refusals)))
        return prepared

    async def _commit(self, generation: int, prepared: set[Incarnation]) -> None:
        """Have all workers serve it, those too that became ready meanwhile; replace who does not."""

        async def commit_one(worker: Incarnation) -> None:
            if worker in prepared:
                done = await worker.commit(Commit(generation=generation), COMMIT_TIMEOUT_S)
            else:
                done = await catch_up(self._deployment, worker)
            if not done and worker in self._crew.current:
                await self._crew.replace(worker.slot)

        async with trio.open_nursery() as nursery:
            for worker in self._crew.current:
                nursery.start_soon(commit_one, worker)


async def catch_up(deployment: Deployment, worker: Incarnation) -> bool:
    """Bring a worker that started while a reload was committed to what is served now; whether it is there."""
    while worker.generation != deployment.generation:
        brief = deployment.brief()
        refs, descriptors = deployment.sockets()
        worker.post(Sockets(sockets=refs), descriptors)
        reply = await worker.prepare(Prepare(brief=brief), PREPARE_TIMEOUT_S)
        if reply is None or isinstance(reply, Refused):
            return False
        if not await worker.commit(Commit(generation=brief.generation), COMMIT_TIMEOUT_S):
            return False
    return True
