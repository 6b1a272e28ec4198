"""An exchange: what the client gets for what the origin does, and what is left behind when it is cut short."""

from __future__ import annotations

from tests.proxy.harness import GET, OK, Origin, a_plane, config, until


async def test_request_goes_up_and_the_answer_comes_down() -> None:
    origin = Origin()
    async with a_plane(config(origin.url)) as plane:
        client = await plane.connect()
        await client.send(GET)
        talk = await origin.takes()
        assert await client.answer() == (200, b"ok")
        assert plane.endpoint.pool.idle_count == 1
        await client.send(GET)
        await talk.head()
        await talk.send(OK)
        assert await client.answer() == (200, b"ok")
        await until(lambda: plane.service.inflight == 0)
        assert plane.counts.settlements == [2, 2]
        assert plane.counts.attempts == ["200", "200"]
        talk.close()
        client.close()
    origin.close()
