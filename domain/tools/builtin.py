"""Define the built-in tools. Their names, ids and parameters are the same in every tenant."""

from typing import Any, Final

import msgspec

from domain.shared import ids

_PATH_SCHEMA: Final = {
    "type": "string",
    "minLength": 1,
    "maxLength": 500,
    "description": "Relative to the run's folder.",
}


class BuiltInTool(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a built-in tool. `effects`: a call changes something; `fenced`: it runs in the sandbox of the run."""

    name: str
    category: str
    description: str
    parameters: dict[str, Any]
    effects: bool = False
    fenced: bool = True

    @property
    def id(self) -> str:
        """Return the id, which is the same in every installation."""
        return ids.derive_id("tool", self.name)


def _build_parameters(required: tuple[str, ...], **properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _build_text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, **more}


BUILT_IN_TOOLS: Final[tuple[BuiltInTool, ...]] = (
    BuiltInTool(
        name="filesystem_read",
        category="filesystem",
        description="Read a text file of this run.",
        parameters=_build_parameters(
            ("path",), path=_PATH_SCHEMA, encoding=_build_text("Of the file.", default="utf-8", maxLength=32)
        ),
    ),
    BuiltInTool(
        name="filesystem_write",
        category="filesystem",
        description="Write a text file of this run, creating its folders. Replaces the file unless `append` is true.",
        parameters=_build_parameters(
            ("path", "content"),
            path=_PATH_SCHEMA,
            content=_build_text("What to write."),
            append={"type": "boolean", "default": False, "description": "Add to the end of the file."},
        ),
        effects=True,
    ),
    BuiltInTool(
        name="filesystem_list",
        category="filesystem",
        description="List the files and folders of this run.",
        parameters=_build_parameters(
            (), path={**_PATH_SCHEMA, "default": ".", "description": "A folder; the run's own without it."}
        ),
    ),
    BuiltInTool(
        name="python",
        category="code",
        description=(
            "Run Python code on the files of this run, without a network. Returns what it prints; "
            "only files last from one call to the next."
        ),
        parameters=_build_parameters(
            ("code",),
            code=_build_text("The program.", minLength=1),
            timeout={
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": 300,
                "description": "Seconds, 30 by default.",
            },
        ),
        effects=True,
    ),
    BuiltInTool(
        name="http_request",
        category="network",
        description="Send an HTTP request to a public address and read the answer.",
        parameters=_build_parameters(
            ("url",),
            url=_build_text("http:// or https://", minLength=1, maxLength=8192),
            method=_build_text("The method.", default="GET", enum=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]),
            headers={"type": "object", "additionalProperties": {"type": "string"}, "description": "Headers to send."},
            body=_build_text("Body to send unchanged."),
            json={"description": "Value to send as JSON, instead of a body."},
            timeout={"type": "number", "exclusiveMinimum": 0, "maximum": 30, "description": "Seconds, 30 by default."},
        ),
        effects=True,
        fenced=False,
    ),
    BuiltInTool(
        name="search_artifacts",
        category="knowledge",
        description="Search the records of earlier LLM runs.",
        parameters=_build_parameters(
            (),
            query=_build_text("Words in the errors of failed runs.", maxLength=500),
            model_name=_build_text("Runs of this model.", maxLength=200),
            status=_build_text("How they ended.", enum=["ok", "error"]),
            tag=_build_text("Runs with this tag.", maxLength=200),
            semantic_bucket=_build_text("Runs of this bucket.", maxLength=200),
            limit={
                "type": "integer",
                "minimum": 1,
                "maximum": 50,
                "default": 10,
                "description": "Maximum number of results.",
            },
        ),
    ),
)
