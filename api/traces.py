"""What an execution was made of, as a tree of spans."""

import asyncio

from litestar import Router, get

from api.front import Front, needs
from domain import traces
from domain.shared.access import Caller
from domain.traces import Trace


@get("/execution-trace/{execution_id:str}", opt=needs("read:executions"))
async def get_trace(front: Front, caller: Caller, execution_id: str, content: bool = False) -> Trace:
    """The trace of an execution, also while it runs: its steps, agents, calls of models and tools, and their cost.

    With `content`, spans show what was asked and answered too, up to 4 KiB each.
    """
    async with front.store.begin(caller) as tx:
        found = await traces.read(tx, execution_id, content)
    # There may be thousands of spans; others have their turn meanwhile.
    return await asyncio.to_thread(traces.trace, found)


router = Router("/", route_handlers=[get_trace], tags=["executions"])
