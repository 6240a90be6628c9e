"""The tools that come with Paddock. Their names, ids and parameters are the same in every tenant."""

from typing import Any, Final

import msgspec

from domain.shared import ids

_PATH: Final = {"type": "string", "minLength": 1, "maxLength": 500, "description": "Relative to the run's folder."}


class BuiltInTool(msgspec.Struct, frozen=True, kw_only=True):
    """A built-in tool. `effects`: a call changes something; `fenced`: it happens in the run's sandbox."""

    name: str
    category: str
    description: str
    parameters: dict[str, Any]
    effects: bool = False
    fenced: bool = True

    @property
    def id(self) -> str:
        """The same everywhere and always."""
        return ids.derive_id("tool", self.name)


def _takes(required: tuple[str, ...], **properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _text(told: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": told, **more}


BUILT_IN_TOOLS: Final[tuple[BuiltInTool, ...]] = (
    BuiltInTool(
        name="filesystem_read",
        category="filesystem",
        description="Read a text file of this run.",
        parameters=_takes(("path",), path=_PATH, encoding=_text("Of the file.", default="utf-8", maxLength=32)),
    ),
    BuiltInTool(
        name="filesystem_write",
        category="filesystem",
        description="Write a text file of this run, with the folders it needs. Replaces it, unless told to append.",
        parameters=_takes(
            ("path", "content"),
            path=_PATH,
            content=_text("What to write."),
            append={"type": "boolean", "default": False, "description": "Add to the end of the file."},
        ),
        effects=True,
    ),
    BuiltInTool(
        name="filesystem_list",
        category="filesystem",
        description="List the files and folders of this run.",
        parameters=_takes((), path={**_PATH, "default": ".", "description": "A folder; the run's own without it."}),
    ),
    BuiltInTool(
        name="python",
        category="code",
        description=(
            "Run Python code on the files of this run, without a network. Answers with what it prints; "
            "what lasts from one call to the next are its files."
        ),
        parameters=_takes(
            ("code",),
            code=_text("The program.", minLength=1),
            timeout={
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": 300,
                "description": "Seconds, 30 unless told.",
            },
        ),
        effects=True,
    ),
    BuiltInTool(
        name="http_request",
        category="network",
        description="Send an HTTP request to a public address and read the answer.",
        parameters=_takes(
            ("url",),
            url=_text("http:// or https://", minLength=1, maxLength=8192),
            method=_text("The method.", default="GET", enum=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]),
            headers={"type": "object", "additionalProperties": {"type": "string"}, "description": "To send along."},
            body=_text("To send as it is."),
            json={"description": "To send as JSON, instead of a body."},
            timeout={"type": "number", "exclusiveMinimum": 0, "maximum": 30, "description": "Seconds, 30 unless told."},
        ),
        effects=True,
        fenced=False,
    ),
    BuiltInTool(
        name="search_artifacts",
        category="knowledge",
        description="Search the records of earlier LLM runs.",
        parameters=_takes(
            (),
            query=_text("Words that failed runs told of.", maxLength=500),
            model_name=_text("Runs of this model.", maxLength=200),
            status=_text("How they ended.", enum=["ok", "error"]),
            tag=_text("Runs with this tag.", maxLength=200),
            semantic_bucket=_text("Runs of this bucket.", maxLength=200),
            limit={"type": "integer", "minimum": 1, "maximum": 50, "default": 10, "description": "At most so many."},
        ),
    ),
)
