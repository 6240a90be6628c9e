"""Generation: agents, tasks, crews and names of runs out of a description."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from litestar import Response, Router, get, post

from api.front import Front, find_execution, needs, started, waited
from api.requests import HttpRequest
from domain import generation
from domain.executions import Execution
from domain.generation import AgentAnswer, CrewAnswer, Generate, GenerateName, NameAnswer, TaskAnswer
from domain.ports import Tx
from domain.shared.access import Caller
from domain.shared.status import TERMINAL

T = TypeVar("T")

# Seconds for which a model is waited for.
PATIENCE = 60


@post("/agent-generation/generate", opt=needs("run:agents"), status_code=200)
async def generate_agent(front: Front, request: HttpRequest, caller: Caller, data: Generate) -> Response[AgentAnswer]:
    """Have a model think up an agent. Within a minute, or to be had later at `/agent-generation/{execution_id}`."""
    return await _now(
        front, request, caller, lambda tx: generation.start(tx, caller, "agent", data), generation.agent_of
    )


@get("/agent-generation/{execution_id:str}", opt=needs("read:executions"))
async def generated_agent(
    front: Front, request: HttpRequest, caller: Caller, execution_id: str
) -> Response[AgentAnswer]:
    """What a generation came to. `Prefer: wait=N` holds the answer until it has ended."""
    return await _later(front, request, caller, execution_id, generation.agent_of)


@post("/task-generation/generate", opt=needs("run:agents"), status_code=200)
async def generate_task(front: Front, request: HttpRequest, caller: Caller, data: Generate) -> Response[TaskAnswer]:
    """Have a model think up a task. Within a minute, or to be had later at `/task-generation/{execution_id}`."""
    return await _now(front, request, caller, lambda tx: generation.start(tx, caller, "task", data), generation.task_of)


@get("/task-generation/{execution_id:str}", opt=needs("read:executions"))
async def generated_task(front: Front, request: HttpRequest, caller: Caller, execution_id: str) -> Response[TaskAnswer]:
    """What a generation came to. `Prefer: wait=N` holds the answer until it has ended."""
    return await _later(front, request, caller, execution_id, generation.task_of)


@post("/crew-generation/generate", opt=needs("run:agents"), status_code=200)
async def generate_crew(front: Front, request: HttpRequest, caller: Caller, data: Generate) -> Response[CrewAnswer]:
    """Have a model think up a crew. Within a minute, or to be had later at `/crew-generation/{execution_id}`."""
    return await _now(front, request, caller, lambda tx: generation.start(tx, caller, "crew", data), generation.crew_of)


@get("/crew-generation/{execution_id:str}", opt=needs("read:executions"))
async def generated_crew(front: Front, request: HttpRequest, caller: Caller, execution_id: str) -> Response[CrewAnswer]:
    """What a generation came to. `Prefer: wait=N` holds the answer until it has ended."""
    return await _later(front, request, caller, execution_id, generation.crew_of)


@post("/executions/generate-name", opt=needs("run:agents"), status_code=200)
async def generate_name(front: Front, request: HttpRequest, caller: Caller, data: GenerateName) -> Response[NameAnswer]:
    """Have a model name a run in two to six words, to be sent as `run_name` when it is started."""
    return await _now(front, request, caller, lambda tx: generation.start_name(tx, caller, data), generation.name_of)


async def _now(
    front: Front,
    request: HttpRequest,
    caller: Caller,
    make: Callable[[Tx], Awaitable[Execution]],
    read: Callable[[Tx, Execution], Awaitable[T]],
) -> Response[T]:
    """Start a generation, and answer with what it came to if that takes no longer than `PATIENCE`."""
    ended = await started(front, request, caller, make, PATIENCE)
    async with front.store.begin(caller) as tx:
        return Response(await read(tx, ended.content), headers=ended.headers)


async def _later(
    front: Front,
    request: HttpRequest,
    caller: Caller,
    execution_id: str,
    read: Callable[[Tx, Execution], Awaitable[T]],
) -> Response[T]:
    """What a generation that was started before came to."""
    row, headers = await waited(
        front, request, execution_id, lambda: find_execution(front, caller, execution_id), TERMINAL
    )
    async with front.store.begin(caller) as tx:
        return Response(await read(tx, row), headers=headers)


router = Router(
    "/",
    route_handlers=[
        generate_agent,
        generated_agent,
        generate_task,
        generated_task,
        generate_crew,
        generated_crew,
        generate_name,
    ],
    tags=["generation"],
)
