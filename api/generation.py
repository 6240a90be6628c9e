"""Handle generation: have a model write agents, tasks, crews and names of runs from a description."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from litestar import Response, Router, get, post

from api.operations import IDEMPOTENCY_KEY, PREFER_WAIT, require_scope
from api.requests import HttpRequest
from api.waiting import ExecutionStarter, StatusWaiter
from domain import generation, ports
from domain.executions import Execution
from domain.generation import (
    AgentGeneration,
    CrewGeneration,
    GenerationKind,
    GenerationStart,
    NameGeneration,
    NameGenerationStart,
    TaskGeneration,
)
from domain.ports import Tx
from domain.shared.access import Caller

AnswerT = TypeVar("AnswerT")

# How long callers wait for the model if they send no `Prefer`.
GENERATION_WAIT_SECONDS = 60
_GENERATE_ACCESS = require_scope("run:agents", PREFER_WAIT, IDEMPOTENCY_KEY)
_RESULT_ACCESS = require_scope("read:executions", PREFER_WAIT)


class GenerationRunner:
    """Start generations, and answer with what the model wrote."""

    def __init__(self, store: ports.Store, starter: ExecutionStarter, waiter: StatusWaiter) -> None:
        self._store, self._starter, self._waiter = store, starter, waiter

    async def generate_draft(
        self,
        request: HttpRequest,
        caller: Caller,
        kind: GenerationKind,
        data: GenerationStart,
        read_answer: Callable[[Tx, Execution], Awaitable[AnswerT]],
    ) -> Response[AnswerT]:
        """Start the generation of an agent, a task or a crew, and answer as for `start_generation`."""
        return await self.start_generation(
            request, caller, lambda tx: generation.start_generation(tx, caller, kind, data), read_answer
        )

    async def start_generation(
        self,
        request: HttpRequest,
        caller: Caller,
        start: Callable[[Tx], Awaitable[Execution]],
        read_answer: Callable[[Tx, Execution], Awaitable[AnswerT]],
    ) -> Response[AnswerT]:
        """Start a generation, and answer with its result, or its state after `GENERATION_WAIT_SECONDS`."""
        ended = await self._starter.start_execution(request, caller, start, GENERATION_WAIT_SECONDS)
        async with self._store.transaction(caller) as tx:
            return Response(await read_answer(tx, ended.content), headers=ended.headers)

    async def find_generation(
        self,
        request: HttpRequest,
        caller: Caller,
        execution_id: str,
        read_answer: Callable[[Tx, Execution], Awaitable[AnswerT]],
    ) -> Response[AnswerT]:
        """Answer with the result of a generation that was started before."""
        execution, headers = await self._waiter.wait_for_execution(request, caller, execution_id)
        async with self._store.transaction(caller) as tx:
            return Response(await read_answer(tx, execution), headers=headers)


@post("/agent-generation/generate", opt=_GENERATE_ACCESS, status_code=200)
async def generate_agent(
    generation_runner: GenerationRunner, request: HttpRequest, caller: Caller, data: GenerationStart
) -> Response[AgentGeneration]:
    """Have a model write an agent. After a minute without a result, poll `/agent-generation/{execution_id}`."""
    return await generation_runner.generate_draft(request, caller, "agent", data, generation.get_agent_generation)


@get("/agent-generation/{execution_id:str}", opt=_RESULT_ACCESS)
async def get_generated_agent(
    generation_runner: GenerationRunner, request: HttpRequest, caller: Caller, execution_id: str
) -> Response[AgentGeneration]:
    """Return the result of a generation. `Prefer: wait=N` holds the answer until it has ended."""
    return await generation_runner.find_generation(request, caller, execution_id, generation.get_agent_generation)


@post("/task-generation/generate", opt=_GENERATE_ACCESS, status_code=200)
async def generate_task(
    generation_runner: GenerationRunner, request: HttpRequest, caller: Caller, data: GenerationStart
) -> Response[TaskGeneration]:
    """Have a model write a task. After a minute without a result, poll `/task-generation/{execution_id}`."""
    return await generation_runner.generate_draft(request, caller, "task", data, generation.get_task_generation)


@get("/task-generation/{execution_id:str}", opt=_RESULT_ACCESS)
async def get_generated_task(
    generation_runner: GenerationRunner, request: HttpRequest, caller: Caller, execution_id: str
) -> Response[TaskGeneration]:
    """Return the result of a generation. `Prefer: wait=N` holds the answer until it has ended."""
    return await generation_runner.find_generation(request, caller, execution_id, generation.get_task_generation)


@post("/crew-generation/generate", opt=_GENERATE_ACCESS, status_code=200)
async def generate_crew(
    generation_runner: GenerationRunner, request: HttpRequest, caller: Caller, data: GenerationStart
) -> Response[CrewGeneration]:
    """Have a model write a crew. After a minute without a result, poll `/crew-generation/{execution_id}`."""
    return await generation_runner.generate_draft(request, caller, "crew", data, generation.get_crew_generation)


@get("/crew-generation/{execution_id:str}", opt=_RESULT_ACCESS)
async def get_generated_crew(
    generation_runner: GenerationRunner, request: HttpRequest, caller: Caller, execution_id: str
) -> Response[CrewGeneration]:
    """Return the result of a generation. `Prefer: wait=N` holds the answer until it has ended."""
    return await generation_runner.find_generation(request, caller, execution_id, generation.get_crew_generation)


@post("/executions/generate-name", opt=_GENERATE_ACCESS, status_code=200)
async def generate_name(
    generation_runner: GenerationRunner, request: HttpRequest, caller: Caller, data: NameGenerationStart
) -> Response[NameGeneration]:
    """Have a model name a run in two to six words. Send the name as `run_name` when you start the run."""
    return await generation_runner.start_generation(
        request, caller, lambda tx: generation.start_name_generation(tx, caller, data), generation.get_name_generation
    )


router = Router(
    "/",
    route_handlers=[
        generate_agent,
        get_generated_agent,
        generate_task,
        get_generated_task,
        generate_crew,
        get_generated_crew,
        generate_name,
    ],
    tags=["generation"],
)
