"""Convert tools to schemas that every provider accepts, and convert calls back to the tools' own names.

Providers refuse a whole request for one tool whose schema has alternatives at its top, a property with an odd name or
a keyword of an old draft (Anthropic: `[a-zA-Z0-9_.-]{1,64}`, JSON Schema 2020-12, an object without alternatives at the
top; OpenAI and those that copy it: no alternatives either, and arrays that name their items). So a request holds
schemas that all of them understand. The constraints that are lost are checked when the tool is called.
"""

import asyncio
import math
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import lru_cache
from typing import Any, Final

import msgspec

from domain.llms import (
    ChatMessage,
    ModelCall,
    ModelError,
    ModelReply,
    ModelToolCall,
    ReplyPart,
    ToolCallDelta,
    ToolSpec,
)
from domain.shared.json_schema_parts import DEFINITIONS_KEYWORD, list_subschemas
from domain.shared.json_schemas import normalize_schema
from domain.shared.unicode_text import repair_json_text
from domain.shared.wire_names import PROPERTY_CHARACTERS, assign_wire_names, is_wire_name

# Limits for nested schemas, and for schemas that apply to one value.
MAX_SCHEMA_DEPTH: Final = 32
MAX_MATCHING_SCHEMAS: Final = 64
# Schemas up to this size are cached, so that each step of a run does not convert them again.
MAX_REMEMBERED_BYTES: Final = 32 * 1024
MAX_REMEMBERED_SCHEMAS: Final = 256
# Converting more than this for one call takes tens of milliseconds, so a thread does it.
LARGE_SCHEMA_BYTES: Final = 64 * 1024
MAX_ALTERNATIVES: Final = 10
MAX_NUMBER_BOUND: Final = 2**53
# Keywords that providers refuse at the top of a schema.
_ALTERNATIVE_KEYWORDS: Final = ("anyOf", "oneOf")
_FORBIDDEN_TOP_KEYWORDS: Final = (*_ALTERNATIVE_KEYWORDS, "allOf", "not", "if", "then", "else", "enum", "const", "$ref")
# Errors of providers name a tool by number (Gemini counts within a group) or by name.
_TOOL_NUMBER_PATTERNS: Final = (
    re.compile(r"\bfunction_?[dD]eclarations\[(\d{1,4})\]"),
    re.compile(r"\btools(?:\.|\[)(\d{1,4})\b"),
)
_TOOL_NAME_PATTERN: Final = re.compile(
    r"\b(?:function|tool)(?: name)?:? ['\"`]([A-Za-z0-9_-]{1,64})['\"`]", re.IGNORECASE
)

Parts = AsyncGenerator[ReplyPart, None]


