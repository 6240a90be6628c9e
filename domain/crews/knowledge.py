"""Define what a crew knows and remembers, as CrewAI writes it, and read it into texts."""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from domain.agents import KnowledgeText
from domain.shared import ids
from domain.shared.errors import InvalidField

MAX_KNOWLEDGE_SOURCES: Final = 50
DEFAULT_MEMORY_SCOPE: Final = "/"
# Parts of all texts together that are compared with a task.
MAX_KNOWLEDGE_CHARACTERS: Final = 1_000_000

KnowledgeContent = Annotated[str, Meta(min_length=1, max_length=200_000, pattern=r"^[^\x00]*$")]
FileReference = Annotated[str, Meta(min_length=1, max_length=500, pattern=r"^[^\x00]*$")]


class KnowledgeSource(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Hold a text that a crew knows, or `file_paths`: ids of uploaded files with text.

    It is read in parts of `chunk_size` characters, of which two overlap by `chunk_overlap`.
    """

    source_type: Literal["string", "text_file", "csv", "json"] | None = None
    name: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    content: KnowledgeContent | None = None
    file_path: FileReference | None = None
    file_paths: Annotated[list[FileReference], Meta(max_length=MAX_KNOWLEDGE_SOURCES)] | FileReference = []
    chunk_size: Annotated[int, Meta(ge=100, le=8_000)] = 4_000
    chunk_overlap: Annotated[int, Meta(ge=0, le=1_000)] = 200

    @property
    def paths(self) -> list[str]:
        """The files of the source."""
        listed = [self.file_paths] if isinstance(self.file_paths, str) else self.file_paths
        return [*listed, *([self.file_path] if self.file_path is not None else [])]


class KnowledgeConfig(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Limit what of the knowledge is given with a task: parts, and their least similarity to it."""

    results_limit: Annotated[int, Meta(ge=1, le=20)] = 5
    score_threshold: Annotated[float, Meta(ge=0, le=1)] = 0.25


class MemoryScope(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Name the part of a crew's memory that a run reads and writes. `{name}` in it is an input of the run."""

    root_path: Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00]*$")] = DEFAULT_MEMORY_SCOPE
    memory_kind: Literal["scope"] = "scope"


KnowledgeSources = Annotated[
    list[KnowledgeContent | KnowledgeSource], Meta(max_length=MAX_KNOWLEDGE_SOURCES, examples=[[]])
]


def read_sources(sources: list[str | KnowledgeSource], field: str, agent: str | None = None) -> list[KnowledgeText]:
    """Return the texts of knowledge sources. Errors: `invalid_field` for one without a text or an uploaded file."""
    texts: list[KnowledgeText] = []
    for number, source in enumerate(sources):
        place = f"{field}[{number}]"
        if isinstance(source, str):
            texts.append(KnowledgeText(name=f"text {number + 1}", content=source, agent=agent))
            continue
        if (source.content is None) == (not source.paths):
            raise InvalidField(place, "needs either a content or file_paths.")
        if source.chunk_overlap >= source.chunk_size:
            raise InvalidField(f"{place}.chunk_overlap", "must be less than chunk_size.")
        text = KnowledgeText(
            name=source.name or f"text {number + 1}",
            content=source.content,
            agent=agent,
            chunk_size=source.chunk_size,
            chunk_overlap=source.chunk_overlap,
        )
        if source.content is not None:
            texts.append(text)
        for path in source.paths:
            if ids.decode_id("file", path) is None:
                message = f"{path[:200]!r} is no id of an uploaded file; send the text as content."
                raise InvalidField(place, message)
            name = source.name or path
            texts.append(msgspec.structs.replace(text, name=name, content=None, file_id=path))
    return texts
