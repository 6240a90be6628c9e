"""Read the arguments of a tool call, and check them against the tool's JSON Schema. Neither is trusted."""

from typing import Any

import msgspec

from domain import schemas
from domain.llms import ToolFailed
from domain.shared.json_limits import JsonTooLarge, check_json
from domain.shared.json_numbers import normalize_whole_numbers
from domain.shared.unicode_text import repair_json_text


async def validate_arguments(schema: dict[str, Any], args: Any, tenant_id: str = "") -> None:
    """Check arguments against a schema. Errors: `ToolFailed`, naming an argument that does not fit.

    A tenant has one check at work at a time, so that its schemas keep no other tenant waiting.
    """
    problem = await schemas.find_argument_problem(schema, args, tenant_id)
    if problem is not None:
        raise ToolFailed(problem)


def read_arguments(text: str) -> dict[str, Any]:
    """Return the arguments that a model wrote as JSON, with whole numbers as integers. Errors: `ToolFailed`."""
    try:
        check_json(text.encode("utf-8", "surrogatepass"))
        args = msgspec.json.decode(repair_json_text(text or "{}"))
        if isinstance(args, str) and args.lstrip().startswith("{"):  # some servers encode them twice
            return read_arguments(args)
    except JsonTooLarge as error:
        raise ToolFailed(f"the arguments cannot be read: what was sent {error.reason}") from error
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise ToolFailed(f"the arguments are not JSON: {error}.") from error
    if not isinstance(args, dict):
        raise ToolFailed("the arguments must be a JSON object.")
    return {name: normalize_whole_numbers(value) for name, value in args.items()}