class AdaptedSchema(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a schema for the wire, the same schema with the tool's own names, and the names that differ.

    `requirements` describes in words the alternatives that the schema cannot express.
    """

    wire: dict[str, Any]
    own: dict[str, Any]
    renamed: dict[str, str]  # wire names by the tool's own names
    requirements: str = ""


class AdaptedTools:
    """Convert the tools and messages of one call for the wire, and its answer back."""

    def __init__(self, ask: ModelCall) -> None:
        self._tools = ask.tools
        called = [call.name for message in ask.messages for call in message.tool_calls]
        called += [message.name for message in ask.messages if message.role == "tool" and message.name]
        own = list(dict.fromkeys([*(tool.name for tool in ask.tools), *called]))
        self._names = dict(zip(own, assign_wire_names([(name, name) for name in own]), strict=True))
        self._own_names = {wire: name for name, wire in self._names.items()}
        self._schemas = {tool.name: convert_schema(tool.parameters) for tool in ask.tools}
        self.ask = msgspec.structs.replace(
            ask,
            tools=tuple(self._convert_tool(tool) for tool in ask.tools),
            messages=tuple(self._convert_message(message) for message in ask.messages),
            options=ask.options.rename_tools(self._names),
        )

    def _convert_tool(self, tool: ToolSpec) -> ToolSpec:
        schema = self._schemas[tool.name]
        description = f"{tool.description}\n{schema.requirements}".strip() if schema.requirements else tool.description
        return ToolSpec(name=self._names[tool.name], description=description, parameters=schema.wire, cache=tool.cache)

    def _convert_message(self, message: ChatMessage) -> ChatMessage:
        if message.role == "tool" and message.name:
            return msgspec.structs.replace(message, name=self._names[message.name])
        if not message.tool_calls:
            return message
        calls = tuple(
            ModelToolCall(id=call.id, name=self._names[call.name], arguments=self._rename_arguments(call, to_wire=True))
            for call in message.tool_calls
        )
        return msgspec.structs.replace(message, tool_calls=calls)

    def _rename_arguments(self, call: ModelToolCall, to_wire: bool) -> str:
        schema = self._schemas.get(call.name)
        if schema is None or not schema.renamed:
            return call.arguments
        try:
            arguments = msgspec.json.decode(repair_json_text(call.arguments or "{}"))
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
            return call.arguments
        names = schema.renamed if to_wire else {wire: own for own, wire in schema.renamed.items()}
        return msgspec.json.encode(_rename_keys(arguments, [schema.own], schema.own, names, to_wire)).decode()

    async def restore_parts(self, parts: Parts) -> Parts:
        """Yield an answer with the tools' own names. Arguments with renamed properties come in one piece."""
        buffered: dict[int, tuple[str, list[str]]] = {}
        async for part in parts:
            if isinstance(part, ToolCallDelta):
                name = None if part.name is None else self._own_names.get(part.name, part.name)
                if name is not None and (schema := self._schemas.get(name)) is not None and schema.renamed:
                    buffered[part.index] = (name, [part.arguments])
                    yield msgspec.structs.replace(part, name=name, arguments="")
                elif part.index in buffered:
                    buffered[part.index][1].append(part.arguments)
                else:
                    yield part if name == part.name else msgspec.structs.replace(part, name=name)
            elif isinstance(part, ModelReply):
                for index, (name, pieces) in buffered.items():
                    call = ModelToolCall(id="", name=name, arguments="".join(pieces))
                    yield ToolCallDelta(index=index, arguments=self._rename_arguments(call, to_wire=False))
                yield self._restore_reply(part)
            else:
                yield part

    def _restore_reply(self, reply: ModelReply) -> ModelReply:
        calls: list[ModelToolCall] = []
        for call in reply.message.tool_calls:
            named = msgspec.structs.replace(call, name=self._own_names.get(call.name, call.name))
            arguments = repair_json_text(self._rename_arguments(named, to_wire=False))
            calls.append(msgspec.structs.replace(named, arguments=arguments))
        return msgspec.structs.replace(reply, message=msgspec.structs.replace(reply.message, tool_calls=tuple(calls)))

    def name_tool(self, error: ModelError) -> None:
        """Add the name of a refused tool to the error of a provider that names only its number."""
        if error.kind != "refused":
            return
        tool: ToolSpec | None = None
        numbers = [match for pattern in _TOOL_NUMBER_PATTERNS if (match := pattern.search(error.message))]
        if numbers:
            at = int(numbers[0][1])
            tool = self._tools[at] if at < len(self._tools) else None
        elif (named := _TOOL_NAME_PATTERN.search(error.message)) is not None:
            own = self._own_names.get(named[1])
            tool = next((spec for spec in self._tools if spec.name == own), None)
        if tool is not None:
            error.tool = tool.name
            error.message = f"{error.message} (This is about the tool {tool.name!r}.)"


async def stream_adapted(ask: ModelCall, stream: Callable[[ModelCall], Parts]) -> Parts:
    """Stream a call with its tools converted for the wire, and convert the answer back. Errors: those of `stream`."""
    if not ask.tools and not any(message.tool_calls for message in ask.messages):
        async with aclosing(stream(ask)) as parts:
            async for part in parts:
                yield part
        return
    # Large schemas are converted in a thread, so that they do not block the other calls of this process.
    tools = await asyncio.to_thread(AdaptedTools, ask) if _is_large(ask.tools) else AdaptedTools(ask)
    try:
        async with aclosing(stream(tools.ask)) as wire_parts, aclosing(tools.restore_parts(wire_parts)) as parts:
            async for part in parts:
                yield part
    except ModelError as error:
        tools.name_tool(error)
        raise


def _is_large(tools: Sequence[ToolSpec]) -> bool:
    left = LARGE_SCHEMA_BYTES
    for tool in tools:
        try:
            left -= len(msgspec.json.encode(tool.parameters))
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, TypeError):
            return True
        if left < 0:
            return True
    return False


def convert_schema(schema: dict[str, Any]) -> AdaptedSchema:
    """Convert the schema of a tool's arguments to one that providers accept."""
    try:
        written = msgspec.json.encode(schema)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, TypeError):
        return _convert(schema)
    return _convert_encoded(written) if len(written) <= MAX_REMEMBERED_BYTES else _convert(schema)


@lru_cache(maxsize=MAX_REMEMBERED_SCHEMAS)
def _convert_encoded(written: bytes) -> AdaptedSchema:
    return _convert(msgspec.json.decode(written))


