"""Manage the catalogue of tasks for crews."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain import agents, schemas, templates, tools, workspaces
from domain.llms import ToolFailed
from domain.ports import Tx
from domain.schemas import JsonSchema
from domain.shared import ids, names
from domain.shared.access import Caller
from domain.shared.errors import (
    Conflict,
    FieldError,
    InvalidField,
    InvalidFields,
    collect_invalid_fields,
    require_found,
)
from domain.shared.names import Name
from domain.shared.pages import Listing, Page
from domain.shared.patches import collect_sent_fields, set_fields
from domain.templates import TemplateValues

MAX_CONTEXT_TASKS: Final = 100
MAX_DESCRIPTION_LENGTH: Final = 100_000
# Tasks that the search for a cycle visits; no crew has as many.
_MAX_VISITED_TASKS: Final = 1_000

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
        description="Tasks whose answers this one receives. By default all tasks before it; [] for none.",
        examples=[[]],
    ),
]


class Task(msgspec.Struct, kw_only=True):
    """Describe a task. Its `slug` is its key in a crew. `{name}` in its texts stands for an input of the crew's run.

    `context` holds the ids of tasks whose answers it receives: none for an empty list, all tasks before it for null.
    With `async_execution` the crew continues until the next synchronous task. The agent may use `tools` beside its
    own. The answer is also written to `output_file` in the run's workspace. With a `template` the description is the
    template filled with the `variables`, and follows changes of the template. With `output_json` the answer is JSON
    that fits this schema.
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
    output_json: dict[str, Any] | None = None
    tenant_id: str
    created_at: datetime
    updated_at: datetime


