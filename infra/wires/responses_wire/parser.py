"""Parse the body of a request for a response."""

from typing import Any, Final

from domain.llms import ChatMessage, ModelOptions, ToolSpec
from infra.wires.common import (
    ReasoningSeal,
    ToolChoice,
    WireRefusal,
    build_thinking,
    choose_tools,
    convert_fields,
    decode_body,
    drop_notes,
    drop_nulls,
    read_part_mark,
)
from infra.wires.responses_wire import fields as field_tables
from infra.wires.responses_wire.input_items import InputReader
from infra.wires.responses_wire.response_log import ResponseLog
from infra.wires.responses_wire.schema import FunctionTool, ReasoningSettings, ResponseBody, ResponseRequest, TextFormat

_NO_PARAMETERS: Final[dict[str, Any]] = {"type": "object", "properties": {}}
_FORMAT_FIELDS: Final = ("name", "description", "schema", "strict")


class RequestParser:
    """Parse the requests of one run."""

    def __init__(self, seal: ReasoningSeal, log: ResponseLog) -> None:
        self._seal, self._log = seal, log

    def parse_request(self, body: bytes) -> ResponseRequest:
        """Return what a request's body asks for. Errors: `WireRefusal`."""
        return self.parse_fields(decode_body(body), len(body))

    def parse_fields(
        self, raw: dict[str, Any], size: int, earlier: tuple[ChatMessage, ...] | None = None
    ) -> ResponseRequest:
        """Return what the fields of a body of this size ask for, of which none is null. Errors: `WireRefusal`.

        `earlier` are the messages before the input, where the server keeps them elsewhere than in the log.
        """
        fields = field_tables.FIELD_RULES.drop_ignored_fields(raw)
        for name in ("text", "reasoning"):
            if isinstance(setting := fields.get(name), dict):
                fields[name] = drop_nulls(setting)
        request = convert_fields(fields, ResponseBody)
        if request.stream_options is not None and not request.stream:
            message = "`stream_options` is for requests with `stream` alone."
            raise WireRefusal(400, message, param="stream_options")
        if earlier is None:
            response_id = request.previous_response_id
            earlier = () if response_id is None else self._log.load_conversation(response_id)
        new_messages = InputReader(self._seal, earlier).read_input(request.input)
        tools = _parse_tools(request.tools)
        choice = choose_tools(request.tool_choice, tools)
        instructions = request.instructions
        head = () if instructions is None else (ChatMessage(role="system", content=instructions),)
        return ResponseRequest(
            model=request.model,
            messages=(*head, *earlier, *new_messages),
            tools=tools,
            options=_build_options(request, choice),
            stream=request.stream,
            echo=_build_echo(request, raw, tools),
            new_messages=new_messages,
            size=size,
            previous_response_id=request.previous_response_id,
            is_stored=request.store,
        )


def _build_options(request: ResponseBody, choice: ToolChoice) -> ModelOptions:
    verbosity, reasoning = request.text.verbosity, request.reasoning or ReasoningSettings()
    return ModelOptions(
        temperature=request.temperature,
        max_tokens=request.max_output_tokens,
        top_p=request.top_p,
        top_k=request.top_k,
        verbosity=None if verbosity == "medium" else verbosity,
        service_tier=None if request.service_tier == "auto" else request.service_tier,
        tool_choice=choice.mode,
        allowed_tools=choice.allowed_tools,
        parallel_tool_calls=request.parallel_tool_calls if request.tools else None,
        schema=_parse_answer_schema(request.text.format),
        thinking=build_thinking(reasoning.effort, reasoning.summary or reasoning.generate_summary),
    )


def _parse_tools(tools: list[Any]) -> tuple[ToolSpec, ...]:
    specs: list[ToolSpec] = []
    for number, sent in enumerate(tools):
        where = f"tools[{number}]"
        kind = sent.get("type") if isinstance(sent, dict) else None
        if kind != "function":
            message = f"`{where}` is of type {str(kind)[:64]!r}: tools of type 'function' alone are taken here."
            raise WireRefusal(400, message, param=where)
        tool = convert_fields(_clean_tool(sent), FunctionTool, where)
        parameters = tool.parameters or _NO_PARAMETERS
        types = parameters.get("type", "object")
        if "object" not in (types if isinstance(types, list) else [types]):
            message = f"`{where}.parameters` must be a JSON Schema of type object."
            raise WireRefusal(400, message, param=f"{where}.parameters")
        if tool.name in {spec.name for spec in specs}:
            raise WireRefusal(400, f"`{where}.name` is the name of two tools.", param=f"{where}.name")
        specs.append(
            ToolSpec(
                name=tool.name,
                description=tool.description or "",
                parameters={**parameters, "type": "object"},
                cache=read_part_mark(tool.cache_control, where),
            )
        )
    return tuple(specs)


def _clean_tool(tool: Any) -> Any:
    """Drop what asks for nothing: callers that are the model itself, and loading at once."""
    fields = drop_notes(
        tool, field_tables.TOOL_NOTES if tool.get("allowed_callers") in (None, ["direct"]) else frozenset()
    )
    return {name: value for name, value in fields.items() if name not in ("defer_loading", "async") or value}


def _parse_answer_schema(answer_format: TextFormat | None) -> dict[str, Any] | None:
    if answer_format is None or answer_format.type != "json_schema":
        if answer_format is not None and (extra := next(_list_format_fields(answer_format), None)):
            message = f"`text.format.{extra}` is for the type json_schema alone."
            raise WireRefusal(400, message, param=f"text.format.{extra}")
        return {"type": "object"} if answer_format is not None and answer_format.type == "json_object" else None
    if answer_format.schema is None:
        raise WireRefusal(400, "`text.format.schema` is missing.", param="text.format.schema")
    # Its name and description tell a model what is asked for; in a schema they are called so.
    naming = drop_nulls({"title": answer_format.name, "description": answer_format.description})
    return {**naming, **answer_format.schema}


def _list_format_fields(answer_format: TextFormat) -> Any:
    return (name for name in _FORMAT_FIELDS if getattr(answer_format, name) is not None)


def _build_echo(request: ResponseBody, raw: dict[str, Any], tools: tuple[ToolSpec, ...]) -> dict[str, Any]:
    """Return the settings of a request as its response repeats them."""
    return {
        "background": False,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": None,
        "metadata": raw["metadata"] if isinstance(raw.get("metadata"), dict) else {},
        "model": request.model,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "reasoning": _build_reasoning_echo(request.reasoning),
        "store": request.store,
        "temperature": request.temperature,
        "text": _build_text_echo(raw.get("text") or {}),
        "tool_choice": _build_choice_echo(request.tool_choice),
        "tools": [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                "strict": False,
            }
            for tool in tools
        ],
        "top_p": request.top_p,
        "truncation": "disabled",
        "user": raw.get("user"),
    }


def _build_reasoning_echo(reasoning: ReasoningSettings | None) -> dict[str, Any]:
    settings = reasoning or ReasoningSettings()
    return {"effort": settings.effort, "summary": settings.summary or settings.generate_summary}


def _build_text_echo(text: dict[str, Any]) -> dict[str, Any]:
    verbosity = drop_nulls({"verbosity": text.get("verbosity")})
    return {"format": text.get("format") or {"type": "text"}, **verbosity}


def _build_choice_echo(choice: Any) -> Any:
    """Return a choice in the shape that the types of OpenAI's library have for it."""
    if isinstance(choice, dict) and choice.get("type") == "function" and "name" in choice:
        return choice
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools" and "tools" in choice:
        return choice
    return choice if choice in ("none", "required") else "auto"
