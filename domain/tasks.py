"""The catalogue of tasks: what agents of crews are asked to do."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain import agents, templates, tools, workspaces
from domain.llms import ToolFailed
from domain.ports import Tx
from domain.shared import ids, names
from domain.shared.access import Caller
from domain.shared.errors import Conflict, DomainError, FieldError, InvalidField, InvalidFields, NotFound
from domain.shared.names import Name
from domain.shared.pages import Listing, Page
from domain.templates import TemplateValues

MAX_CONTEXT_TASKS: Final = 100
MAX_DESCRIPTION_LENGTH: Final = 100_000
# Tasks that are looked at for one that needs the first: no crew has as many.
_LOOKED_AT: Final = 1_000

TaskName = Annotated[Name, Meta(examples=["Research Task"])]
LongText = Annotated[str, Meta(max_length=100_000, pattern=r"^[^\x00]*$")]
TaskDescription = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_DESCRIPTION_LENGTH,
        pattern=r"^[^\x00]*$",
        examples=["Research the latest developments in AI"],
    ),
]
ExpectedOutput = Annotated[LongText, Meta(examples=["A comprehensive report on AI developments"])]
Reference = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
OutputPath = Annotated[str, Meta(min_length=1, max_length=500, pattern=r"^[^\x00]*$", examples=["report.md"])]
Tools = Annotated[list[Reference], Meta(max_length=64, examples=[["http_request"]])]
ContextNames = Annotated[
    list[Reference],
    Meta(
        max_length=MAX_CONTEXT_TASKS,
        description="Tasks whose answers come with this one. Without it those of all before it, none for [].",
        examples=[[]],
    ),
]


class Task(msgspec.Struct, kw_only=True):
    """A task, and what it is known by in a crew, its `slug`. `{name}` in its texts is an input of the crew's run.

    `context` holds the ids of tasks whose answers come with it: none if it is empty, those of all that came before
    if it is null. A crew goes on beside an `async_execution` until the next task that is not one. `tools` are given to
    the agent for this task besides its own. What is answered is written to `output_file` of the run's workspace too.
    With a `template`, the description is what that comes to with the `variables`, and follows it when it is changed.
    """

    id: str
    name: str
    slug: str
    description: str
    template: str | None = None
    template_id: str | None = None
    variables: dict[str, Any] | None = None
    expected_output: str | None
    agent: str | None
    tools: list[str]
    context: list[str] | None
    async_execution: bool
    markdown: bool
    output_file: str | None
    tenant_id: str
    created_at: datetime
    updated_at: datetime


class NewTask(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to add. The name is unique in the tenant; `agent` and `context` take ids, names and slugs.

    A `description`, or a `template` with its `variables`.
    """

    name: TaskName
    description: TaskDescription | None = None
    template: Reference | None = None
    variables: TemplateValues | None = None
    expected_output: ExpectedOutput | None = None
    agent: Reference | None = None
    tools: Tools = []
    context: ContextNames | None = None
    async_execution: bool = False
    markdown: bool = False
    output_file: OutputPath | None = None