class NewTask(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Create a task. The name is unique in the tenant; `agent` and `context` accept ids, names and slugs.

    Send a `description`, or a `template` with its `variables`. `response_model` is another name for `output_json`.
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
    output_json: JsonSchema | None = None
    response_model: JsonSchema | None = None


class PatchTask(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Change a task; `tools`, `context` and `variables` are replaced as a whole.

    A `description` replaces a template; a task whose template is removed keeps its present description.
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
    output_json: JsonSchema | None | UnsetType = UNSET
    response_model: JsonSchema | None | UnsetType = UNSET


SentFields = dict[str, Any]


class Tasks(Protocol):
    """Store the tasks of the bound tenant."""

    async def add(self, task: Task) -> bool: ...
    async def find(self, reference: str, lock: bool = False) -> Task | None: ...
    async def list_by_references(self, references: list[str], lock: Literal["share"] | None = None) -> list[Task]:
        """Return the tasks that the references name, by id, name or slug."""
        ...

    async def list_page(self, page: Page) -> Listing[Task]: ...
    async def save(self, task: Task) -> bool: ...
    async def delete(self, task_id: str) -> None: ...
    async def list_by_template(self, template_id: str) -> list[Task]:
        """Lock and return the tasks that use a template."""
        ...

    async def list_names_by_context(self, task_id: str) -> list[str]:
        """Return the names of tasks with this one in their context."""
        ...

    async def lock_contexts(self) -> None:
        """Make other transactions that change contexts wait until the commit."""
        ...


async def create_task(tx: Tx, caller: Caller, data: NewTask) -> Task:
    """Create a task. Errors: `conflict` for a taken name, `invalid_field` for unknown agents, tools and tasks."""
    sent = _rename_alias({name: getattr(data, name) for name in NewTask.__struct_fields__})
    task = Task(
        id=ids.generate_id("task"), slug="", tenant_id=caller.tenant_id, created_at=tx.now, updated_at=tx.now, **sent
    )
    await _validate_task(tx, task, sent)
    if not await tx.tasks.add(task):
        raise names.NameTaken("task", task.name)
    return task


def _rename_alias(sent: SentFields) -> SentFields:
    """Return what was sent with `response_model` as `output_json`. Errors: `invalid_field` if both were sent."""
    alias = sent.pop("response_model", None)
    if alias is not None:
        if sent.get("output_json") is not None:
            raise InvalidField("response_model", "is another name for output_json. Send one of them.")
        sent["output_json"] = schemas.parse_schema(alias, "response_model")
    return sent


async def _validate_task(tx: Tx, task: Task, sent: SentFields) -> None:
    """Validate what was sent, and replace references to tasks by ids. Errors: `invalid_field`, all at once."""
    errors: list[FieldError] = []
    with collect_invalid_fields(errors):
        candidates = names.list_slug_candidates("task", names.check_name(task.name, "task"))
        others = await tx.tasks.list_by_references(candidates)
        holders = {other.slug: other.name for other in others if other.id != task.id}
        task.slug = names.choose_slug("task", task.name, task.slug, holders)
    with collect_invalid_fields(errors):
        await _set_description(tx, task, sent)
    with collect_invalid_fields(errors):
        if sent.get("agent") is not None:
            await agents.find_agent(tx, sent["agent"], "agent")
    with collect_invalid_fields(errors):
        await tools.resolve_tools(tx, sent.get("tools") or [])
    with collect_invalid_fields(errors):
        if sent.get("output_file") is not None:
            task.output_file = validate_output_path(sent["output_file"])
    with collect_invalid_fields(errors):
        if sent.get("output_json") is not None:
            task.output_json = schemas.parse_schema(sent["output_json"], "output_json")
    if sent.get("context"):
        errors += await _resolve_context(tx, task, sent["context"])
    if errors:
        raise InvalidFields(errors)


async def _set_description(tx: Tx, task: Task, sent: SentFields) -> None:
    """Set the description: the text that was sent, or the filled template. Errors: `invalid_field`."""
    if sent.get("description") is not None:
        if sent.get("template") is not None:
            raise InvalidField("template", "replaces the description; send one of them.")
        task.template = None
    if task.template is None:
        if task.description is None:
            raise InvalidField("description", "is required, or a template.")
        if sent.get("variables"):
            raise InvalidField("variables", "are for a template; send one as well.")
        task.template_id = task.variables = None
    elif {"template", "variables"} & sent.keys():
        # The task's present template is not locked: a transaction that changes it waits for this task.
        template = await tx.templates.find(task.template)
        if template is None or template.id != task.template_id:
            template = await templates.resolve_template(tx, task.template)
        task.template, task.template_id = template.name, template.id
        task.description = validate_description(
            templates.render_text(template, task.variables or {}, keep_escapes=True)
        )


def validate_description(text: str, field: str = "variables") -> str:
    """Return a filled template that is a valid description. Errors: `invalid_field`."""
    if not 0 < len(text) <= MAX_DESCRIPTION_LENGTH or "\0" in text:
        raise InvalidField(
            field, f"make a description that is empty, holds U+0000, or is over {MAX_DESCRIPTION_LENGTH} long."
        )
    return text


def explain_unknown_task(reference: str) -> str:
    """Return the error about an unknown task."""
    return f"there is no task {reference!r}; list them with GET /tasks."


def validate_output_path(path: str) -> str:
    """Return a valid path in a workspace. Errors: `invalid_field`."""
    try:
        return workspaces.check_path(path)
    except ToolFailed as error:
        raise InvalidField("output_file", str(error)) from error


async def _resolve_context(tx: Tx, task: Task, context: list[str]) -> list[FieldError]:
    others = await find_tasks(tx, context)
    errors = [
        FieldError(field=f"context[{number}]", message=explain_unknown_task(reference))
        for number, (reference, other) in enumerate(zip(context, others, strict=True))
        if other is None
    ]
    existing = [other for other in others if other is not None]
    task.context = list(dict.fromkeys(other.id for other in existing))
    if task.id in task.context or await _has_cycle(tx, task, existing):
        errors.append(FieldError(field="context", message="makes a cycle: one of these tasks needs this task."))
    return errors


async def _has_cycle(tx: Tx, task: Task, context: list[Task]) -> bool:
    visited: set[str] = set()
    while context and len(visited) < _MAX_VISITED_TASKS:
        next_ids = {task_id for other in context for task_id in other.context or ()} - visited
        if task.id in next_ids:
            return True
        visited |= next_ids
        context = await tx.tasks.list_by_references(sorted(next_ids)[:_MAX_VISITED_TASKS]) if next_ids else []
    return False


async def find_tasks(tx: Tx, references: list[str]) -> list[Task | None]:
    """Return the tasks of ids, names or slugs, and None for unknown ones; they cannot be deleted until the commit."""
    by_reference: dict[str, Task] = {}
    for task in await tx.tasks.list_by_references(references, "share") if references else []:
        by_reference |= dict.fromkeys((task.id, task.name, task.slug), task)
    return [by_reference.get(reference) for reference in references]


async def get_task(tx: Tx, reference: str, lock: bool = False) -> Task:
    """Return a task by id, name or slug. Errors: `not_found`."""
    return require_found("task", reference, await tx.tasks.find(reference, lock))


async def list_tasks(tx: Tx, page: Page) -> Listing[Task]:
    """Return the tenant's tasks, newest first."""
    return await tx.tasks.list_page(page)


async def update_task(tx: Tx, reference: str, data: PatchTask) -> Task:
    """Change the fields that were sent. Errors: `not_found`, `conflict` for a taken name, `invalid_field`."""
    return await _apply_changes(tx, reference, _rename_alias(collect_sent_fields(data)))


async def replace_task(tx: Tx, reference: str, data: NewTask) -> Task:
    """Replace a task under the same id; fields that were not sent get their defaults. Errors: as for `update_task`."""
    sent = {name: getattr(data, name) for name in NewTask.__struct_fields__}
    return await _apply_changes(tx, reference, _rename_alias(sent))


async def _apply_changes(tx: Tx, reference: str, sent: SentFields) -> Task:
    if sent.get("context"):
        # Two tasks that name each other at once would deadlock, or make a cycle that neither transaction sees.
        await tx.tasks.lock_contexts()
    task = await get_task(tx, reference, lock=True)
    set_fields(task, sent)
    await _validate_task(tx, task, sent)
    task.updated_at = tx.now
    if not await tx.tasks.save(task):
        raise names.NameTaken("task", task.name)
    return task


async def delete_task(tx: Tx, reference: str) -> None:
    """Delete a task. Errors: `not_found`, `conflict` while a crew or another task names it."""
    task = await get_task(tx, reference, lock=True)
    for kind, user_names in (
        ("crew", await tx.crews.list_names_by_task(task.id)),
        ("task", await tx.tasks.list_names_by_context(task.id)),
    ):
        if user_names:
            raise Conflict(f"The {kind} {user_names[0]!r} uses this task.")
    await tx.tasks.delete(task.id)
