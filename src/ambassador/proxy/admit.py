"""ADMIT: what a route's policies say of a request before anything is done for it.

They are asked in the order in which `config/compile.py` gave them to the route, and the first that has an answer has
the last word. Each is a plain function, so a request that nobody stops is let in without an await.
From the first that must wait on, the rest is a coroutine, which both ways that a request may take await likewise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from ambassador.errors import ProxyError
from ambassador.messages import Reply

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from ambassador.messages import Request
    from ambassador.proxy.plan import RoutePlan

Verdict: TypeAlias = "Reply | ProxyError | Awaitable[Reply | None] | None"
"""What policies say before the first attempt: None to go on."""


def admit(plan: RoutePlan, request: Request) -> Verdict:
    """What the ADMIT policies of the route say, in their order. A refusal is returned, not raised; a defect is raised,
    after what policies hold for the request was given back.
    """
    for position, hook in enumerate(plan.admit):
        try:
            verdict = hook(request)
        except ProxyError as error:
            return error
        except BaseException:
            request.end(0, 0.0)  # nobody else would: there is no exchange yet
            raise
        if verdict is not None:
            return verdict if isinstance(verdict, Reply) else _admit_rest(plan, request, position, verdict)
    return None


async def _admit_rest(
    plan: RoutePlan, request: Request, position: int, waiting: Awaitable[Reply | None]
) -> Reply | None:
    """The ADMIT policies from the one at `position` on, which waits. Raises what one of them refuses."""
    reply = await waiting
    for hook in plan.admit[position + 1 :]:
        if reply is not None:
            break
        answer = hook(request)
        reply = answer if answer is None or isinstance(answer, Reply) else await answer
    return reply