class PatchTask(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to change; `tools`, `context` and `variables` are replaced as a whole.

    A `description` takes the place of a template; without its template a task keeps the text that it came to.
    """

    name: Name | UnsetType = UNSET
    description: TaskDescription | UnsetType = UNSET
    template: Reference | None | UnsetType = UNSET
    variables: TemplateValues | None | UnsetType = UNSET
    expected_output: ExpectedOutput | None | UnsetType = UNSET
    agent: Reference | None | UnsetType = UNSET
    tools: Tools | UnsetType = UNSET
    context: ContextNames | None | UnsetType = UNSET
    async_execution: bool | UnsetType = UNSET
    markdown: bool | UnsetType = UNSET
    output_file: OutputPath | None | UnsetType = UNSET


SentFields = dict[str, Any]


class Tasks(Protocol):
    """The tasks of the bound tenant."""

    async def add(self, task: Task) -> bool: ...
    async def find(self, reference: str, lock: bool = False) -> Task | None: ...
    async def list_by_references(self, references: list[str], lock: Literal["share"] | None = None) -> list[Task]:
        """Those that one of the references names, by id, name or slug."""
        ...

    async def list_page(self, page: Page) -> Listing[Task]: ...
    async def save(self, task: Task) -> bool: ...
    async def delete(self, task_id: str) -> None: ...
    async def list_by_template(self, template_id: str) -> list[Task]:
        """Those that use a template, locked."""
        ...

    async def list_names_by_context(self, task_id: str) -> list[str]:
        """The names of tasks that have this one in their context."""
        ...

    async def lock_contexts(self) -> None:
        """Let nobody else say which tasks come with which until the commit."""
        ...


async def create_task(tx: Tx, caller: Caller, data: NewTask) -> Task:
    """Add a task. Errors: `conflict` for a taken name, `invalid_field` for unknown agents, tools and tasks."""
    sent = {name: getattr(data, name) for name in NewTask.__struct_fields__}
    task = Task(
        id=ids.generate_id("task"), slug="", tenant_id=caller.tenant_id, created_at=tx.now, updated_at=tx.now, **sent
    )
    await _check(tx, task, sent)
    if not await tx.tasks.add(task):
        raise names.NameTaken("task", task.name)
    return task


async def _check(tx: Tx, task: Task, sent: SentFields) -> None:
    """See that what was sent means something, and put ids for the tasks named. Errors: `invalid_field`, all at once."""
    wrong: list[FieldError] = []
    try:
        candidates = names.list_slug_candidates("task", names.check_name(task.name, "task"))
        others = await tx.tasks.list_by_references(candidates)
        holders = {other.slug: other.name for other in others if other.id != task.id}
        task.slug = names.choose_slug("task", task.name, task.slug, holders)
    except DomainError as error:
        if error.code != "invalid_field":
            raise
        wrong += error.errors
    try:
        await _describe(tx, task, sent)
    except DomainError as error:
        wrong += error.errors
    try:
        if sent.get("agent") is not None:
            await agents.find_agent(tx, sent["agent"], "agent")
    except DomainError as error:
        wrong += error.errors
    try:
        await tools.resolve_tools(tx, sent.get("tools") or [])
    except DomainError as error:
        wrong += error.errors
    try:
        if sent.get("output_file") is not None:
            task.output_file = validate_output_path(sent["output_file"])
    except DomainError as error:
        wrong += error.errors
    if sent.get("context"):
        wrong += await _look_around(tx, task, sent["context"])
    if wrong:
        raise InvalidFields(wrong)


async def _describe(tx: Tx, task: Task, sent: SentFields) -> None:
    """Its description: what was sent, or what its template comes to. Errors: `invalid_field`."""
    if sent.get("description") is not None:
        if sent.get("template") is not None:
            raise InvalidField("template", "stands for a description; send one of them.")
        task.template = None
    if task.template is None:
        if task.description is None:
            raise InvalidField("description", "is required, or a template.")
        if sent.get("variables"):
            raise InvalidField("variables", "are those of a template; name one.")
        task.template_id = task.variables = None
    elif {"template", "variables"} & sent.keys():
        # One that it has already is not waited for: whoever changes that waits for this task.
        found = await tx.templates.find(task.template)
        if found is None or found.id != task.template_id:
            found = await templates.resolve_template(tx, task.template)
        task.template, task.template_id = found.name, found.id
        task.description = validate_description(templates.render_text(found, task.variables or {}, keep_escapes=True))


def validate_description(text: str, field: str = "variables") -> str:
    """What a template came to, if that can be a description. Errors: `invalid_field`."""
    if not 0 < len(text) <= MAX_DESCRIPTION_LENGTH or "\0" in text:
        raise InvalidField(
            field, f"make a description that is empty, holds U+0000, or is over {MAX_DESCRIPTION_LENGTH} long."
        )
    return text


def explain_unknown_task(reference: str) -> str:
    """What is said of the name of a task that there is not."""
    return f"there is no task {reference!r}; see /tasks for those there are."


def validate_output_path(path: str) -> str:
    """A path in a workspace. Errors: `invalid_field`."""
    try:
        return workspaces.check_path(path)
    except ToolFailed as error:
        raise InvalidField("output_file", str(error)) from error


async def _look_around(tx: Tx, task: Task, context: list[str]) -> list[FieldError]:
    others = await find_tasks(tx, context)
    wrong = [
        FieldError(field=f"context[{number}]", message=explain_unknown_task(reference))
        for number, (reference, other) in enumerate(zip(context, others, strict=True))
        if other is None
    ]
    found = [other for other in others if other is not None]
    task.context = list(dict.fromkeys(one.id for one in found))
    if task.id in task.context or await _leads_back(tx, task, found):
        wrong.append(FieldError(field="context", message="makes a circle: one of these needs this task itself."))
    return wrong


async def _leads_back(tx: Tx, task: Task, found: list[Task]) -> bool:
    seen: set[str] = set()
    while found and len(seen) < _LOOKED_AT:
        further = {one for other in found for one in other.context or ()} - seen
        if task.id in further:
            return True
        seen |= further
        found = await tx.tasks.list_by_references(sorted(further)[:_LOOKED_AT]) if further else []
    return False


async def find_tasks(tx: Tx, references: list[str]) -> list[Task | None]:
    """The tasks of these ids, names or slugs, kept until the commit, and None for each that is none."""
    found: dict[str, Task] = {}
    for task in await tx.tasks.list_by_references(references, "share") if references else []:
        found |= dict.fromkeys((task.id, task.name, task.slug), task)
    return [found.get(reference) for reference in references]


async def get_task(tx: Tx, reference: str, lock: bool = False) -> Task:
    """A task by id, name or slug. Errors: `not_found`."""
    task = await tx.tasks.find(reference, lock)
    if task is None:
        raise NotFound("task", reference)
    return task


async def list_tasks(tx: Tx, page: Page) -> Listing[Task]:
    """The tenant's tasks, newest first."""
    return await tx.tasks.list_page(page)


async def update_task(tx: Tx, reference: str, data: PatchTask) -> Task:
    """Change what was sent. Errors: `not_found`, `conflict` for a taken name, `invalid_field`."""
    sent = {name: value for name in PatchTask.__struct_fields__ if (value := getattr(data, name)) is not UNSET}
    return await _changed(tx, reference, sent)


async def replace_task(tx: Tx, reference: str, data: NewTask) -> Task:
    """Put another task in its place, of the same id: what was not sent is gone. Errors: as for `patch`."""
    return await _changed(tx, reference, {name: getattr(data, name) for name in NewTask.__struct_fields__})


async def _changed(tx: Tx, reference: str, sent: SentFields) -> Task:
    if sent.get("context"):
        # Two that each name the other would wait for each other, or make a circle that neither sees.
        await tx.tasks.lock_contexts()
    task = await get_task(tx, reference, lock=True)
    for name, value in sent.items():
        setattr(task, name, value)
    await _check(tx, task, sent)
    task.updated_at = tx.now
    if not await tx.tasks.save(task):
        raise names.NameTaken("task", task.name)
    return task


async def delete_task(tx: Tx, reference: str) -> None:
    """Remove a task. Errors: `not_found`, `conflict` while a crew or another task names it."""
    task = await get_task(tx, reference, lock=True)
    for kind, users in (
        ("crew", await tx.crews.list_names_by_task(task.id)),
        ("task", await tx.tasks.list_names_by_context(task.id)),
    ):
        if users:
            raise Conflict(f"The {kind} {users[0]!r} names this task.")
    await tx.tasks.delete(task.id)
