"""Parse the body of a request for a response."""

from typing import Any, Final

from domain.llms import ChatMessage, ModelOptions, ToolSpec
from workers.run.responses_wire.input_items import InputReader
from workers.run.responses_wire.response_log import ResponseLog
from workers.run.responses_wire.schema import FunctionTool, ResponseBody, ResponseRequest, TextFormat
from workers.run.wire import (
    FieldRules,
    GatewayRefusal,
    ReasoningSeal,
    choose_tools,
    convert_fields,
    decode_body,
    drop_notes,
    drop_nulls,
)

_NO_PARAMETERS: Final[dict[str, Any]] = {"type": "object", "properties": {}}
# Results of tools that run at the provider, which are not offered, and reasoning, which is always included.
_NEUTRAL_INCLUDES: Final = frozenset(
    {"file_search_call.results", "web_search_call.results", "web_search_call.action.sources"}
    | {"message.input_image.image_url", "computer_call_output.output.image_url", "code_interpreter_call.outputs"}
    | {"reasoning.encrypted_content"}
)
# Ignored are fields about identity, caching and charges, and a limit for tools that run at the provider.
_FIELD_RULES: Final = FieldRules(
    ignored=frozenset(
        {"user", "metadata", "safety_identifier", "service_tier", "max_tool_calls"}
        | {"prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"}
    ),
    neutral_values={
        "background": lambda value: value is False,
        "conversation": lambda _: False,
        "prompt": lambda _: False,
        "context_management": lambda value: value == [],
        "truncation": lambda value: value == "disabled",
        "top_logprobs": lambda value: value == 0,
        "include": lambda value: isinstance(value, list) and all(name in _NEUTRAL_INCLUDES for name in value),
        "moderation": lambda _: False,
        "n": lambda value: value == 1,
    },
    alternatives={
        "background": "wait for the response, or stream it",
        "conversation": "send the conversation as `input`, or `previous_response_id`",
        "prompt": "send the text itself as `instructions` and `input`",
        "truncation": "shorten `input`",
        "include": 'it may hold "reasoning.encrypted_content"',
    },
)
_FORMAT_FIELDS: Final = ("name", "description", "schema", "strict")
_TOOL_NOTES: Final = frozenset({"cache_control", "allowed_callers", "output_schema"})


class RequestParser:
    """Parse the requests of one run."""

    def __init__(self, seal: ReasoningSeal, log: ResponseLog) -> None:
        self._seal, self._log = seal, log

    def parse_request(self, body: bytes) -> ResponseRequest:
        """Return what a request's body asks for. Errors: `GatewayRefusal`."""
        raw = decode_body(body)
        fields = _FIELD_RULES.drop_ignored_fields(raw)
        if isinstance(text := fields.get("text"), dict):
            fields["text"] = drop_nulls(text)
        request = convert_fields(fields, ResponseBody)
        if request.stream_options is not None and not request.stream:
            message = "`stream_options` is for requests with `stream` alone."
            raise GatewayRefusal(400, message, param="stream_options")
        earlier: tuple[ChatMessage, ...] = ()
        if request.previous_response_id is not None:
            earlier = self._log.load_conversation(request.previous_response_id)
        new_messages = InputReader(self._seal, earlier).read_input(request.input)
        specs = _parse_tools(request.tools)
        tools, choice = choose_tools(request.tool_choice, specs)
        instructions = request.instructions
        head = () if instructions is None else (ChatMessage(role="system", content=instructions),)
        return ResponseRequest(
            model=request.model,
            messages=(*head, *earlier, *new_messages),
            tools=tools,
            options=ModelOptions(
                temperature=request.temperature,
                max_tokens=request.max_output_tokens,
                top_p=request.top_p,
                tool_choice=choice,
                parallel_tool_calls=request.parallel_tool_calls if request.tools else None,
                schema=_parse_answer_schema(request.text.format),
            ),
            stream=request.stream,
            echo=_build_echo(request, raw, specs),
            new_messages=new_messages,
            size=len(body),
            previous_response_id=request.previous_response_id,
            is_stored=request.store,
        )


def _parse_tools(tools: list[Any]) -> tuple[ToolSpec, ...]:
    specs: list[ToolSpec] = []
    for number, sent in enumerate(tools):
        where = f"tools[{number}]"
        kind = sent.get("type") if isinstance(sent, dict) else None
        if kind != "function":
            message = f"`{where}` is of type {str(kind)[:64]!r}: tools of type 'function' alone are taken here."
            raise GatewayRefusal(400, message, param=where)
        tool = convert_fields(_clean_tool(sent), FunctionTool, where)
        parameters = tool.parameters or _NO_PARAMETERS
        types = parameters.get("type", "object")
        if "object" not in (types if isinstance(types, list) else [types]):
            message = f"`{where}.parameters` must be a JSON Schema of type object."
            raise GatewayRefusal(400, message, param=f"{where}.parameters")
        if tool.name in {spec.name for spec in specs}:
            raise GatewayRefusal(400, f"`{where}.name` is the name of two tools.", param=f"{where}.name")
        specs.append(
            ToolSpec(name=tool.name, description=tool.description or "", parameters={**parameters, "type": "object"})
        )
    return tuple(specs)


def _clean_tool(tool: Any) -> Any:
    """Drop what asks for nothing: callers that are the model itself, and loading at once."""
    fields = drop_notes(tool, _TOOL_NOTES if tool.get("allowed_callers") in (None, ["direct"]) else frozenset())
    return {name: value for name, value in fields.items() if name not in ("defer_loading", "async") or value}


def _parse_answer_schema(answer_format: TextFormat | None) -> dict[str, Any] | None:
    if answer_format is None or answer_format.type != "json_schema":
        if answer_format is not None and (extra := next(_list_format_fields(answer_format), None)):
            message = f"`text.format.{extra}` is for the type json_schema alone."
            raise GatewayRefusal(400, message, param=f"text.format.{extra}")
        return {"type": "object"} if answer_format is not None and answer_format.type == "json_object" else None
    if answer_format.schema is None:
        raise GatewayRefusal(400, "`text.format.schema` is missing.", param="text.format.schema")
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
        "reasoning": {"effort": None, "summary": None},
        "store": request.store,
        "temperature": request.temperature,
        "text": {"format": raw["text"].get("format") or {"type": "text"} if "text" in raw else {"type": "text"}},
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


def _build_choice_echo(choice: Any) -> Any:
    """Return a choice in the shape that the types of OpenAI's library have for it."""
    if isinstance(choice, dict) and choice.get("type") == "function" and "name" in choice:
        return choice
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools" and "tools" in choice:
        return choice
    return choice if choice in ("none", "required") else "auto"
