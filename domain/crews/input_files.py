"""Find the files that the tasks of a crew name, and give them to its run."""

from collections.abc import Iterator, Mapping

from domain.plans import Plan, PlanStep, PlanWork
from domain.shared import ids
from domain.shared.errors import FieldError, InvalidFields


def collect_run_files(plan: Plan, sent: Mapping[str, str] | None) -> dict[str, str]:
    """Return the files of a run: those that were sent, and the uploaded ones that tasks name, by path.

    Errors: `invalid_field` for a path that a task reads, and that the run is not given.
    """
    files, errors = dict(sent or {}), list[FieldError]()
    for step in _iterate_steps(plan):
        for name, path in (step.text.input_files if step.text is not None else {}).items():
            if ids.decode_id("file", path) is not None:
                files.setdefault(name, path)
            elif path not in files:
                message = f"the task {step.name!r} reads {path!r}: send an uploaded file under that path."
                errors.append(FieldError(field="files", message=message))
    if errors:
        raise InvalidFields(errors)
    return files


def _iterate_steps(plan: Plan) -> Iterator[PlanStep]:
    for step in plan.steps:
        if isinstance(step.work, PlanWork):
            yield from _iterate_steps(step.work.plan)
        else:
            yield step
