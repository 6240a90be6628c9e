"""Define the terms by which executions are found: tags, members of the metadata, and words of their texts.

Tags and metadata are written with the execution. Words are written by the record process soon after an execution
started or ended.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from domain.executions.schema import Execution, ExecutionFilter, RunName, TermQuery
from domain.ports import Tx
from domain.shared.errors import InvalidField
from domain.shared.search_text import split_search, split_words
from domain.shared.tags import Metadata, Tags, check_metadata_filters, check_tags

# Different words of each text that find an execution: its name, its error, its input and its output.
MAX_TEXT_WORDS: Final = 200
# Characters of each text that are looked through for words.
MAX_TEXT_CHARACTERS: Final = 100_000
MAX_SEARCH_CHARACTERS: Final = 1000
MAX_SEARCH_WORDS: Final = 32
# A longer value of the metadata is found by its hash.
_MAX_VALUE_CHARACTERS: Final = 256


class PatchExecution(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Change what an execution is found by; `tags` and `metadata` are replaced as a whole, null removes them."""

    run_name: RunName | UnsetType = UNSET
    tags: Tags | None | UnsetType = UNSET
    metadata: Metadata | None | UnsetType = UNSET


class SearchedText(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what an execution is found by: its labels, and its texts, input and output as JSON."""

    execution_id: str
    tags: list[str]
    metadata: dict[str, Any] | None
    run_name: str
    error_type: str | None
    error_message: str | None
    input_json: str | None
    output_json: str | None


class ExecutionTerms(Protocol):
    """Store the terms of the bound tenant's executions; `list_queued` covers all tenants."""

    async def add(self, execution_id: str, terms: list[str]) -> None:
        """Add terms of an execution to those that it has."""
        ...

    async def replace_terms(self, execution_id: str, terms: list[str]) -> None:
        """Replace all terms of an execution that is locked."""
        ...

    async def load_texts(self, execution_ids: list[str]) -> list[SearchedText]:
        """Return what executions are found by. They are locked against deletion until the commit."""
        ...

    async def list_queued(self, limit: int) -> list[tuple[str, int]]:
        """Return the tenant and the number of each entry of the queue, the oldest first."""
        ...

    async def take_queued(self, numbers: list[int]) -> list[str]:
        """Take entries from the queue. Return the ids of their executions, each once."""
        ...


async def add_label_terms(tx: Tx, execution: Execution) -> None:
    """Write the terms of the tags and the metadata with which an execution starts."""
    terms = list_label_terms(execution.tags, execution.metadata)
    if terms:
        await tx.execution_terms.add(execution.id, terms)


async def replace_terms(tx: Tx, execution_id: str) -> None:
    """Replace the terms of an execution whose name, tags or metadata were changed in this transaction."""
    for text in await tx.execution_terms.load_texts([execution_id]):
        await tx.execution_terms.replace_terms(execution_id, list_terms(text))


def list_label_terms(tags: list[str], metadata: dict[str, Any] | None) -> list[str]:
    """Return the terms of an execution's tags and of the scalars in its metadata."""
    terms = [f"t:{tag}" for tag in tags]
    for key, value in (metadata or {}).items():
        text = _format_scalar(value)
        if text is not None:
            terms.append(_format_metadata_term(f"{key}:{text}"))
    return terms


def list_terms(text: SearchedText) -> list[str]:
    """Return all terms of an execution: those of its labels, and the words of its name, error, input and output."""
    words = dict[str, None]()
    for source in (
        [text.run_name],
        [text.error_message or "", text.error_type or ""],
        _iterate_json_texts(text.input_json),
        _iterate_json_texts(text.output_json),
    ):
        words.update(dict.fromkeys(_extract_distinct_words(source)))
    return [*list_label_terms(text.tags, text.metadata), *(f"w:{word}" for word in words)]


def build_term_query(filters: ExecutionFilter) -> TermQuery | None:
    """Return the terms that a filter asks for; None if it names none. Errors: `invalid_field`."""
    required = [f"t:{tag}" for tag in check_tags(filters.tag or [], "tag")]
    required += [_format_metadata_term(entry) for entry in check_metadata_filters(filters.metadata or [])]
    excluded = list[str]()
    if filters.search is not None:
        if len(filters.search) > MAX_SEARCH_CHARACTERS:
            raise InvalidField("search", f"must be at most {MAX_SEARCH_CHARACTERS} characters.")
        words, unwanted = split_search(filters.search.casefold())
        if not words:
            raise InvalidField("search", "must contain a word that is not excluded.")
        # The database looks up each word on its own, and plans that for longer than it reads.
        if len(words) + len(unwanted) > MAX_SEARCH_WORDS:
            raise InvalidField("search", f"must have at most {MAX_SEARCH_WORDS} different words.")
        required += [f"w:{word}" for word in words]
        excluded = [f"w:{word}" for word in unwanted]
    if not required:
        return None
    if filters.parent_id is not None:
        raise InvalidField("parent_id", "selects steps, which have no tags, metadata and words to be found by.")
    return TermQuery(required=list(dict.fromkeys(required)), excluded=excluded)


def _format_metadata_term(entry: str) -> str:
    if len(entry) <= _MAX_VALUE_CHARACTERS:
        return f"m:{entry}"
    return f"h:{hashlib.sha256(entry.encode()).hexdigest()}"


def _format_scalar(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return msgspec.json.encode(value).decode()
    return None


def _extract_distinct_words(texts: Iterable[str]) -> list[str]:
    words, remaining = dict[str, None](), MAX_TEXT_CHARACTERS
    for text in texts:
        for word in split_words(text[:remaining].casefold()):
            words[word] = None
            if len(words) == MAX_TEXT_WORDS:
                return list(words)
        remaining -= len(text)
        if remaining <= 0:
            break
    return list(words)


def _iterate_json_texts(source: str | None) -> Iterator[str]:
    """Yield the strings and numbers of JSON, keys included, in the order of the text."""
    # A stack: JSON may nest deeper than Python calls.
    pending: list[Any] = [] if source is None else [msgspec.json.decode(source)]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            pending.extend(part for key in reversed(value) for part in (value[key], key))
        elif isinstance(value, list):
            pending.extend(reversed(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield str(value)
