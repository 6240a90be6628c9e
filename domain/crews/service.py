"""Create, list, change, delete and validate crews."""

from typing import Literal

import msgspec

from domain import files
from domain.crews import compiler, crew_files, renderer, validation
from domain.crews.crew_files import CrewProject
from domain.crews.roster import CrewRoster
from domain.crews.schema import (
    CREW_SETTING_FIELDS,
    RESERVED_CREW_NAMES,
    Crew,
    CrewAgentSummary,
    CrewSettings,
    CrewSource,
    CrewTaskSummary,
    CrewValidation,
    CrewYaml,
    NewCrew,
    PatchCrew,
)
from domain.crews.task_rules import list_knowledge
from domain.ports import Tx
from domain.shared import ids, names
from domain.shared.access import Caller
from domain.shared.errors import Conflict, FieldError, InvalidField, InvalidFields, require_found
from domain.shared.exposure import read_exposure
from domain.shared.pages import Listing, Page
from domain.shared.patches import collect_sent_fields, set_fields


async def create_crew(tx: Tx, caller: Caller, data: NewCrew) -> Crew:
    """Create a crew. Errors: `conflict` for a taken name, `invalid_field` with everything that is wrong."""
    project = read_source(data)
    name = data.name or (project.name if project is not None else None)
    if name is None:
        # A file that cannot be read may hold the name.
        problems = project.documents.agents.problems if project is not None else []
        message = "is required, here or in crew.jsonc." if project is not None else "is required."
        raise InvalidFields(
            [problem.field_error for problem in problems] or [FieldError(field="name", message=message)]
        )
    crew = Crew(
        id=ids.generate_id("crew"),
        name=names.check_name(name, "crew", RESERVED_CREW_NAMES),
        description=data.description,
        expose=read_exposure(data.expose),
        user_id=caller.user_id,
        tenant_id=caller.tenant_id,
        created_at=tx.now,
        updated_at=tx.now,
        **{name: getattr(data, name) for name in CREW_SETTING_FIELDS},
    )
    await _resolve_references(tx, caller, crew, project)
    if not await tx.crews.add(crew):
        raise names.NameTaken("crew", crew.name)
    return crew


def read_source(source: CrewSource) -> CrewProject | None:
    """Return what the files of a crew say, None without files. Errors: `invalid_field` for files beside YAML."""
    if not source.files:
        return None
    both = [name for name in ("agents_yaml", "tasks_yaml") if getattr(source, name)]
    if both:
        raise InvalidField(both[0], "send either YAML or the files of a project.")
    return crew_files.read_project(source.files)


async def _resolve_references(tx: Tx, caller: Caller, crew: Crew, project: CrewProject | None = None) -> None:
    """Validate the crew, and replace references to agents and tasks by ids. Errors: `invalid_field`, `missing_scope`.

    Naming uploaded files as knowledge takes the scope to read them.
    """
    if project is not None:
        set_fields(crew, project.collect_settings())
    roster = await validation.validate_crew(
        tx, caller, crew.settings, project.documents if project is not None else None
    )
    if roster.errors:
        raise InvalidFields([problem.field_error for problem in roster.errors])
    # The author of the tasks decides what the answers repeat of the files.
    files.require_file_access(caller, {text.name: text.file_id for text in list_knowledge(roster) if text.file_id})
    members = [roster.members_by_reference[reference] for reference in crew.agents]
    crew.agents = [member.agent.id for member in members if member is not None]
    crew.tasks = [task.task_id for task in roster.tasks if task.task_id is not None]


async def get_crew(tx: Tx, reference: str, lock: bool | Literal["share"] = False) -> Crew:
    """Return a crew by id or name. Errors: `not_found`."""
    return require_found("crew", reference, await tx.crews.find(reference, lock))


async def list_crews(tx: Tx, page: Page) -> Listing[Crew]:
    """Return the tenant's crews, newest first."""
    return await tx.crews.list_page(page)


async def update_crew(tx: Tx, caller: Caller, reference: str, data: PatchCrew) -> Crew:
    """Change the fields that were sent. Errors: `not_found`, `conflict` for a taken name, `invalid_field`."""
    crew = await get_crew(tx, reference, lock=True)
    sent = collect_sent_fields(data)
    project = read_source(CrewSource(**{name: sent.pop(name) for name in ("files",) if name in sent}))
    if "name" in sent:
        names.check_name(sent["name"], "crew", RESERVED_CREW_NAMES)
    if "expose" in sent:
        sent["expose"] = read_exposure(sent["expose"])
    set_fields(crew, sent)
    if project is not None or sent.keys() & set(CREW_SETTING_FIELDS):
        await _resolve_references(tx, caller, crew, project)
    crew.updated_at = tx.now
    if not await tx.crews.save(crew):
        raise names.NameTaken("crew", crew.name)
    return crew


async def delete_crew(tx: Tx, reference: str) -> None:
    """Delete a crew. Its running executions continue: they hold their own plans.

    Errors: `not_found`, `conflict` while a schedule uses it.
    """
    crew = await get_crew(tx, reference, lock=True)
    if schedule_names := await tx.schedules.list_names_by_target("crew", crew.id):
        raise Conflict(f"The schedule {schedule_names[0]!r} uses this crew; delete it first.")
    await tx.crews.delete(crew.id)


async def export_crew(tx: Tx, caller: Caller, reference: str) -> CrewYaml:
    """Return a crew as CrewAI's YAML. Errors: `not_found`, `invalid_field` with everything that is wrong now."""
    crew = await get_crew(tx, reference)
    roster = await validation.validate_crew(tx, caller, crew.settings)
    if roster.errors:
        raise InvalidFields([problem.field_error for problem in roster.errors])
    return renderer.render_crew(roster)


async def debug_crew(tx: Tx, caller: Caller, data: CrewSource) -> CrewValidation:
    """Return all problems of a crew with these settings, and the steps of its plan."""
    project = read_source(data)
    settings = CrewSettings(**{name: getattr(data, name) for name in CREW_SETTING_FIELDS})
    if project is not None:
        settings = msgspec.structs.replace(settings, **project.collect_settings())
    roster = await validation.validate_crew(tx, caller, settings, project.documents if project is not None else None)
    valid = not roster.errors
    order = compiler.order_tasks(roster.tasks)
    return CrewValidation(
        valid=valid,
        errors=roster.errors,
        warnings=roster.warnings,
        agents=_summarize_agents(roster),
        tasks=[
            CrewTaskSummary(
                key=task.key,
                name=task.name,
                agent=task.agent,
                context=order[task.key].context,
                tools=task.tools,
                async_execution=task.async_execution,
                output_file=task.output_file,
            )
            for task in roster.tasks
        ],
        inputs=compiler.list_roster_inputs(roster),
        steps=compiler.outline_steps(roster) if valid else [],
    )


def _summarize_agents(roster: CrewRoster) -> list[CrewAgentSummary]:
    return [
        CrewAgentSummary(
            key=member.key,
            agent_id=member.agent.id or None,
            role=member.agent.role,
            model=member.agent.model or (roster.settings.model if member.agent.kind == "llm" else None),
            tools=member.agent.tools,
            allow_delegation=bool(member.agent.allow_delegation),
        )
        for member in roster.members.values()
    ]
