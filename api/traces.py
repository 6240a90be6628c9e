"""Handle traces of executions: trees of spans."""

import asyncio

from litestar import Router, get

from api.operations import require_scope
from api.requests import Store
from domain import traces
from domain.shared.access import Caller
from domain.traces import Trace


@get("/execution-trace/{execution_id:str}", opt=require_scope("read:executions"))
async def get_trace(store: Store, caller: Caller, execution_id: str, content: bool = False) -> Trace:
    """Return the trace of an execution, even while it runs: its steps, agents, model and tool calls, and their cost.

    With `content`, spans include inputs and outputs, up to 4 KiB each.
    """
    async with store.transaction(caller) as tx:
        records = await traces.read_trace_sources(tx, execution_id, content)
    # There may be thousands of spans; a thread keeps the event loop free.
    return await asyncio.to_thread(traces.build_trace, records)


router = Router("/", route_handlers=[get_trace], tags=["executions"])