def _convert(schema: dict[str, Any]) -> AdaptedSchema:
    own = normalize_schema(schema)
    definitions = own.pop(DEFINITIONS_KEYWORD, {})
    requirements = _find_requirements(own, definitions)
    own = {**_fold_alternatives(own, definitions, 0), "type": "object"}
    own.setdefault("properties", {})
    if definitions:
        own[DEFINITIONS_KEYWORD] = definitions
    _complete_schema(own)
    odd: dict[str, None] = {}
    plain: set[str] = set()
    _collect_names(own, plain, odd)
    if not odd:
        return AdaptedSchema(wire=own, own=own, renamed={}, requirements=_describe_requirements(requirements))
    names = assign_wire_names([(name, name) for name in [*plain, *odd]], characters=PROPERTY_CHARACTERS)
    renamed = {name: wire for name, wire in zip([*plain, *odd], names, strict=True) if name in odd}
    needs = _describe_requirements([[renamed.get(name, name) for name in names] for names in requirements])
    return AdaptedSchema(wire=_rename_schema(own, renamed), own=own, renamed=renamed, requirements=needs)


def _describe_requirements(requirements: list[list[str]]) -> str:
    sets = [" with ".join(f"`{name[:64]}`" for name in names) for names in requirements]
    return f"Needs {' or '.join(sets)}." if sets else ""


def _find_requirements(schema: dict[str, Any], definitions: dict[str, Any]) -> list[list[str]]:
    """Return the properties that each alternative at the top requires, if each requires some."""
    for keyword in _ALTERNATIVE_KEYWORDS:
        alternatives = [_resolve_reference(branch, definitions) for branch in schema.get(keyword, [])]
        sets = [branch.get("required", []) for branch in alternatives]
        if len(sets) > 1 and all(sets) and len(sets) <= MAX_ALTERNATIVES:
            return sets
    return []


