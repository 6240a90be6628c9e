"""Manage prompt templates: texts with `{name}` in them, for agents and tasks, or rendered on request."""

from collections import Counter
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain.ports import Tx
from domain.shared import ids, names, placeholders
from domain.shared.access import Caller
from domain.shared.errors import Conflict, FieldError, InvalidField, InvalidFields, require_found
from domain.shared.names import Name
from domain.shared.pages import Listing, Page

MAX_TEMPLATE_LENGTH: Final = 100_000
_MAX_LISTED_USERS: Final = 5

TemplateName = Annotated[Name, Meta(examples=["Research Agent Template"])]
Description = Annotated[str, Meta(max_length=10_000, pattern=r"^[^\x00]*$")]
TemplateText = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_TEMPLATE_LENGTH,
        pattern=r"^[^\x00]*$",
        examples=["You are a research agent. Your task is to {task_description}. Please provide {expected_output}."],
    ),
]
Variable = Annotated[str, Meta(min_length=1, max_length=100_000)]
Variables = Annotated[
    list[Variable], Meta(max_length=50_000, description="The names in the text; by default they are read from it.")
]
TemplateValues = Annotated[
    dict[str, Any], Meta(examples=[{"task_description": "read", "expected_output": "a summary"}])
]


class Template(msgspec.Struct, kw_only=True):
    """Describe a template. `variables` are the names in braces in `template`."""

    id: str
    name: str
    description: str | None
    template: str
    variables: list[str]
    tenant_id: str
    created_at: datetime
    updated_at: datetime


class NewTemplate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Create a template. The name is unique in the tenant and works wherever a template is referenced."""

    name: TemplateName
    description: Description | None = None
    template: TemplateText
    variables: Variables | None = None


class PatchTemplate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Change a template. Running executions, and their retries, keep the old text."""

    name: Name | UnsetType = UNSET
    description: Description | None | UnsetType = UNSET
    template: TemplateText | UnsetType = UNSET
    variables: Variables | None | UnsetType = UNSET


