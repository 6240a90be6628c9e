"""Parse the answers of models that must be JSON of a given schema."""

import re
from typing import Any, Final

import msgspec

from domain.llms import ModelError, ToolFailed
from domain.shared.json_limits import JsonTooLarge, check_json
from workers.agent.arguments import validate_arguments

# Models often put JSON between fences.
_FENCED_JSON: Final = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)


async def parse_json_answer(text: str, schema: dict[str, Any], tenant_id: str = "") -> bytes:
    """Return the JSON of an answer. Errors: `ModelError` if it is not JSON, or does not fit the schema."""
    fenced = _FENCED_JSON.fullmatch(text)
    try:
        written = (fenced[1] if fenced else text).encode("utf-8", "surrogatepass")
        check_json(written)
        value = msgspec.json.decode(written)
        await validate_arguments(schema, value, tenant_id)
    except JsonTooLarge as error:
        raise ModelError("malformed", f"The answer {error.reason}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError("malformed", f"The model did not answer in JSON: {error}.") from error
    except ToolFailed as error:
        raise ModelError("malformed", f"The answer of the model does not fit the schema: {error}") from error
    return msgspec.json.encode(value)