def _resolve_reference(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema that a reference leads to. Keywords beside the reference override it."""
    for _ in range(MAX_SCHEMA_DEPTH):
        if not isinstance(reference := schema.get("$ref"), str):
            break
        rest = {keyword: value for keyword, value in schema.items() if keyword != "$ref"}
        schema = {**definitions.get(reference.rpartition("/")[2], {}), **rest}
    return schema


def _fold_alternatives(schema: dict[str, Any], definitions: dict[str, Any], depth: int) -> dict[str, Any]:
    """Merge the properties of all alternatives into one object. Only what all alternatives require stays required."""
    schema = _resolve_reference(schema, definitions)
    folded = {keyword: value for keyword, value in schema.items() if keyword not in _FORBIDDEN_TOP_KEYWORDS}
    if depth > MAX_SCHEMA_DEPTH:
        return folded
    properties: dict[str, list[Any]] = {name: [subschema] for name, subschema in folded.get("properties", {}).items()}
    required = dict.fromkeys(folded.get("required", []))
    for keyword in ("allOf", *_ALTERNATIVE_KEYWORDS):
        branches = [_fold_alternatives(subschema, definitions, depth + 1) for subschema in schema.get(keyword, [])]
        for branch in branches:
            for name, subschema in branch.get("properties", {}).items():
                if subschema not in (schemas := properties.setdefault(name, [])):
                    schemas.append(subschema)
        sets = [set(branch.get("required", [])) for branch in branches]
        if sets:
            shared = set.union(*sets) if keyword == "allOf" else set.intersection(*sets)
            required |= dict.fromkeys(sorted(shared))
    if properties:
        folded["properties"] = {
            name: several[0] if len(several) == 1 else {"anyOf": [schema for schema in several if schema] or [{}]}
            for name, several in properties.items()
        }
    if required:
        folded["required"] = list(required)
    return folded


def _complete_schema(schema: dict[str, Any]) -> None:
    """Add what some providers require: `items` for arrays, and a type for schemas with a format."""
    if "format" in schema and not schema.keys() & {"type", "enum", *_FORBIDDEN_TOP_KEYWORDS}:
        schema["type"] = "string"
    types = schema.get("type")
    if "array" in (types if isinstance(types, list) else [types]):
        schema.setdefault("items", {})
    for kind in ("Length", "Items", "Properties"):
        if schema.get(f"min{kind}", 0) > schema.get(f"max{kind}", math.inf):
            del schema[f"min{kind}"], schema[f"max{kind}"]  # no value fits, which grammars cannot express
    for keyword, whole in (("minimum", math.ceil), ("exclusiveMinimum", math.floor)):
        _complete_bound(schema, keyword, whole)
    for keyword, whole in (("maximum", math.floor), ("exclusiveMaximum", math.ceil)):
        _complete_bound(schema, keyword, whole)
    for subschema in list_subschemas(schema):
        _complete_schema(subschema)


def _complete_bound(schema: dict[str, Any], keyword: str, whole: Callable[[float], int]) -> None:
    """Round the bounds of integers, and drop bounds that are too large for a grammar."""
    if (bound := schema.get(keyword)) is None:
        return
    if abs(bound) > MAX_NUMBER_BOUND:
        del schema[keyword]
    elif schema.get("type") == "integer":
        schema[keyword] = whole(bound)


def _collect_names(schema: dict[str, Any], plain: set[str], odd: dict[str, None]) -> None:
    for name in schema.get("properties", {}):
        if is_wire_name(name, PROPERTY_CHARACTERS):
            plain.add(name)
        else:
            odd[name] = None
    for subschema in list_subschemas(schema):
        _collect_names(subschema, plain, odd)


def _rename_schema(schema: Any, names: dict[str, str]) -> Any:
    """Return a schema with renamed properties. The description of each mentions its own name."""
    renamed = dict(schema)
    for keyword in (DEFINITIONS_KEYWORD, "properties", "patternProperties", "dependentSchemas"):
        if keyword in renamed:
            renamed[keyword] = {name: _rename_schema(subschema, names) for name, subschema in renamed[keyword].items()}
    for keyword in ("allOf", "anyOf", "oneOf", "prefixItems"):
        if keyword in renamed:
            renamed[keyword] = [_rename_schema(subschema, names) for subschema in renamed[keyword]]
    for keyword in ("not", "if", "then", "else", "contains", "propertyNames", "items", "additionalProperties"):
        if isinstance(renamed.get(keyword), dict):
            renamed[keyword] = _rename_schema(renamed[keyword], names)
    for keyword in ("properties", "dependentSchemas"):
        if keyword in renamed:
            renamed[keyword] = {
                names.get(name, name): _prepend_own_name(subschema, name)
                if name in names and keyword == "properties"
                else subschema
                for name, subschema in renamed[keyword].items()
            }
    if "required" in renamed:
        renamed["required"] = [names.get(name, name) for name in renamed["required"]]
    if "dependentRequired" in renamed:
        renamed["dependentRequired"] = {
            names.get(name, name): [names.get(other, other) for other in several]
            for name, several in renamed["dependentRequired"].items()
        }
    return renamed


def _prepend_own_name(schema: dict[str, Any], name: str) -> dict[str, Any]:
    return {**schema, "description": f"(its name is {name!r}) {schema.get('description', '')}".rstrip()}


def _rename_keys(
    value: Any,
    schemas: Sequence[dict[str, Any]],
    root: dict[str, Any],
    names: dict[str, str],
    to_wire: bool,
    depth: int = 0,
) -> Any:
    """Rename the keys of a value that are properties in one of the schemas that apply to it."""
    if depth > 2 * MAX_SCHEMA_DEPTH or not isinstance(value, dict | list):
        return value
    around = _expand_schemas(schemas, root)
    if isinstance(value, list):
        inner: list[dict[str, Any]] = []
        for schema in around:
            inner += [item for item in (*schema.get("prefixItems", ()), schema.get("items")) if isinstance(item, dict)]
        return [_rename_keys(item, inner, root, names, to_wire, depth + 1) for item in value]
    renamed: dict[str, Any] = {}
    for key, item in value.items():
        other = names.get(key)
        own = key if to_wire else other if other is not None else key
        matching = [schema["properties"][own] for schema in around if own in schema.get("properties", {})]
        if not matching:
            own = key
            for schema in around:
                patterned = schema.get("patternProperties", {}).values()
                others = (schema.get("additionalProperties"), *patterned)
                matching += [other for other in others if isinstance(other, dict)]
        elif other is not None:
            key = other
        renamed[key] = _rename_keys(item, matching, root, names, to_wire, depth + 1)
    return renamed


def _expand_schemas(schemas: Sequence[dict[str, Any]], root: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the schemas with all that apply together with them: referenced schemas and alternatives."""
    expanded: list[dict[str, Any]] = []
    waiting = list(schemas)
    while waiting and len(expanded) < MAX_MATCHING_SCHEMAS:
        schema = waiting.pop()
        if any(schema is subschema for subschema in expanded):
            continue
        expanded.append(schema)
        for keyword in ("allOf", *_ALTERNATIVE_KEYWORDS):
            waiting += schema.get(keyword, [])
        waiting += [schema[keyword] for keyword in ("if", "then", "else") if keyword in schema]
        if isinstance(reference := schema.get("$ref"), str):
            target = root.get(DEFINITIONS_KEYWORD, {}).get(reference.rpartition("/")[2])
            waiting += [] if target is None else [target]
    return expanded