class TemplateRender(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Send a value for each variable of a template. Texts are inserted as they are, other values as JSON."""

    variables: TemplateValues = {}


class RenderedTemplate(msgspec.Struct, frozen=True, kw_only=True):
    """Return a template's text with its variables filled."""

    template_id: str
    name: str
    rendered: str


class Templates(Protocol):
    """Store the templates of the bound tenant."""

    async def add(self, template: Template) -> bool: ...
    async def find(self, reference: str, lock: bool | Literal["share"] = False) -> Template | None: ...
    async def list_page(self, page: Page) -> Listing[Template]: ...
    async def save(self, template: Template) -> bool: ...
    async def delete(self, template_id: str) -> None: ...
    async def list_users(self, template_id: str) -> list[str]:
        """Return what uses a template: `agent coder`, `task Research`."""
        ...


def validate_variables(text: str, sent: list[str] | None) -> list[str]:
    """Return the variables of a text, in the order that was sent.

    Errors: `invalid_field` naming each that is sent and not in the text, or in the text and not sent.
    """
    text_names = placeholders.find_placeholders(text)
    if sent is None:
        return text_names
    sent_counts = Counter(sent)
    problems = [(name, _explain_missing_name(text, name)) for name in sent_counts if name not in set(text_names)]
    problems += [(name, "is in the template and missing here.") for name in text_names if name not in sent_counts]
    problems += [(name, "is a duplicate.") for name, count in sent_counts.items() if count > 1]
    if problems:
        raise InvalidFields(
            [FieldError(field="variables", message=f"{name[:200]!r} {message}") for name, message in problems]
        )
    return sent


def _explain_missing_name(text: str, name: str) -> str:
    """Explain that a name is not in a template, and how to write it if something looks like it."""
    lookalike = next((part for part in placeholders.find_unfilled(text) if name in part), None)
    if lookalike is None:
        return "is not in the template."
    return f"is not in the template: {lookalike[:200]} is left as it stands; write {{{name}}}."


def render_text(
    template: Template, values: dict[str, Any], field: str = "variables", keep_escapes: bool = False
) -> str:
    """Return the text with all its variables filled. With `keep_escapes` values may contain placeholders.

    Errors: `invalid_field` naming each value that is missing or unknown as `variables.x`, or values that add too much.
    """
    variables = set(template.variables)
    problems = [(name, "is required.") for name in template.variables if name not in values]
    problems += [
        (name, f"is not a variable: it {_explain_missing_name(template.template, name)}")
        for name in values
        if name not in variables
    ]
    if problems:
        raise InvalidFields([FieldError(field=f"{field}.{name[:200]}", message=message) for name, message in problems])
    return placeholders.create_filler(values, field, keep_escapes=keep_escapes, allow_nested=keep_escapes)(
        template.template
    )


async def create_template(tx: Tx, caller: Caller, data: NewTemplate) -> Template:
    """Create a template. Errors: `conflict` when the name is taken, `invalid_field`."""
    template = Template(
        id=ids.generate_id("tpl"),
        name=names.check_name(data.name, "tpl"),
        description=data.description,
        template=data.template,
        variables=validate_variables(data.template, data.variables),
        tenant_id=caller.tenant_id,
        created_at=tx.now,
        updated_at=tx.now,
    )
    if not await tx.templates.add(template):
        raise names.NameTaken("template", template.name)
    return template


async def get_template(tx: Tx, reference: str, lock: bool = False) -> Template:
    """Return a template by id or name. Errors: `not_found`."""
    return require_found("template", reference, await tx.templates.find(reference, lock))


async def list_templates(tx: Tx, page: Page) -> Listing[Template]:
    """Return the tenant's templates, newest first."""
    return await tx.templates.list_page(page)


async def update_template(tx: Tx, reference: str, data: PatchTemplate) -> Template:
    """Change the fields that were sent. Errors: `not_found`, `conflict` for a taken name, `invalid_field`."""
    template = await get_template(tx, reference, lock=True)
    if data.name is not UNSET:
        template.name = names.check_name(data.name, "tpl")
    if data.description is not UNSET:
        template.description = data.description
    if data.template is not UNSET:
        template.template = data.template
    if data.template is not UNSET or data.variables is not UNSET:
        sent = None if data.variables is UNSET else data.variables
        template.variables = validate_variables(template.template, sent)
    template.updated_at = tx.now
    if not await tx.templates.save(template):
        raise names.NameTaken("template", template.name)
    if data.template is not UNSET:
        await _update_tasks(tx, template)
    return template


async def _update_tasks(tx: Tx, template: Template) -> None:
    """Update the descriptions of tasks that use a template. Variables without a value stay as they are.

    Errors: `invalid_field` for a text that cannot be a description.
    """
    for task in await tx.tasks.list_by_template(template.id):
        text = placeholders.create_filler(task.variables or {}, "template", keep_escapes=True, allow_nested=True)(
            template.template
        )
        if not 0 < len(text) <= MAX_TEMPLATE_LENGTH:
            raise InvalidField("template", f"makes a description of {len(text)} characters for the task {task.name!r}.")
        task.description, task.updated_at = text, tx.now
        await tx.tasks.save(task)


async def delete_template(tx: Tx, reference: str) -> None:
    """Delete a template. Errors: `not_found`, `conflict` naming the agents and tasks that use it."""
    template = await get_template(tx, reference, lock=True)
    users = await tx.templates.list_users(template.id)
    if users:
        more = f" and {len(users) - _MAX_LISTED_USERS} more" if len(users) > _MAX_LISTED_USERS else ""
        raise Conflict(f"The template {template.name!r} is used by {', '.join(users[:_MAX_LISTED_USERS])}{more}.")
    await tx.templates.delete(template.id)


async def render_template(tx: Tx, reference: str, data: TemplateRender) -> RenderedTemplate:
    """Return a template filled with values. Errors: `not_found`, `invalid_field` naming `variables.x`."""
    template = await get_template(tx, reference)
    return RenderedTemplate(template_id=template.id, name=template.name, rendered=render_text(template, data.variables))


async def resolve_template(tx: Tx, reference: str, field: str = "template") -> Template:
    """Return the template that `field` names; it cannot be deleted until the commit. Errors: `invalid_field`."""
    template = await tx.templates.find(reference, "share")
    if template is None:
        raise InvalidField(field, f"there is no template {reference!r}; list them with GET /templates.")
    return template
