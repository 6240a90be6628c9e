"""Generation: agents, tasks, crews and names of runs out of a description."""

from litestar import Response, Router, get, post

from api.front import Front, find_execution, needs, started, waited
from api.requests import HttpRequest
from domain import generation
from domain.access import Caller
from domain.generation import AgentAnswer, CrewAnswer, Generate, GenerateName, NameAnswer, TaskAnswer
from domain.states import TERMINAL

# Seconds for which a model is waited for.
PATIENCE = 60


@post("/agent-generation/generate", opt=needs("run:agents"), status_code=200)
async def generate_agent(front: Front, request: HttpRequest, caller: Caller, data: Generate) -> Response[AgentAnswer]:
    """Have a model think up an agent. Within a minute, or to be had later at `/agent-generation/{execution_id}`."""
    ended = await started(front, request, caller, lambda tx: generation.start(tx, caller, "agent", data), PATIENCE)
    async with front.store.begin(caller) as tx:
        return Response(await generation.agent_of(tx, ended.content), headers=ended.headers)


@get("/agent-generation/{execution_id:str}", opt=needs("read:executions"))
async def generated_agent(
    front: Front, request: HttpRequest, caller: Caller, execution_id: str
) -> Response[AgentAnswer]:
    """What a generation came to. `Prefer: wait=N` holds the answer until it has ended."""
    row, headers = await waited(
        front, request, execution_id, lambda: find_execution(front, caller, execution_id), TERMINAL
    )
    async with front.store.begin(caller) as tx:
        return Response(await generation.agent_of(tx, row), headers=headers)


@post("/task-generation/generate", opt=needs("run:agents"), status_code=200)
async def generate_task(front: Front, request: HttpRequest, caller: Caller, data: Generate) -> Response[TaskAnswer]:
    """Have a model think up a task. Within a minute, or to be had later at `/task-generation/{execution_id}`."""
    ended = await started(front, request, caller, lambda tx: generation.start(tx, caller, "task", data), PATIENCE)
    async with front.store.begin(caller) as tx:
        return Response(await generation.task_of(tx, ended.content), headers=ended.headers)


@get("/task-generation/{execution_id:str}", opt=needs("read:executions"))
async def generated_task(front: Front, request: HttpRequest, caller: Caller, execution_id: str) -> Response[TaskAnswer]:
    """What a generation came to. `Prefer: wait=N` holds the answer until it has ended."""
    row, headers = await waited(
        front, request, execution_id, lambda: find_execution(front, caller, execution_id), TERMINAL
    )
    async with front.store.begin(caller) as tx:
        return Response(await generation.task_of(tx, row), headers=headers)


@post("/crew-generation/generate", opt=needs("run:agents"), status_code=200)
async def generate_crew(front: Front, request: HttpRequest, caller: Caller, data: Generate) -> Response[CrewAnswer]:
    """Have a model think up a crew. Within a minute, or to be had later at `/crew-generation/{execution_id}`."""
    ended = await started(front, request, caller, lambda tx: generation.start(tx, caller, "crew", data), PATIENCE)
    async with front.store.begin(caller) as tx:
        return Response(await generation.crew_of(tx, ended.content), headers=ended.headers)


@get("/crew-generation/{execution_id:str}", opt=needs("read:executions"))
async def generated_crew(front: Front, request: HttpRequest, caller: Caller, execution_id: str) -> Response[CrewAnswer]:
    """What a generation came to. `Prefer: wait=N` holds the answer until it has ended."""
    row, headers = await waited(
        front, request, execution_id, lambda: find_execution(front, caller, execution_id), TERMINAL
    )
    async with front.store.begin(caller) as tx:
        return Response(await generation.crew_of(tx, row), headers=headers)


@post("/executions/generate-name", opt=needs("run:agents"), status_code=200)
async def generate_name(front: Front, request: HttpRequest, caller: Caller, data: GenerateName) -> Response[NameAnswer]:
    """Have a model name a run in two to six words, to be sent as `run_name` when it is started."""
    ended = await started(front, request, caller, lambda tx: generation.start_name(tx, caller, data), PATIENCE)
    async with front.store.begin(caller) as tx:
        return Response(await generation.name_of(tx, ended.content), headers=ended.headers)


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
